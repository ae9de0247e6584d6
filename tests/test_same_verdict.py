"""One verdict, whatever the data path: rules, third links, sizes, kills and changes on the wire."""

import os
import struct
import threading
import time
from itertools import product
from operator import itemgetter

import pytest

from l2fwd import link
from l2fwd.bpf import describe_attached
from l2fwd.policy import Policy
from l2fwd.rules import Action, parse_rules
from tests.hostile_frames import TCP, UDP, A, B, arp, ethernet, ipv4, ports
from tests.on_the_wire import DATA_PATHS, HOST, MODES, Crossing, End, add_link, count_up
from tests.prologue import behind_another_program

pytestmark = pytest.mark.privileged

IS_FUZZ = os.environ.get("L2FWD_FUZZ") == "1"


paths = pytest.mark.parametrize("data_path", DATA_PATHS)
modes = pytest.mark.parametrize("mode", MODES)


def mac(number):
    return f"02:00:00:00:00:{number:02x}"


def packet(proto, src, dst, dport=53):
    addresses = {"src": bytes(map(int, src.split("."))), "dst": bytes(map(int, dst.split(".")))}
    return ethernet(0x0800, ipv4(proto, ports(1000, dport, 20), **addresses), src=A)


def settled(crossing, frames, source="f0"):
    """Let each frame cross three times, one at a time: on hybrid slow, then learned."""
    for _ in range(3):
        for frame in frames:
            crossing.cross([frame], source)


OVERLAPPING = f"""
    proto udp dst 10.0.0.0/8 -> drop
    dst 10.0.0.2 -> out f1 set_dst_mac {mac(1)}
    dst 10.0.0.0/24 -> out f1 set_dst_mac {mac(2)}
    priority 1 proto tcp dst 10.0.0.0/16 dport 80 -> out f1 set_dst_mac {mac(3)}
    proto tcp dst 10.0.0.0/16 dport 1-1023 -> out f1 set_dst_mac {mac(4)}
    dst 0.0.0.0 -> out f1 set_dst_mac {mac(5)}
    dst 255.255.255.255 -> out f1 set_dst_mac {mac(6)}
    src 10.0.0.1 dst 10.0.2.0/25 -> out f1 set_dst_mac {mac(7)}
    src 10.0.0.0/25 dst 10.0.2.1 -> out f1 set_dst_mac {mac(8)}
    src 10.0.0.0/25 dst 10.0.2.1 -> out f1 set_dst_mac {mac(8)}
    proto 99 -> out f1 set_dst_mac {mac(9)} set_src_mac {mac(10)} dec_ttl
    dst 0.0.0.0/0 src 11.0.0.0/8 -> pass
    dst 12.0.0.0/6 -> out f1
"""


@modes
@paths
def test_overlapping_rules_have_one_order_everywhere(bed, data_path, mode):
    """F3, F4, F5: prefixes, wildcards, the first and the last address, ties, a rule given twice."""
    targets = ["10.0.0.2", "10.0.0.3", "10.0.1.1", "10.0.2.1", "10.0.2.2", "0.0.0.0", "0.0.0.1"]
    targets += ["255.255.255.255", "255.255.255.254", "12.0.0.0", "15.255.255.255", "16.0.0.0"]
    sources = ["10.0.0.1", "10.0.0.2", "10.0.0.128", "11.0.0.1", "0.0.0.0"]
    kinds = [(TCP, 80), (TCP, 1023), (TCP, 1024), (UDP, 80), (99, 0)]
    frames = [packet(p, src, dst, d) for (p, d), src, dst in product(kinds, sources, targets)]
    with Crossing(bed, data_path, mode, OVERLAPPING, miss="drop") as crossing:
        for _ in range(2):
            crossing.cross(frames)
        summary = crossing.stop()
    crossing.check_books(summary)
    assert {"f1", HOST, None} == set(crossing.tally)


@pytest.mark.parametrize("miss", ["pass", "drop", "user"])
@paths
def test_what_no_rule_takes_goes_by_the_miss_policy(bed, data_path, miss):
    """F4"""
    if miss == "user" and data_path == "redirect":
        pytest.skip("redirect has no policy to ask")
    frames = [packet(TCP, "10.0.0.1", "10.0.0.2"), packet(UDP, "10.0.0.1", "10.0.0.2"), arp(src=A)]
    settings = {"miss": miss}
    if miss == "user":
        policy = Policy(lambda batch: out_f1(batch))
        settings |= {"policy": policy, "decide": lambda frame: Action(kind="out", out_link="f1")}
    with Crossing(bed, data_path, "native", "proto tcp -> drop", **settings) as crossing:
        settled(crossing, frames)
        summary = crossing.stop()
    crossing.check_books(summary)


def out_f1(batch):
    actions = batch.actions()
    batch.out(actions, slice(None), "f1")
    return actions


@modes
@paths
def test_half_of_the_packets_are_dropped_by_a_rule_and_counted(bed, data_path, mode):
    """F9"""
    frames = [packet(TCP, "10.0.0.1", f"10.0.0.{i}", 80 + i % 2) for i in range(100)]
    rules = "proto tcp dport 80 -> out f1\nproto tcp dport 81 -> drop"
    with Crossing(bed, data_path, mode, rules) as crossing:
        for _ in range(2):
            crossing.cross(frames)
        summary = crossing.stop()
    crossing.check_books(summary)
    assert summary["drops"] == {"rx_rule_drops": 100}
    assert summary["forwarded"] == 100


THREE_LINKS = f"""
    in f0 vlan 1 -> out f0 swap_mac
    in f0 vlan 2 -> out f2 pop_vlan
    in f0 vlan 3 -> out f2 set_dst_mac {mac(3)}
    in f0 -> out f1
    in f1 vlan 2 -> out f2
    in f1 -> out f0
    in f2 vlan 1 -> out f2
    in f2 vlan 2 -> out f0 push_vlan 9
    in f2 vlan 4 -> drop
    in f2 -> out f1 dec_ttl
"""


@modes
@paths
def test_a_third_link_and_the_link_it_came_from_are_links_like_any_other(bed, data_path, mode):
    """F7"""
    add_link(bed, "f2", (bed.sink, "s1"))
    body = ipv4(TCP, ports(1000, 80, 20))
    frames = [ethernet(0x0800, body, src=A, tags=[(0x8100, vid)]) for vid in range(1, 6)]
    frames.append(ethernet(0x0800, body, src=A))
    ends = {"f2": (bed.sink, "s1")}
    with Crossing(bed, data_path, mode, THREE_LINKS, ends=ends) as crossing:
        for source in ("f0", "f1", "f2"):
            settled(crossing, frames, source)
        summary = crossing.stop()
    crossing.check_books(summary)
    assert {each["link"] for each in summary["ports"]} == {"f0", "f1", "f2"}


def numbered(length, tags=()):
    """Return a frame of ``length`` bytes for rules on ethertype 0x88b5."""
    frame = ethernet(0x88B5, src=A, tags=tags)
    return frame + bytes(i & 0xFF for i in range(length - len(frame)))


@modes
@paths
def test_a_packet_over_the_other_links_mtu_is_counted_and_smaller_ones_pass(bed, data_path, mode):
    """F8: in user space the kernel refuses it when sent, in the kernel the program does before."""
    for netns, ifname in ((bed.fwd, "f1"), (bed.sink, "s0")):
        with link.in_netns(netns):
            link.set_mtu(ifname, 1000)
    small, large = numbered(1014), numbered(1019)
    with Crossing(bed, data_path, mode, "in f0 -> out f1") as crossing:
        for _ in range(10):
            crossing.cross([small])
            crossing.ends["f0"].socket.send(large)
        crossing.cross([small])
        crossing.tally["f1"] += 10
        summary = crossing.stop()
    assert summary["forwarded"] == 11
    reasons = {"afxdp": {"tx_busy_drops"}, "redirect": {"tx_mtu_drops"}}
    assert set(summary["drops"]) <= reasons.get(data_path, {"tx_busy_drops", "tx_mtu_drops"})
    assert sum(summary["drops"].values()) == 10


@paths
@modes
def test_an_ip_packet_over_the_other_links_mtu_is_the_hosts_where_a_hop_is_counted(
    bed, data_path, mode
):
    for netns, ifname in ((bed.fwd, "f1"), (bed.sink, "s0")):
        with link.in_netns(netns):
            link.set_mtu(ifname, 1000)
    fitting, over = (ethernet(0x0800, ipv4(99, bytes(room)), src=A) for room in (980, 981))
    with Crossing(bed, data_path, mode, "in f0 -> out f1 dec_ttl") as crossing:
        for _ in range(4):
            crossing.cross([fitting])
            crossing.ends["f0"].socket.send(over)
            assert crossing.ends[HOST].receive(1) == [over]
            crossing.tally[HOST] += 1
        summary = crossing.stop()
    assert count_up(summary) == {"forwarded": 4, "dropped": 0, "host": 4}


@paths
@modes
def test_a_full_packet_has_room_for_a_tag(bed, data_path, mode):
    """F8: the kernel takes MTU + 14 + 4 bytes (is_skb_forwardable, xdp_ok_fwd_dev)."""
    rules = "vlan 1 -> out f1\nvlan 2 -> out f1 pop_vlan push_vlan 3\nany -> out f1 push_vlan 4"
    frames = [numbered(1518, [(0x8100, 1)]), numbered(1518, [(0x8100, 2)]), numbered(1514)]
    with Crossing(bed, data_path, mode, rules) as crossing:
        settled(crossing, frames)
        summary = crossing.stop()
    crossing.check_books(summary)


@pytest.fixture
def load(bed):
    """Keep sending on g0, from another thread, until the test ends."""
    end, stop = End(bed.gen, "g0"), threading.Event()
    frames = [packet(UDP, "10.0.0.1", f"10.0.0.{number}") for number in range(1, 200)]

    def send():
        while not stop.is_set():
            for frame in frames:
                end.socket.send(frame)
            time.sleep(0.01)

    thread = threading.Thread(target=send)
    thread.start()
    yield
    stop.set()
    thread.join()
    end.close()


@modes
@paths
def test_a_killed_one_leaves_the_host_its_packets(bed, forward, open_wire, load, data_path, mode):
    """X8"""
    arguments = ["--data-path", data_path, "--mode", mode, "--rule", "in f0 -> out f1"]
    forwarder = forward(bed, *arguments, "--interval", "0.05")
    while forwarder.wait_for("stats")["forwarded"] < 1000:
        pass
    forwarder.kill()
    time.sleep(0.1)
    with link.in_netns(bed.fwd):
        found = [describe_attached(link.find_link(name).ifindex) for name in ("f0", "f1")]
    assert [each.program_id for each in found] == [0, 0]
    host = End(bed.fwd, "f0")
    assert host.receive(10)
    host.close()
    forwarder = forward(bed, *arguments)
    assert open_wire(bed).carries()
    forwarder.stop()


NUMBER = struct.Struct(">HI")  # flow, number
FLOWS = 8
IN_FLIGHT = 128  # half of what a veth queue holds
SWAPS = 1000 if IS_FUZZ else 30
# Whatever is written behind "in f0" takes every frame below, under another mask.
VERSIONS = (
    "",
    "ethertype ip",
    "proto udp",
    "src 10.0.0.0/8",
    "proto udp dport 9-4000",
    "vlan none",
)


def version(number):
    """Return rules that write one number twice, into both addresses; or some that pass."""
    match = VERSIONS[number % len(VERSIONS)]
    rewrite = f"set_dst_mac {mac(number)} set_src_mac {mac(number)}"
    return parse_rules(f"in f0 {match} -> {f'out f1 {rewrite}' if number % 4 else 'pass'}")


def stream_frame(flow, number):
    body = ports(1000, 2000 + flow) + NUMBER.pack(flow, number)
    return ethernet(0x0800, ipv4(UDP, body), src=A, dst=B)


def check_stream(forwarded, passed, sent):
    """Nothing lost, doubled, out of order, or half of one version and half of another.

    The order is told where frames leave: the host gets some from the program, some from a worker.
    """
    assert {frame[:12] for frame in passed} <= {B + A}
    assert {frame[:6] == frame[6:12] for frame in forwarded} == {True}
    there = [NUMBER.unpack_from(frame, 42) for frame in forwarded]
    here = [NUMBER.unpack_from(frame, 42) for frame in passed]
    assert sorted(there + here) == [*product(range(FLOWS), range(sent))]
    assert sorted(there, key=itemgetter(0)) == sorted(there)


@modes
@paths
def test_rules_are_swapped_whole_under_load(bed, data_path, mode):
    """0 lost, 0 mixed, in order, at 10,000 frames a second while the rules change without end."""
    forwarded, passed = [], []
    # In skb mode a veth queues packets by the CPU that sends (enqueue_to_backlog): who sends from
    # another CPU meanwhile, overtakes itself.
    cpus = None if data_path == "redirect" else (max(os.sched_getaffinity(0)),)
    with Crossing(bed, data_path, mode, str(version(1)), cpus=cpus) as crossing:
        ends, stop = crossing.ends, threading.Event()
        sent = swaps = 0

        def send():
            nonlocal sent
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # this thread
            while not stop.is_set():
                if (sent + 2) * FLOWS - len(forwarded) - len(passed) <= IN_FLIGHT:
                    for number, flow in product((sent, sent + 1), range(FLOWS)):
                        ends["f0"].socket.send(stream_frame(flow, number))
                    sent += 2
                time.sleep(2 * FLOWS / 10_000)

        def swap():
            nonlocal swaps
            while swaps < SWAPS:
                swaps += 1
                crossing.path.apply(version(swaps % 24))

        threads = [threading.Thread(target=each) for each in (send, swap)]
        for thread in threads:
            thread.start()
        while threads[1].is_alive():
            forwarded += ends["f1"].receive(IN_FLIGHT, 0.002)
            passed += ends[HOST].receive(IN_FLIGHT, 0.002)
        stop.set()
        threads[0].join()
        crossing.tally["f1"] = sent * FLOWS
        crossing.settle()
        forwarded += ends["f1"].receive(sent * FLOWS, 0.2)
        passed += ends[HOST].receive(sent * FLOWS, 0.2)
        check_stream(forwarded, passed, sent)
        summary = crossing.stop()
    assert len({frame[5] for frame in forwarded}) > 3
    assert (summary["forwarded"], summary["drops"]) == (len(forwarded), {})
    assert passed
    if data_path == "hybrid":
        assert summary["flows"]["inserted"] > FLOWS
        assert summary["slow_path"] < len(forwarded)


@modes
@paths
def test_what_another_program_took_off_or_put_in_front_is_honoured(bed, data_path, mode):
    """F12"""
    rules = "proto tcp -> out f1 push_vlan 7 dec_ttl\nproto udp -> drop\nvlan 5 -> out f1 pop_vlan"
    frames = [packet(TCP, "10.0.0.1", "10.0.0.2"), packet(UDP, "10.0.0.1", "10.0.0.2"), arp(src=A)]
    frames.append(numbered(60, [(0x8100, 5)]))
    with Crossing(bed, data_path, mode, rules) as crossing:
        with behind_another_program(crossing.path.sides[0], meta_bytes=8):
            crossing.wrap = lambda frame: b"head" + frame + b"tail"
            settled(crossing, frames)
            summary = crossing.stop()
    crossing.check_books(summary)


@pytest.mark.parametrize(
    "meta_bytes",
    [
        0,
        8,
    ],
)
@modes
def test_metadata_of_another_program_does_not_keep_a_flow_in_user_space(bed, mode, meta_bytes):
    """F6, F12: the worker looks for a packet's number right before the data."""
    with Crossing(bed, "hybrid", mode, "in f0 -> out f1") as crossing:
        with behind_another_program(crossing.path.sides[0], meta_bytes):
            crossing.wrap = lambda frame: b"head" + frame + b"tail"
            settled(crossing, [packet(UDP, "10.0.0.1", "10.0.0.2")] * 4)
            summary = crossing.stop()
    assert summary["slow_path"] < 6
