"""``forward`` on a real bed: every frame once, in order, unchanged, and counted."""

import signal

import pytest

from l2fwd import link

pytestmark = pytest.mark.privileged


@pytest.mark.parametrize("mode", ["native", "skb"])
def test_every_frame_arrives_once_in_order_and_unchanged(bed, forward, open_wire, mode):
    """F1"""
    forwarder = forward(bed, "--mode", mode)
    wire = open_wire(bed)
    sent, received = [], []
    for turn, length in enumerate((60, 64, 65, 511, 1024, 1513, 1514)):
        sent += wire.send(500, first=turn * 500, length=length)
        received += wire.receive(500)
    assert received == sent
    summary = forwarder.stop()
    assert summary["forwarded"] == summary["rx_packets"] >= len(sent)
    assert summary["drops"] == {}
    assert summary["unaccounted"] == 0
    assert sum(summary["frames"].values()) == summary["frame_count"]


def test_both_directions_at_once(bed, forward, open_wire):
    """F2"""
    forwarder = forward(bed)
    wire = open_wire(bed)
    for turn in range(20):
        there = wire.send(100, first=turn * 100)
        back = wire.send(100, first=50_000 + turn * 100, source=wire.sink)
        assert wire.receive(100) == there
        assert wire.receive(100, end=wire.gen) == back
    assert forwarder.stop()["forwarded"] >= 4000


def test_one_way_leaves_the_other_direction_to_the_host(bed, forward, open_wire):
    forwarder = forward(bed, "--one-way")
    assert [s["receives"] for s in forwarder.events[-1]["sockets"]] == [True, False]
    wire = open_wire(bed)
    sent = wire.send(50)
    assert wire.receive(50) == sent
    wire.send(50, source=wire.sink)
    assert wire.receive(1, end=wire.gen, seconds=0.3) == []
    assert forwarder.stop()["rx_packets"] == 50


def test_frames_for_the_next_bridge_stay_on_their_link(bed, forward, open_wire):
    """P8"""
    forwarder = forward(bed)
    wire = open_wire(bed)
    wire.gen.send(bytes.fromhex("0180c200000e") + wire.frame(1)[6:])
    sent = wire.send(1, first=2)
    assert wire.receive(2, seconds=0.3) == sent
    assert forwarder.stop()["rx_packets"] == 1


def test_a_lone_packet_leaves_at_once(bed, forward, open_wire):
    """R9, P33"""
    forward(bed)
    wire = open_wire(bed)
    for number in range(20):
        (frame,) = wire.send(1, first=number)
        assert wire.receive(1, seconds=0.5) == [frame]


@pytest.mark.parametrize(
    ("option", "rewritten"),
    [
        (["--set-dst-mac", "00:00:11:22:33:44"], "000011223344" + "020000000001"),
        (["--swap-mac"], "020000000001" + "020000000002"),
    ],
)
def test_only_the_addresses_asked_for_change(bed, forward, open_wire, option, rewritten):
    forward(bed, *option)
    wire = open_wire(bed)
    sent = wire.send(20, length=200)
    expected = [bytes.fromhex(rewritten) + frame[12:] for frame in sent]
    assert wire.receive(20) == expected


def test_swapped_addresses_go_both_ways_and_a_set_one_only_out(bed, forward, open_wire):
    forward(bed, "--set-dst-mac", "00:00:11:22:33:44")
    wire = open_wire(bed)
    sent = wire.send(5, source=wire.sink)
    assert wire.receive(5, end=wire.gen) == sent


@pytest.mark.parametrize("ring_size", [1, 2, 64, 32768])
def test_ring_sizes_from_one_on_work(bed, forward, open_wire, ring_size):
    """R10"""
    forwarder = forward(bed, "--ring-size", ring_size)
    assert forwarder.events[-1]["sockets"][0]["ring_size"] == ring_size
    wire = open_wire(bed)
    for number in range(30):
        (frame,) = wire.send(1, first=number)
        assert wire.receive(1) == [frame]
    assert forwarder.stop()["unaccounted"] == 0


@pytest.mark.parametrize(
    ("frame_size", "mtu", "length"), [(2048, 1774, 1788), (4096, 1500, 1514), (4096, 3498, 3512)]
)
def test_frames_as_long_as_the_mtu_fit(make_bed, forward, open_wire, frame_size, mtu, length):
    """R8"""
    bed = make_bed()
    for netns, ifname in ((bed.gen, "g0"), (bed.fwd, "f0"), (bed.fwd, "f1"), (bed.sink, "s0")):
        with link.in_netns(netns):
            link.set_mtu(ifname, mtu)
    forward(bed, "--frame-size", frame_size)
    wire = open_wire(bed)
    sent = wire.send(20, length=length)
    assert wire.receive(20) == sent


@pytest.mark.parametrize("headroom", [0, 64, 250])
def test_headroom_leaves_packets_whole(bed, forward, open_wire, headroom):
    """R7"""
    forward(bed, "--headroom", headroom)
    wire = open_wire(bed)
    sent = wire.send(20, length=1514)
    assert wire.receive(20) == sent


def test_every_queue_forwards_and_those_left_out_reach_the_host(make_bed, forward, open_wire):
    """F10"""
    bed = make_bed(queues=4)
    forwarder = forward(bed, "--queues", "all")
    assert [s["queue"] for s in forwarder.events[-1]["sockets"]] == [0, 0, 1, 1, 2, 2, 3, 3]
    wire = open_wire(bed)
    sent = wire.send(200)
    assert sorted(wire.receive(200)) == sorted(sent)
    forwarder.stop()

    partial = forward(bed, "--queues", "1")
    message = partial.wait_for("warning")["message"]
    assert "1 of 4 RX queues are served; the others go to the host stack" in message
    assert partial.stop()["unaccounted"] == 0


def test_busy_poll_and_no_need_wakeup_forward_as_well(bed, forward, open_wire):
    forward(bed, "--busy-poll", "--no-need-wakeup", "--cpus", "0")
    wire = open_wire(bed)
    sent = wire.send(50)
    assert wire.receive(50) == sent


def test_the_stats_and_the_summary_agree(bed, forward, open_wire):
    forwarder = forward(bed, "--interval", "0.2")
    wire = open_wire(bed)
    wire.send(100, length=100)
    assert len(wire.receive(100)) == 100
    forwarder.wait_for("stats")
    stats = forwarder.wait_for("stats")
    assert [rate["name"] for rate in stats["rates"]] == ["f0", "f1", "total"]
    summary = forwarder.stop()
    assert summary["rx_packets"] == 100
    assert summary["rx_bytes"] == 100 * 100
    assert summary["tx_bytes"] == 100 * 100


def test_duration_ends_it_by_itself(bed, forward):
    forwarder = forward(bed, "--duration", "0.3", "--interval", "0")
    assert forwarder.wait_for("summary")["elapsed"] >= 0.3
    assert forwarder.wait() == 0
    assert [e["event"] for e in forwarder.events if e["event"] != "warning"] == ["ready", "summary"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_with_a_summary(bed, forward, number):
    """S1, S2"""
    assert forward(bed).stop(number)["unaccounted"] == 0
