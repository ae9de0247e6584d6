"""The examples on real links: right bytes at the far end; policies on both paths, in both modes."""

import json
import random
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether

from l2fwd import link
from l2fwd.pcap import read_capture

pytestmark = pytest.mark.privileged

EXAMPLES = Path(__file__).parent.parent / "examples"
GENERATOR, SINK = "02:00:00:00:00:01", "02:00:00:00:00:02"
ETH_P_ALL = 3
PATHS = pytest.mark.parametrize("data_path", ["afxdp", "hybrid"])
MODES = pytest.mark.parametrize("mode", ["native", "skb"])


def udp(flow, payload=b""):
    """Packet ``payload`` of a UDP flow; ours are from 10.99.0.0/16."""
    ip = IP(src=f"10.99.0.{flow % 200 + 1}", dst=f"10.98.0.{flow % 7}")
    packet = Ether(src=GENERATOR, dst=SINK) / ip / UDP(sport=1024 + flow, dport=53)
    return bytes(packet / payload.ljust(30))


class Ends:
    """Raw sockets at both outer ends of a bed."""

    def __init__(self, bed):
        self.gen = self._open(bed.gen, "g0")
        self.sink = self._open(bed.sink, "s0")

    @staticmethod
    def _open(netns, ifname):
        with link.in_netns(netns):
            end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            end.bind((ifname, ETH_P_ALL))
        return end

    def carry(self, packets, count=None, *, back=False):
        """Send ``packets``; return what of ours arrives, until ``count`` have, or none comes."""
        source, end = (self.sink, self.gen) if back else (self.gen, self.sink)
        count = len(packets) if count is None else count
        found = []
        for packet in packets:
            source.send(packet)
        end.settimeout(1)
        deadline = time.monotonic() + 10
        while len(found) < count and time.monotonic() < deadline:
            try:
                data, (_, _, kind, *_) = end.recvfrom(65536)
            except TimeoutError:
                break
            if kind != socket.PACKET_OUTGOING and data[26:28] == b"\x0a\x63":
                found.append(data)
        return found

    def close(self):
        self.gen.close()
        self.sink.close()


@pytest.fixture
def ends(bed):
    """Sockets at the ends of the bed."""
    opened = Ends(bed)
    yield opened
    opened.close()


def start(forward, bed, example, data_path, mode, *more):
    path = EXAMPLES / f"{example}.py"
    options = ("--data-path", data_path, "--mode", mode, "--miss", "user", "--policy", path)
    return forward(bed, *options, *more)


@PATHS
@MODES
def test_the_load_balancer_keeps_every_flow_at_one_back_end(bed, forward, ends, data_path, mode):
    forwarder = start(forward, bed, "load_balancer", data_path, mode)
    flows, rounds = 60, 6
    seen = {}
    for number in range(rounds):
        packets = [udp(flow, b"%d" % number) for flow in range(flows)]
        arrived = ends.carry(packets)
        assert Counter(each[6:] for each in arrived) == Counter(each[6:] for each in packets)
        for each in arrived:
            assert seen.setdefault(each[26:38], each[:6]) == each[:6], "the flow has moved"
        time.sleep(0.05)  # for the flows to settle in the kernel
    assert set(seen.values()) == {bytes((2, 0, 0, 0, 1, n)) for n in range(4)}
    back = [udp(flow) for flow in range(8)]
    assert ends.carry(back, back=True) == back
    summary = forwarder.stop()
    assert summary["unaccounted"] == 0
    if data_path == "hybrid":
        assert summary["flows"]["inserted"] >= flows
        assert summary["slow_path"] < flows * rounds, "the kernel forwards what was learned"


def test_workers_of_two_queues_ask_one_policy(make_bed, forward):
    bed = make_bed(queues=2)
    ends = Ends(bed)
    try:
        forwarder = start(forward, bed, "load_balancer", "afxdp", "native")
        packets = [udp(flow) for flow in range(200)]
        arrived = ends.carry(packets)
    finally:
        ends.close()
    assert Counter(each[6:] for each in arrived) == Counter(each[6:] for each in packets)
    summary = forwarder.stop()
    assert summary["unaccounted"] == 0
    received = [port["rx_packets"] for port in summary["ports"] if port["link"] == "f0"]
    assert sum(count > 0 for count in received) == 2


@PATHS
@MODES
def test_the_filter_drops_exactly_the_marked(bed, forward, ends, data_path, mode):
    forwarder = start(forward, bed, "numpy_filter", data_path, mode)
    rng = random.Random(1)
    packets, wanted = [], []
    for number in range(200):
        is_marked = rng.random() < 0.5
        # The same few flows with and without the mark.
        packets.append(udp(number % 5, (b"DROPME" if is_marked else b"KEEPME") + b"%d" % number))
        if not is_marked:
            wanted.append(packets[-1])
    assert ends.carry(packets, len(wanted)) == wanted
    summary = forwarder.stop()
    assert summary["unaccounted"] == 0
    assert summary["drops"] == {"rx_rule_drops": len(packets) - len(wanted)}
    assert summary["slow_path"] >= len(packets), "each was asked for"
    assert summary.get("flows", {}).get("inserted", 0) == 0


@PATHS
@MODES
def test_the_numba_rewrite_gives_right_bytes(bed, forward, ends, data_path, mode):
    pytest.importorskip("numba", reason="Numba is not installed: pip install numba")
    forwarder = start(forward, bed, "numba_rewrite", data_path, mode)
    packets = [udp(flow) for flow in range(100)]
    packets += [bytes(Ether(src=GENERATOR, dst=SINK) / IP(src="10.99.0.1", tos=0xFF) / TCP())]
    wanted = []
    for packet in packets:
        expected = Ether(packet)
        expected.dst = f"02:00:00:00:02:{packet[33]:02x}"
        expected[IP].tos = 46 << 2 | expected[IP].tos & 3
        del expected[IP].chksum
        wanted.append(bytes(expected))
    for _ in range(2):
        assert ends.carry(packets) == wanted
    summary = forwarder.stop()
    assert summary["unaccounted"] == 0
    assert summary.get("flows", {}).get("inserted", 0) == 0


@pytest.mark.parametrize("example", ["load_balancer", "numpy_filter", "numba_rewrite"])
def test_an_example_is_a_script_too(bed, ends, example):
    if example == "numba_rewrite":
        pytest.importorskip("numba", reason="Numba is not installed: pip install numba")
    command = [sys.executable, EXAMPLES / f"{example}.py", "f0", "f1", "--json"]
    with subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{bed.fwd}", *command, "--duration", "1"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert json.loads(process.stdout.readline())["event"] == "ready"
        assert len(ends.carry([udp(1), udp(2)])) == 2
        *_, summary = map(json.loads, process.stdout)
    assert process.returncode == 0
    assert summary["unaccounted"] == 0


def test_a_rule_may_send_only_some_packets_to_the_policy(bed, forward, ends):
    forwarder = forward(
        bed,
        *("--data-path", "hybrid", "--policy", EXAMPLES / "numpy_filter.py"),
        *("--rule", "in f0 proto udp dport 53 -> user", "--rule", "in f0 -> out f1"),
    )
    marked = udp(1, b"DROPME")
    other = marked[:36] + b"\x00\x36" + marked[38:]
    assert ends.carry([marked, other] * 10, 10) == [other] * 10
    summary = forwarder.stop()
    assert summary["drops"] == {"rx_rule_drops": 10}
    assert summary["unaccounted"] == 0


# Policies that misbehave

SLOW = """
import time
def policy(batch):
    time.sleep(0.4)
    actions = batch.actions()
    batch.out(actions)
    return actions
"""
RAISING = """
def policy(batch):
    raise RuntimeError("oh no")
"""
SPINNING = """
import time
def policy(batch):
    end = time.monotonic() + 0.4
    while time.monotonic() < end:
        pass
    return batch.actions()
"""


@PATHS
@pytest.mark.parametrize("code", [SLOW, RAISING, SPINNING], ids=["slow", "raising", "spinning"])
def test_a_bad_policy_does_not_hold_up_a_stop(bed, forward, ends, tmp_path, data_path, code):
    """With far more packets waiting than it would answer in time; all are in the books."""
    path = tmp_path / "bad.py"
    path.write_text(code)
    options = ("--data-path", data_path, "--miss", "user", "--policy", path)
    forwarder = forward(bed, *options, "--batch-size", 4, "--interval", 0.1)
    packets = [udp(flow) for flow in range(400)]
    for packet in packets:
        ends.gen.send(packet)
        ends.sink.send(packet)
    if code is RAISING:
        while forwarder.wait_for("stats")["rx_packets"] < 2 * len(packets):
            pass
    summary = forwarder.stop()
    assert summary["unaccounted"] == 0
    assert summary["rx_packets"] >= 2 * len(packets)
    # 800 packets, four at a time, would take it 80 s.
    assert summary["drops"]["rx_policy_drops"] > 0
    if code is RAISING:
        assert forwarder.stderr.count("RuntimeError: oh no") == 1


def test_a_policy_that_hangs_is_named(bed, forward, ends, tmp_path):
    path = tmp_path / "hangs.py"
    path.write_text("import time\ndef policy(batch):\n    time.sleep(1000)\n")
    forwarder = forward(bed, "--miss", "user", "--policy", path)
    ends.gen.send(udp(1))
    time.sleep(0.2)
    forwarder.process.terminate()
    assert forwarder.wait(30) == 1
    assert "the worker of queue 0 does not stop; its policy has not returned" in forwarder.stderr
    assert "Traceback" not in forwarder.stderr


# The sockets


class Script:
    """An example on links of a bed's middle namespace, until Ctrl-C."""

    def __init__(self, bed, name, *arguments):
        # A shell's background job has Ctrl-C ignored, and so have its children.
        command = ["env", "--default-signal=INT", sys.executable, EXAMPLES / f"{name}.py"]
        self.process = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{bed.fwd}", *command, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self):
        return self.process.stdout.readline()

    def interrupt(self):
        """Press Ctrl-C; return the rest of what it printed."""
        self.process.send_signal(signal.SIGINT)
        return self.end()

    def end(self):
        printed, complaints = self.process.communicate(timeout=10)
        assert (self.process.returncode, complaints) == (0, "")
        return printed


@pytest.fixture
def script():
    """Start examples; none outlives the test."""
    running = []

    def start(*arguments):
        running.append(Script(*arguments))
        return running[-1]

    yield start
    for each in running:
        if each.process.poll() is None:
            each.process.kill()
            each.process.communicate()


@pytest.fixture
def wire(bed, open_wire):
    return open_wire(bed)


def test_sniff_names_who_talks_to_whom(bed, wire, script):
    sniff = script(bed, "sniff", "f0")
    assert sniff.line() == "f0: 1 queues, native XDP\n"
    wire.send(2, length=90)
    for _ in range(2):
        assert sniff.line() == "02:00:00:00:00:01 > 02:00:00:00:00:02 0x88b5 90 bytes\n"
    assert sniff.interrupt() == "done\n"


def test_ping_responder_answers_the_real_ping(bed, script):
    responder = script(bed, "ping_responder", "f0", "10.77.0.99")
    assert responder.line() == "f0: answering for 10.77.0.99\n"
    for size in (0, 56, 1400):
        command = ["ping", "-c", "3", "-i", "0.2", "-W", "2", "-s", str(size), "10.77.0.99"]
        done = subprocess.run(
            ["ip", "netns", "exec", bed.gen, *command], capture_output=True, text=True, check=False
        )
        assert "3 received" in done.stdout, done.stdout + done.stderr
    assert responder.interrupt() == "done\n"


def test_ping_responder_checksums_as_scapy_does():
    code = runpy.run_path(str(EXAMPLES / "ping_responder.py"))
    mac, address = bytes.fromhex("020000000099"), bytes((10, 77, 0, 99))
    for number in range(3000):
        request = Ether(src=GENERATOR, dst=SINK) / IP(src="10.77.0.1", dst="10.77.0.99")
        request /= ICMP(type=8, id=number, seq=number * 21 & 0xFFFF) / b"data"
        packet = np.frombuffer(bytearray(bytes(request)), np.uint8)
        assert code["answer"](packet, mac, address)
        answer = Ether(packet.tobytes())
        given = answer[ICMP].chksum, answer[IP].chksum
        del answer[ICMP].chksum, answer[IP].chksum
        assert (answer.src, answer.dst) == ("02:00:00:00:00:99", GENERATOR)
        assert (answer[IP].src, answer[ICMP].type) == ("10.77.0.99", 0)
        rebuilt = Ether(bytes(answer))
        assert (rebuilt[ICMP].chksum, rebuilt[IP].chksum) == given


def test_generator_sends_numbered_packets(bed, wire, script):
    generator = script(bed, "generator", "f1", 1000)
    received = wire.receive(1000, seconds=10)
    assert generator.end().startswith("1,000 packets, ")
    assert [int.from_bytes(packet[14:18]) for packet in received] == list(range(1000))
    assert {len(packet) for packet in received} == {60}


def test_generator_ends_by_ctrl_c(bed, wire, script):
    generator = script(bed, "generator", "f1")
    assert wire.receive(10, seconds=10)
    assert " packets, " in generator.interrupt()


def test_capture_writes_what_arrived(bed, wire, script, tmp_path):
    capture = script(bed, "capture", "f0", tmp_path / "out.pcapng")
    capture.line()
    sent = wire.send(100)
    time.sleep(0.3)
    assert capture.interrupt() == "100 packets; lost: none\n"
    assert [data for data, _ in read_capture(str(tmp_path / "out.pcapng"))] == sent


def test_bridge_carries_both_ways(bed, wire, script):
    bridge = script(bed, "bridge", "f0", "f1")
    assert bridge.line() == "f0 - f1\n"
    for turn in range(20):
        there = wire.send(200, first=200 * turn)
        assert wire.receive(200) == there
        back = wire.send(200, first=200 * turn, source=wire.sink)
        assert wire.receive(200, end=wire.gen) == back
    printed = bridge.interrupt().splitlines()
    for ifname, line in zip(("f0", "f1"), printed, strict=True):
        name, received, _, sent, *_ = re.split(r"[ :,]+", line)
        assert (name, line.endswith("{}")) == (ifname, True)
        assert int(received) >= 4000  # and what the hosts say of themselves
        assert int(sent) >= 4000


def test_asyncio_echo_sends_back_with_macs_swapped(bed, wire, script):
    echo = script(bed, "asyncio_echo", "f0")
    assert echo.line() == "f0: echo\n"
    sent = wire.send(100)
    wanted = [packet[6:12] + packet[:6] + packet[12:] for packet in sent]
    assert wire.receive(100, end=wire.gen) == wanted
    assert re.fullmatch(r"\d+ packets\n", echo.line())
    assert echo.interrupt().endswith(" packets sent back\n")


def test_queue_threads_count_each_queue(make_bed, script):
    bed = make_bed(queues=2)
    counter = script(bed, "queue_threads", "f0")
    assert counter.line() == "f0: 2 threads\n"
    ends = Ends(bed)
    try:
        for flow in range(100):
            ends.gen.send(udp(flow))
        time.sleep(0.3)
    finally:
        ends.close()
    printed = counter.interrupt()
    found = re.findall(r"queue (\d): (\d+) packets, (\d+) bytes\n", printed)
    assert [queue for queue, _, _ in found] == ["0", "1"]
    assert all(int(packets) > 0 for _, packets, _ in found)
    assert sum(int(packets) for _, packets, _ in found) >= 100
    assert sum(int(size) for _, _, size in found) >= 100 * len(udp(0))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_tells_its_use_and_is_tested_here(path):
    assert f"python examples/{path.name} " in path.read_text().split('"""')[1]
    assert f'"{path.stem}"' in Path(__file__).read_text()
