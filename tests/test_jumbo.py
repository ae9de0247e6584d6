"""Jumbo frames through all data paths, and frames of any size: judged where they arrive."""

import errno
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from l2fwd import link
from l2fwd.config import ForwardConfig
from l2fwd.datapath import side
from l2fwd.datapath.side import Side
from l2fwd.errors import KernelError
from l2fwd.netdev import xdp_features
from tests.on_the_wire import End

pytestmark = pytest.mark.privileged

ROOM = 2048 - 256
LENGTHS = (60, 1514, ROOM, ROOM + 1, 3520, 3521, 2 * ROOM, 2 * ROOM + 1, 4096, 8192, 9014)

modes = pytest.mark.parametrize("mode", ["native", "skb"])
paths = pytest.mark.parametrize(
    "options",
    [
        (),
        ("--rule", "in f0 -> out f1", "--rule", "in f1 -> out f0"),
        ("--data-path", "hybrid"),
        ("--data-path", "redirect"),
    ],
    ids=["plain", "rules", "hybrid", "redirect"],
)


def with_mtu(bed, mtu):
    for netns, ifname in ((bed.gen, "g0"), (bed.fwd, "f0"), (bed.fwd, "f1"), (bed.sink, "s0")):
        with link.in_netns(netns):
            link.set_mtu(ifname, mtu)
    return bed


@pytest.fixture
def jumbo(bed):
    return with_mtu(bed, 9000)


def cross(wire, lengths, times=4):
    """Send frames of these lengths from one end; assert that they arrive as they were."""
    first, total = 0, 0
    for length in lengths * times:
        sent = wire.send(8, first=first, length=length)
        assert wire.receive(8) == sent, length
        first, total = first + 8, total + 8 * length
    return first, total


def assert_books(summary, packets, size):
    assert summary["forwarded"] == summary["rx_packets"] == packets
    assert summary["rx_bytes"] == summary["tx_bytes"] == size
    assert summary["drops"] == {}
    assert summary["unaccounted"] == 0
    assert sum(summary.get("frames", {}).values()) == summary.get("frame_count", 0)


@modes
@paths
def test_jumbo_frames_cross_whole(jumbo, forward, open_wire, mode, options):
    """SEND_RECEIVE_9K"""
    forwarder = forward(jumbo, "--mode", mode, *options)
    ready = forwarder.events[-1]
    assert all(each["multi_buffer"] for each in ready["sockets"])
    wire = open_wire(jumbo)
    packets, size = cross(wire, LENGTHS)
    back = wire.send(5, first=1000, length=9014, source=wire.sink)
    assert wire.receive(5, end=wire.gen) == back
    assert_books(forwarder.stop(), packets + 5, size + 5 * 9014)


@modes
@pytest.mark.parametrize("frame_size", [2048, 4096])
def test_bursts_of_jumbo_frames_are_cut_nowhere(jumbo, forward, open_wire, mode, frame_size):
    """P22: more descriptors than a batch has, and than a system call sends."""
    forwarder = forward(jumbo, "--mode", mode, "--frame-size", frame_size, "--batch-size", "7")
    wire = open_wire(jumbo)
    sent, received = [], []
    for turn in range(20):
        for i in range(60):
            sent += wire.send(1, first=turn * 60 + i, length=60 + (turn * 60 + i) * 149 % 8955)
        received += wire.receive(60)
    assert received == sent
    assert_books(forwarder.stop(), len(sent), sum(map(len, sent)))


def test_eighteen_frames_are_the_most_a_packet_takes(make_bed, forward, open_wire):
    """TOO_MANY_FRAGS"""
    bed = with_mtu(make_bed(), 18 * ROOM - 18)
    forwarder = forward(bed)
    wire = open_wire(bed)
    packets, size = cross(wire, (60, 17 * ROOM, 18 * ROOM - 4, 60), times=2)
    assert_books(forwarder.stop(), packets, size)


def test_tags_come_and_go_on_jumbo_frames(jumbo, forward, open_wire):
    forwarder = forward(
        jumbo, "--rule", "in f0 -> out f1 push_vlan 7 set_dst_mac 02:00:00:00:00:09"
    )
    sink = End(jumbo.sink, "s0")  # which sees tags
    (sent,) = open_wire(jumbo).send(1, length=8000)
    tagged = bytes.fromhex("020000000009") + sent[6:12] + bytes.fromhex("81000007") + sent[12:]
    assert sink.receive(1) == [tagged]
    sink.close()
    assert forwarder.stop()["drops"] == {}


def test_jumbo_frames_beyond_the_other_links_mtu_are_counted(jumbo, forward, open_wire):
    """The program looks at the whole length, not at the first buffer's."""
    with link.in_netns(jumbo.fwd):
        link.set_mtu("f1", 5000)
    forwarder = forward(jumbo, "--data-path", "redirect")
    wire = open_wire(jumbo)
    wire.send(10, length=6000)
    sent = wire.send(10, length=5014)
    assert wire.receive(10) == sent
    assert forwarder.stop()["drops"] == {"tx_mtu_drops": 10}


def test_jumbo_frames_that_find_too_few_frames_are_counted(jumbo, forward, open_wire):
    """Dropped whole, in the kernel: what is sent is forwarded, or dropped for a reason."""
    forwarder = forward(jumbo, "--ring-size", "8", "--frames", "32")
    wire = open_wire(jumbo)
    for turn in range(5):
        wire.send(100, first=turn * 100, length=9014)
        received = wire.receive(100, seconds=0.3)
        assert all(frame == wire.frame(int.from_bytes(frame[14:18], "big"), 9014)
                   for frame in received)  # fmt: skip
    summary = forwarder.stop()
    assert summary["unaccounted"] == 0
    assert set(summary["drops"]) <= {"rx_fill_empty_drops", "rx_ring_full_drops", "tx_full_drops"}
    assert summary["forwarded"] + sum(summary["drops"].values()) == 500


@pytest.mark.parametrize("length", [60, 9014])
def test_macswap_and_rxdrop_take_jumbo_frames(jumbo, forward, open_wire, length):
    forwarder = forward(jumbo, links=("f0",), verb="macswap")
    wire = open_wire(jumbo)
    sent = wire.send(20, length=length)
    swapped = [frame[6:12] + frame[:6] + frame[12:] for frame in sent]
    assert wire.receive(20, end=wire.gen) == swapped
    assert forwarder.stop()["unaccounted"] == 0
    forwarder = forward(jumbo, links=("f0",), verb="rxdrop")
    wire.send(20, length=length)
    wire.receive(1, seconds=0.2)
    summary = forwarder.stop()
    assert (summary["consumed"], summary["drops"]) == (20, {})


# Frames of any size


@modes
@paths
@pytest.mark.parametrize("frame_size", [2048, 3000, 4001])
def test_unaligned_frames_cross_whole(bed, forward, open_wire, mode, options, frame_size):
    """UNALIGNED, UNALIGNED_4001"""
    if "redirect" in options:
        pytest.skip("no sockets")
    forwarder = forward(
        bed, "--mode", mode, *options, "--unaligned", "--frame-size", frame_size, "--bind", "copy"
    )
    wire = open_wire(bed)
    packets, size = cross(wire, (60, 511, 1514))
    assert_books(forwarder.stop(), packets, size)


@modes
def test_unaligned_frames_take_jumbo_packets_too(jumbo, forward, open_wire, mode):
    """UNALIGNED_9K"""
    forwarder = forward(
        jumbo, "--mode", mode, "--unaligned", "--frame-size", "3000", "--bind", "copy"
    )
    wire = open_wire(jumbo)
    packets, size = cross(wire, LENGTHS)
    assert_books(forwarder.stop(), packets, size)


@pytest.mark.parametrize("verb", ["rxdrop", "macswap"])
def test_the_tools_take_unaligned_frames(bed, forward, open_wire, verb):
    words = ("-u", "-f", "3000", "-c")
    forwarder = forward(bed, *words, links=("f0",), verb=verb)
    wire = open_wire(bed)
    wire.send(20, length=1000)
    wire.receive(20, end=wire.gen, seconds=0.3)
    summary = forwarder.stop()
    assert (summary["rx_packets"], summary["unaccounted"], summary["drops"]) == (20, 0, {})


# Huge pages


@pytest.fixture
def huge_pages():
    """Sixteen 2 MiB pages in the system's pool, and as many as before in the end."""
    pool = Path("/proc/sys/vm/nr_hugepages")
    before = pool.read_text()
    try:
        pool.write_text("16")
        if int(pool.read_text()) < 16:
            pytest.skip("the kernel has no sixteen huge pages to give")
    except OSError as error:
        pytest.skip(f"vm.nr_hugepages cannot be set here: {error.strerror}")
    else:
        yield
    finally:
        pool.write_text(before)


@pytest.mark.parametrize(
    "options",
    [("--huge-pages",), ("--huge-pages", "--unaligned", "--frame-size", "3000")],
    ids=["aligned", "unaligned"],
)
def test_huge_pages_hold_the_packets(bed, forward, open_wire, huge_pages, options):
    free = int(pool_row("HugePages_Free"))
    forwarder = forward(bed, *options, "--frames", "4096", "--ring-size", "512")
    assert int(pool_row("HugePages_Free")) < free
    wire = open_wire(bed)
    packets, size = cross(wire, (60, 1514))
    assert_books(forwarder.stop(), packets, size)
    assert int(pool_row("HugePages_Free")) == free


def pool_row(name):
    rows = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return rows[name].split()[0]


# What cannot be


def run(bed, *words):
    command = ["nsenter", f"--net=/run/netns/{bed.fwd}", sys.executable, "-m", "l2fwd", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--no-frags",), ["f0: MTU 9000", "lower it (ip link set f0 mtu 3822)", "4096"]),
        (("-f", "2048", "--ring-size", "4"), ["4 frames of 2048 hold 7168", "--frame-size 4096"]),
        (("-f", "2048", "--frames", "16"), ["4 frames of 2048 hold 7168"]),
        (("--ring-size", "2"), ["2 frames of 2048 hold 3584", "lower it"]),
    ],
)
def test_jumbo_frames_that_do_not_fit_are_refused(jumbo, words, said):
    done = run(jumbo, "forward", "f0", "f1", *words)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    for each in said:
        assert each in done.stderr


def test_a_driver_without_multi_buffer_xdp_is_named(jumbo, monkeypatch):
    """A native program for several buffers is refused by a driver that has none."""
    with link.in_netns(jumbo.fwd):
        found = Side("f0", ForwardConfig(in_link="f0", out_link="f1"), lambda found: None)
        features = replace(xdp_features(found.link.ifindex), rx_sg=False)

    class Refused:
        def attach(self, ifindex, ifname, mode, *, chain):
            raise KernelError(errno.EINVAL, "attach to", ifname, "turn LRO off")

    monkeypatch.setattr(side, "xdp_features", lambda ifindex: features)
    with pytest.raises(KernelError, match=r"MTU 9000 \(no RX_SG\); lower it .* or use --mode skb"):
        found._attach(Refused())
    monkeypatch.setattr(side, "xdp_features", lambda ifindex: replace(features, rx_sg=True))
    with pytest.raises(KernelError, match="turn LRO off"):
        found._attach(Refused())


@pytest.mark.parametrize(
    ("data_path", "mode", "has_it", "count"),
    [
        ("redirect", "native", False, 1),
        ("hybrid", "native", False, 1),
        ("redirect", "native", True, 0),
        ("redirect", "skb", False, 0),
        ("afxdp", "native", False, 0),
    ],
)
def test_a_driver_that_takes_no_redirected_jumbo_frames_is_named(
    jumbo, monkeypatch, data_path, mode, has_it, count
):
    """dev_map_enqueue: EOPNOTSUPP, which only a tracepoint tells."""
    config = ForwardConfig(in_link="f0", out_link="f1", data_path=data_path)
    with link.in_netns(jumbo.fwd):
        found = Side("f0", config, lambda found: None)
        features = replace(xdp_features(found.link.ifindex), ndo_xmit_sg=has_it)
    monkeypatch.setattr(side, "xdp_features", lambda ifindex: features)
    assert len(found._jumbo_notes(mode)) == count


def test_more_frames_than_a_packet_may_take_are_refused(make_bed):
    bed = with_mtu(make_bed(), 18 * ROOM - 17)
    done = run(bed, "forward", "f0", "f1", "--frame-size", "2048")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "use --frame-size 4096" in done.stderr


@pytest.mark.parametrize(
    ("mtu", "options", "frame_size"),
    [
        (1500, (), 2048),
        (3000, (), 2048),  # in two frames
        (3000, ("--no-frags",), 4096),
        (18 * ROOM - 17, (), 4096),
    ],
)
def test_the_frame_size_is_chosen_by_the_mtu(
    make_bed, forward, open_wire, mtu, options, frame_size
):
    bed = with_mtu(make_bed(), mtu)
    forwarder = forward(bed, *options)
    assert {each["frame_size"] for each in forwarder.ready["sockets"]} == {frame_size}
    wire = open_wire(bed)
    sent = wire.send(20, length=mtu)
    assert wire.receive(len(sent)) == sent
    assert forwarder.stop()["unaccounted"] == 0


def test_ready_says_multi_buffer_in_words(jumbo):
    done = run(jumbo, "forward", "f0", "f1", "--duration", "0.1", "--quiet")
    assert done.stdout.count("multi-buffer") == 2
    done = run(jumbo, "forward", "f0", "f1", "--frame-size", "4096", "--duration", "0.1", "--json")
    assert json.loads(done.stdout.splitlines()[0])["sockets"][0]["multi_buffer"] is True
