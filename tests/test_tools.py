"""``rxdrop`` and ``macswap``: every packet counted, or sent back, on any queues and links."""

import subprocess
import sys
import time

import pytest

from l2fwd import link
from l2fwd._jobs import Drop
from l2fwd._rings import Memory, Pool
from l2fwd._worker import Worker
from l2fwd.errors import ConfigError
from l2fwd.testing import FakeQueue

MODES = pytest.mark.parametrize("mode", ["native", "skb"])
PACKET = bytes.fromhex("021122334455 02aabbccddee 0800") + bytes(range(46))


# Against the fake kernel


def fake_port(fill_target=16, size=16):
    pool = Pool(Memory(64, 2048))
    queue = FakeQueue(pool, size=size, name="left", record=True)
    queue.port.refill(fill_target)
    return pool, queue


def test_what_is_dropped_is_consumed_and_its_frames_are_lent_again():
    pool, queue = fake_port()
    worker = Worker(queue.port, job=Drop(), batch_size=8)
    received = 0
    for _ in range(100):
        received += queue.receive_packets([PACKET] * 5)
        worker.turn()
    counters = queue.port.counters()
    assert counters["rx_packets"] == counters["consumed_packets"] == received == 500
    assert counters["rx_bytes"] == received * len(PACKET)
    assert sum(worker.frames().values()) == pool.frame_count
    assert queue.pending("tx") == 0


def test_a_worker_of_one_port_sends_back_with_the_addresses_swapped():
    _, queue = fake_port()
    worker = Worker(queue.port, swap_mac=True)
    queue.receive_packets([PACKET] * 3)
    assert worker.turn() == 3
    queue.transmit()
    assert [bytes(packet) for packet in queue.sent] == 3 * [PACKET[6:12] + PACKET[:6] + PACKET[12:]]


def test_a_job_has_one_port():
    pool, queue = fake_port()
    other = FakeQueue(pool, size=16, name="right")
    with pytest.raises(ConfigError, match="one with a job"):
        Worker(queue.port, other.port, job=Drop())


# On a real bed


@pytest.mark.privileged
@MODES
def test_rxdrop_counts_every_packet_and_sends_none(bed, forward, open_wire, mode):
    tool = forward(bed, "--mode", mode, verb="rxdrop", links=("f0",))
    wire = open_wire(bed)
    for turn in range(10):
        wire.send(200, first=200 * turn)
    tool.wait_for("stats")
    summary = tool.stop()
    assert summary["rx_packets"] == summary["consumed"] == 2000
    assert summary["tx_packets"] == summary["unaccounted"] == 0
    assert wire.receive(1, seconds=0.2) == wire.receive(1, end=wire.gen, seconds=0.2) == []


@pytest.mark.privileged
@MODES
def test_macswap_sends_every_packet_back_once_in_order(bed, forward, open_wire, mode):
    tool = forward(bed, "--mode", mode, verb="macswap", links=("f0",))
    wire = open_wire(bed)
    for length in (60, 1514):
        sent = wire.send(500, length=length)
        swapped = [each[6:12] + each[:6] + each[12:] for each in sent]
        assert wire.receive(500, end=wire.gen) == swapped
    summary = tool.stop()
    assert summary["forwarded"] == summary["rx_packets"] == 1000
    assert summary["unaccounted"] == 0


@pytest.mark.privileged
def test_several_links_and_queues_at_once_each_by_itself(make_bed, forward, open_wire):
    bed = make_bed(queues=2)
    tool = forward(bed, "-i", "f0", "-i", "f1", verb="macswap", links=())
    sockets = {(each["link"], each["queue"]) for each in tool.events[-1]["sockets"]}
    assert sockets == {("f0", 0), ("f0", 1), ("f1", 0), ("f1", 1)}
    wire = open_wire(bed)
    wire.send(100)
    wire.send(100, source=wire.sink)
    assert len(wire.receive(100, end=wire.gen)) == len(wire.receive(100)) == 100
    summary = tool.stop()
    assert summary["rx_packets"] == 200
    assert sum(summary["frames"].values()) == summary["frame_count"]


@pytest.mark.privileged
def test_a_tool_goes_on_after_its_link_was_gone(bed, forward, open_wire, in_fwd):
    """The books of before and after are one."""
    tool = forward(bed, verb="macswap", links=("f0",))
    wire = open_wire(bed)
    wire.send(10)
    assert len(wire.receive(10, end=wire.gen)) == 10
    in_fwd(bed, link.delete_link, "f0")
    tool.wait_for("port_down")
    link.create_veth((bed.gen, "g0"), (bed.fwd, "f0"))
    for netns, ifname in ((bed.gen, "g0"), (bed.fwd, "f0")):
        with link.in_netns(netns):
            link.disable_ipv6(ifname)
            link.set_up(ifname)
    tool.wait_for("port_up")
    wire.close()
    wire = open_wire(bed)
    wire.send(10)
    assert len(wire.receive(10, end=wire.gen)) == 10
    assert tool.stop()["rx_packets"] == 20


@pytest.mark.privileged
def test_a_link_that_is_gone_hinders_no_other(bed, forward, open_wire, in_fwd):
    tool = forward(bed, verb="macswap", links=("f0", "f1"))
    wire = open_wire(bed)
    in_fwd(bed, link.delete_link, "f0")
    assert tool.wait_for("port_down")["links"] == ["f0"]
    time.sleep(0.5)
    wire.send(10, source=wire.sink)
    assert len(wire.receive(10)) == 10
    link.create_veth((bed.gen, "g0"), (bed.fwd, "f0"))
    for netns, ifname in ((bed.gen, "g0"), (bed.fwd, "f0")):
        with link.in_netns(netns):
            link.set_up(ifname)
    assert tool.wait_for("port_up")["links"] == ["f0"]
    summary = tool.stop()
    assert [event["event"] for event in tool.events].count("port_down") == 1
    assert (summary["rx_packets"], summary["unaccounted"]) == (10, 0)


@pytest.mark.privileged
def test_more_is_said_of_each_socket_when_asked_for(bed, forward):
    done = subprocess.run(
        ["nsenter", f"--net=/run/netns/{bed.fwd}", sys.executable, "-m", "l2fwd", "rxdrop", "f0",
         "-d", "0.5", "-n", "0.1", "-x", "-a"],
        capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    assert "f0 queue 0 drops: rx_oversize 0, rx_ring_full 0, rx_fill_empty 0" in done.stdout
    assert "f0 queue 0: worker_turns " in done.stdout
    assert "received 0, sent 0 packets" in done.stdout


@pytest.mark.privileged
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "link is missing"),
        (["f0", "f0"], "f0 is named twice"),
        (["f0", "-q", "3"], "queue 3: f0 has 1 queues"),
        (["nosuch0"], "nosuch0"),
        (["f0", "-S", "-N"], "not allowed with"),
        (["f0", "--cpus", "0,1"], "cpus names 2 CPUs for 1 workers"),
        (["f0", "--ring-size", "100"], "ring-size must be a power of two"),
        (["f0", "-d", "-1"], "duration must be"),
        (["f0", "-f", "1000"], "frame-size must be 2048 or 4096"),
        (["f0", "--bind", "fast"], "bind must be one of"),
    ],
)
@pytest.mark.parametrize("verb", ["rxdrop", "macswap"])
def test_bad_words_are_named_in_one_line(bed, verb, words, said):
    done = subprocess.run(
        ["nsenter", f"--net=/run/netns/{bed.fwd}", sys.executable, "-m", "l2fwd", verb, *words],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
