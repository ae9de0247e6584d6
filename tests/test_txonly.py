"""``txonly`` and ``rxdrop --verify`` as processes at the two ends of a veth pair."""

import itertools
import json
import os
import socket
import subprocess
import sys
import time

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether

from l2fwd import link
from tests.conftest import Forwarder
from tests.on_the_wire import End
from tests.test_bad_input import assert_one_line, run
from tests.test_generator import packets_of

pytestmark = pytest.mark.privileged

MANY = 1_000_000 if os.environ.get("L2FWD_FUZZ") == "1" else 100_000
MODES = pytest.mark.parametrize("mode", ["native", "skb"])


@pytest.fixture
def ends(pair):
    """The namespaces of ``left`` and ``right``, both up, and silent but for us."""
    for netns, ifname in zip(pair, ("left", "right"), strict=True):
        with link.in_netns(netns):
            link.disable_ipv6(ifname)
            link.set_up(ifname)
    return pair


@pytest.fixture
def start(ends):
    """Start ``txonly`` on ``left`` or ``rxdrop`` on ``right``; none outlives the test."""
    running = []

    def begin(verb, *words):
        place = ("txonly", "rxdrop").index(verb)
        arguments = [("left", "right")[place], "--json", *words]
        running.append(Forwarder(ends[place], *arguments, verb=verb))
        running[-1].wait_for("ready")
        return running[-1]

    yield begin
    for tool in running:
        if tool.process.poll() is None:
            tool.kill()


def end_of(tool, code=0, seconds=60):
    """Return the summary of a tool that ends by itself."""
    summary = tool.wait_for("summary", seconds)
    assert tool.wait() == code, tool.stderr
    return summary


def stop(tool):
    """Stop a receiver; return its summary and exit code."""
    tool.process.send_signal(2)
    return tool.wait_for("summary"), tool.wait()


def dropped_by(netns, ifname, direction):
    """Count what a veth did not take, as its own statistics have it."""
    words = ["nsenter", f"--net=/run/netns/{netns}", "ip", "-j", "-s", "link", "show", ifname]
    (found,) = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
    return found["stats64"][direction]["dropped"]


@MODES
@pytest.mark.parametrize("words", [(), ("--rate", 100_000, "--sources", 50, "--ports", 4)])
def test_every_packet_is_in_the_books_of_both_ends(start, ends, mode, words):
    """At full speed the veth or the socket may drop: each of them says so, to the packet."""
    receiver = start("rxdrop", "--verify", "--mode", mode, "--queues", "all")
    sender = start("txonly", "-C", MANY, "--sequence", "--mode", mode, *words)
    sent = end_of(sender)
    time.sleep(0.3)
    received, code = stop(receiver)
    verdict = received["verify"]
    assert sent["generated"] == sent["tx_packets"] == sent["forwarded"] == MANY
    assert (sent["unaccounted"], sent["in_flight"], sent["drops"]) == (0, 0, {})
    assert received["unaccounted"] == 0
    assert received["consumed"] == received["rx_packets"]
    on_the_way = dropped_by(ends[0], "left", "tx")
    if mode == "skb":  # the backlog of a CPU; in native mode a veth counts what the socket dropped
        on_the_way += dropped_by(ends[1], "right", "rx")
    assert received["rx_packets"] + on_the_way + sum(received["drops"].values()) == MANY
    assert verdict["packets"] == received["rx_packets"]
    assert (verdict["foreign"], verdict["corrupted"], verdict["duplicated"]) == (0, 0, 0)
    # Both queues of the link send, each numbers of its own.  The last numbers nobody misses.
    assert verdict["streams"] == 2
    assert verdict["lost"] + verdict["missed"] <= MANY - verdict["packets"]
    assert code == (1 if verdict["lost"] or verdict["reordered"] else 0)
    assert 0 < verdict["latency_us"]["p50"] <= verdict["latency_us"]["max"]


def test_a_rate_is_kept_from_above(start):
    """And from below as far as a busy host allows."""
    sender = start("txonly", "--rate", 5000, "-d", 1.5)
    summary = end_of(sender)
    expected = 5000 * summary["elapsed"]
    assert 0.4 * expected < summary["generated"] <= expected + 25


HEADERS = [
    [],
    ["-s", 1414, "--sequence"],
    ["-V", "-J", 100, "-K", 6],
    ["-y", "-s", 70],
    ["-G", "01:00:5e:00:00:01", "-H", "02:00:00:00:00:77", "-P", "deadbeef", "-s", 99],
    ["--src-ip", "2001:db8::1", "--dst-ip", "2001:db8::2", "-s", 300, "--sources", 5],
    ["--src-ip", "10.0.0.1", "--dst-ip", "10.9.9.9", "--src-port", 1000, "--dst-port", 53],
    ["-T", 2000, "-b", 4],
]


@MODES
@pytest.mark.parametrize("words", HEADERS, ids=lambda words: " ".join(map(str, words)) or "plain")
def test_every_header_is_on_the_wire_as_it_was_asked_for(start, ends, mode, words):
    with link.in_netns(ends[0]):
        own = link.find_link("left").address
    end = End(ends[1], "right")
    try:
        end_of(start("txonly", "-C", 20, "--mode", mode, "-q", 0, *words))
        packets = [Ether(packet) for packet in end.receive(20)]
    finally:
        end.close()
    asked = dict(itertools.pairwise(words))
    assert len(packets) == 20
    for packet in packets:
        fresh = packet.copy()
        del fresh[UDP].chksum
        if IP in fresh:
            del fresh[IP].chksum
        assert bytes(fresh) == bytes(packet)
        assert len(packet) == asked.get("-s", 64)
        assert packet.src == asked.get("-H", own)
        assert packet.dst == asked.get("-G", "02:00:00:00:00:02")
        assert (Dot1Q in packet) == ("-V" in words)
        assert packet[UDP].sport == asked.get("--src-port", 4096)
        assert packet[UDP].dport == asked.get("--dst-port", 4096)
        if "-V" in words:
            assert (packet[Dot1Q].vlan, packet[Dot1Q].prio) == (100, 6)
        if "--dst-ip" in words:
            assert packet[IPv6 if IPv6 in packet else IP].dst == asked["--dst-ip"]
        pattern = bytes.fromhex(asked.get("-P", "12345678"))
        payload = bytes(packet[UDP].payload)
        head = 22 if "--sequence" in words else 16 if "-y" in words else 0
        assert payload[head:] == (pattern * 400)[: len(payload) - head]
    if "--sources" in words:
        assert len({packet[IPv6].src for packet in packets}) == 5


def test_flows_are_spread_over_the_queues_of_a_receiver_and_counted_once(start):
    """skb mode hashes; a stream on two queues is still one."""
    receiver = start("rxdrop", "--verify", "--mode", "skb")
    end_of(start("txonly", "-C", 5000, "--rate", 20_000, "--sequence", "--sources", 64, "-q", 0))
    time.sleep(0.3)
    received, _ = stop(receiver)
    verdict = received["verify"]
    assert (verdict["packets"], verdict["streams"], verdict["lost"]) == (5000, 1, 0)


def test_packets_that_do_not_arrive_end_in_an_error(start, ends):
    receiver = start("rxdrop", "--verify")
    packets = packets_of(100, size=100)
    damaged = packets[60][:-1] + b"?"
    with link.in_netns(ends[0]), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        sender.bind(("left", 0))
        for packet in [*packets[:20], *packets[25:60], damaged, *packets[61:], packets[40]]:
            sender.send(packet)
    time.sleep(0.3)
    received, code = stop(receiver)
    names = ("packets", "lost", "reordered", "duplicated", "corrupted")
    assert [received["verify"][name] for name in names] == [94, 5, 0, 1, 1]
    assert code == 1


def test_nothing_verified_is_no_success(start):
    summary, code = stop(start("rxdrop", "--verify"))
    assert (summary["verify"]["packets"], code) == (0, 1)


def test_two_runs_are_two_streams_unless_told_otherwise(start):
    receiver = start("rxdrop", "--verify")
    for words in ((), (), ("--stream", 7), ("--stream", 7)):
        end_of(start("txonly", "-C", 50, "--rate", 5000, "--sequence", "-q", 0, *words))
    time.sleep(0.3)
    received, code = stop(receiver)
    names = ("packets", "streams", "duplicated")
    assert [received["verify"][name] for name in names] == [150, 3, 50]
    assert code == 1


def test_the_count_goes_on_when_a_link_was_made_again(start, ends):
    sender = start("txonly", "-C", 3000, "--rate", 2000, "--mode", "skb")
    time.sleep(0.5)
    with link.in_netns(ends[0]):
        link.delete_link("left")
    sender.wait_for("port_down")
    link.create_veth((ends[0], "left"), (ends[1], "right"), queues=2, mtu=1400)
    for netns, ifname in zip(ends, ("left", "right"), strict=True):
        with link.in_netns(netns):
            link.set_up(ifname)
    sender.wait_for("port_up")
    summary = end_of(sender)
    assert (summary["generated"], summary["unaccounted"]) == (3000, 0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-s", "1415"], ["tx-pkt-size", "at most 1414", "MTU of left", "mtu 1401"]),
        (["-s", "20"], ["tx-pkt-size", "at least 42"]),
        (["--rate", "5", "-T", "5"], ["-T/--tx-cycle", "--rate"]),
        (["-y", "--sequence"], ["--sequence", "-y/--tstamp"]),
        (["-s", "big"], ["-s/--tx-pkt-size", "big"]),
        (["-q", "7"], ["queue 7", "left has 2 queues"]),
    ],
)
def test_what_cannot_be_sent_is_refused_and_nothing_attached(ends, words, said):
    assert_one_line(run("txonly", "left", *words, netns=ends[0]), 2, *said)
    with link.in_netns(ends[0]):
        assert link.find_link("left").xdp_mode == "none"


def test_without_json_a_line_says_what_was_found(start, ends):
    command = ["nsenter", f"--net=/run/netns/{ends[1]}", sys.executable, "-m", "l2fwd", "rxdrop"]
    receiver = subprocess.Popen(
        [*command, "right", "--verify", "-d", "2.5", "-Q"], stdout=subprocess.PIPE, text=True
    )
    while "right queue 1" not in receiver.stdout.readline():
        pass
    end_of(start("txonly", "-C", 100, "--rate", 1000, "--sequence"))
    said, _ = receiver.communicate(timeout=20)
    assert receiver.returncode == 0
    assert "verified 100 packets of 2 senders: lost 0, reordered 0, duplicated 0" in said
