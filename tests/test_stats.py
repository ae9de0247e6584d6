"""Counters into disjoint drop reasons, sums that balance, and rates."""

import json

import pytest

from l2fwd.cli.output import Printer
from l2fwd.engine import stats_event, summarize
from l2fwd.stats import DROP_REASONS, PortSample, Snapshot, drops_text, kernel_drops, rates


def port(link, queue=0, *, drops=None, frames=None, **counters):
    blank = dict.fromkeys(
        ("rx_packets", "rx_bytes", "tx_packets", "tx_completed", "tx_bytes"), 0
    )  # fmt: skip
    return PortSample(link, queue, blank | counters, drops or {}, frames or {})


def test_a_packet_that_found_no_frame_is_counted_once():
    """Fact 10: rx_dropped and rx_fill_ring_empty_descs both move."""
    assert kernel_drops(
        {
            "rx_dropped": 152 + 7,
            "rx_fill_ring_empty_descs": 152,
            "rx_ring_full": 3,
            "tx_invalid_descs": 2,
        },
        is_zero_copy=False,
    ) == {
        "rx_fill_empty_drops": 152,
        "rx_ring_full_drops": 3,
        "rx_oversize_drops": 7,
        "tx_invalid_drops": 2,
    }


def test_an_old_kernels_statistics_give_what_they_can():
    assert kernel_drops({"rx_dropped": 5}, is_zero_copy=False)["rx_oversize_drops"] == 5


def test_a_zero_copy_driver_that_finds_no_frame_has_not_dropped_a_packet():
    drops = kernel_drops({"rx_dropped": 4, "rx_fill_ring_empty_descs": 9}, is_zero_copy=True)
    assert drops["rx_fill_empty_drops"] == 0
    assert drops["rx_oversize_drops"] == 4


def test_every_reason_the_kernel_gives_is_explained():
    assert set(kernel_drops({}, is_zero_copy=False)) <= set(DROP_REASONS)


@pytest.fixture
def snapshot():
    left = port("a", rx_packets=100, rx_bytes=6000, drops={"rx_invalid_drops": 1})
    right = port(
        "b",
        tx_packets=90,
        tx_completed=85,
        tx_bytes=5400,
        drops={"tx_full_drops": 9, "tx_busy_drops": 4},
    )
    return Snapshot(10.0, [left, right], {"pool": 5, "tx": 3}, 8)


def test_the_books_balance(snapshot):
    assert snapshot.forwarded == 81
    assert snapshot.in_flight == 5
    assert snapshot.drops == {"rx_invalid_drops": 1, "tx_full_drops": 9, "tx_busy_drops": 4}
    assert snapshot.total("rx_packets") == snapshot.forwarded + snapshot.in_flight + 1 + 9 + 4
    assert snapshot.unaccounted == 0


def test_a_packet_or_a_frame_that_is_missing_shows(snapshot):
    snapshot.ports[0].counters["rx_packets"] += 1
    assert snapshot.unaccounted == 1
    snapshot.frames["pool"] -= 1
    assert snapshot.unaccounted == 2


def test_what_died_on_a_socket_is_not_in_flight(snapshot):
    snapshot.ports[1].drops["tx_abandoned_drops"] = 5
    assert snapshot.in_flight == 0


def test_rates_are_differences_over_the_interval_with_the_queues_of_a_link_added_up():
    before = Snapshot(1.0, [port("a", 0), port("a", 1), port("b", 0)])
    now = Snapshot(
        3.0,
        [
            port("a", 0, rx_packets=10, rx_bytes=1000),
            port("a", 1, rx_packets=30, rx_bytes=3000, drops={"rx_ring_full_drops": 4}),
            port("b", 0, tx_packets=38, tx_bytes=3800),
        ],
    )
    a, b, total = rates(before, now)
    assert (a.name, a.rx_pps, a.rx_bits_per_second, a.drops_pps) == ("a", 20, 16000, 2)
    assert (b.tx_pps, b.tx_bits_per_second) == (19, 15200)
    assert (total.rx_pps, total.tx_pps, total.drops) == (20, 19, {"rx_ring_full_drops": 4})


def test_drops_are_named_largest_first():
    assert drops_text({"tx_full_drops": 2, "rx_ring_full_drops": 3000}) == (
        "rx_ring_full 3,000, tx_full 2"
    )
    assert drops_text({}) == "-"


def test_events_are_json_with_the_keys_that_are_promised(snapshot, capsys):
    with Printer(json=True, quiet=False) as printer:
        printer(stats_event(snapshot, snapshot))
        printer(summarize(snapshot, snapshot))
    stats, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert stats["event"] == "stats"
    assert [rate["name"] for rate in stats["rates"]] == ["a", "b", "total"]
    for key in ("elapsed", "rx_packets", "forwarded", "drops", "frames", "unaccounted", "ports"):
        assert key in summary


def test_plain_lines_have_a_heading_a_row_per_link_and_a_total(snapshot, capsys):
    with Printer(json=False, quiet=False) as printer:
        printer(stats_event(snapshot, snapshot))
        printer(summarize(snapshot, snapshot))
        printer({"event": "port_down", "queue": 0, "reason": "gone"})
    out, err = capsys.readouterr()
    heading, *rows, books, frames = out.splitlines()
    assert heading.split()[:3] == ["rx/s", "tx/s", "drop/s"]
    assert [row.split()[0] for row in rows] == ["a", "b", "total"]
    assert books.startswith("forwarded 81 of 100 packets")
    assert frames == "frames: pool 5, tx 3"
    assert err == "l2fwd: port down: 0, gone\n"


def test_quiet_leaves_the_stats_out(snapshot, capsys):
    with Printer(json=True, quiet=True) as printer:
        printer(stats_event(snapshot, snapshot))
        printer(summarize(snapshot, snapshot))
    assert len(capsys.readouterr().out.splitlines()) == 1
