"""Hostile frames on the wire: every data path does what the oracle says, and counts it."""

import os
import time

import pytest

from bench.leaks import resident_kib
from l2fwd import link
from l2fwd._bpf import run_packet
from l2fwd._classify import Classifier
from l2fwd.bpf import Program
from l2fwd.policy import Policy
from l2fwd.rule_maps import RuleMaps, map_sizes
from l2fwd.rules import Action, parse_rules
from tests import hostile_frames
from tests.flood import AT_ONCE, Flood, flow_table
from tests.hostile_frames import UDP, ethernet, ipv4, ports
from tests.learned import VERDICTS, Learned
from tests.on_the_wire import DATA_PATHS, MODES, Crossing, End, add_link

pytestmark = pytest.mark.privileged

IS_FUZZ = os.environ.get("L2FWD_FUZZ") == "1"

# Every action and every change, over every field.
RULES = """
    in f0 dst_mac 01:80:c2:00:00:0e -> out f1
    in f0 dst_mac 01:80:c2:00:00:01 -> drop
    priority 9 src_mac ff:ff:ff:ff:ff:ff -> drop
    priority 9 src_mac 00:00:00:00:00:00 -> out f1 set_src_mac 02:00:00:00:00:0e
    in f0 ethertype arp -> out f1 swap_mac
    vlan 100.1 proto tcp dport 80 -> out f1 pop_vlan dec_ttl
    vlan 100.1 -> out f1 pop_vlan push_vlan 7
    vlan 100 -> out f1 pop_vlan
    vlan 1 -> out f0 push_vlan 200
    vlan 0 -> drop
    proto tcp dport 80 -> out f1 set_dst_mac 02:00:00:00:0c:0c set_src_mac 02:00:00:00:0d:0d
    proto tcp dport 400-500 -> out f1 dec_ttl push_vlan 4094
    proto udp dport 53 -> out f1 dec_ttl swap_mac set_dst_mac 02:00:00:00:0c:0c
    proto icmp -> pass
    proto 51 -> drop
    src 2001:db8::/32 proto tcp -> out f1 dec_ttl
    src 10.0.0.0/8 dst 10.9.0.0/16 -> out f1 dec_ttl
    src 10.0.0.0/8 -> out f1 pop_vlan
    ethertype 0x88b5 -> out f0 swap_mac
"""


def frames_for(bed):
    with link.in_netns(bed.fwd):
        own = bytes.fromhex(link.find_link("f0").address.replace(":", ""))
    return hostile_frames.all_of_them(own)


@pytest.mark.parametrize(
    ("mode", "miss"), [("native", "pass"), ("native", "drop"), ("skb", "pass")]
)
@pytest.mark.parametrize("data_path", DATA_PATHS)
def test_hostile_frames_get_the_oracles_verdict_and_bytes(bed, data_path, mode, miss):
    """P1-P9, P12; on hybrid first by the worker, then by what was learned."""
    frames = frames_for(bed)
    with Crossing(bed, data_path, mode, RULES, miss=miss) as crossing:
        crossing.cross(frames)
        crossing.settle()
        upcalls = crossing.path.sample().slow_path
        crossing.cross(frames)
        summary = crossing.stop()
    crossing.check_books(summary)
    if data_path == "hybrid":
        assert 0 < upcalls == summary["slow_path"], "the second time, all of it is learned"
    assert len(set(crossing.tally)) == 4, crossing.tally


USER_RULES = """
    in f0 dst_mac 01:80:c2:00:00:0e -> user
    priority 1 src_mac ff:ff:ff:ff:ff:ff -> user
    vlan 100 -> user
    proto tcp dport 80 -> user
    proto tcp -> out f1 dec_ttl
    ethertype 0x88b5 -> drop
"""
ANSWERS = (
    Action(kind="pass"),
    Action(kind="drop"),
    Action(kind="out", out_link="f1", swap_mac=True, set_src_mac=hostile_frames.B),
    Action(kind="out", out_link="f0"),
)


def answer(frame):
    return ANSWERS[frame[11] % len(ANSWERS)]


def decide(batch):
    """Answer as ``answer`` does, for a whole batch."""
    actions = batch.actions()
    number = batch.packets["key"]["src_mac"][:, 5] % len(ANSWERS)
    batch.drop(actions, number == 1)
    batch.out(actions, number == 2, "f1", swap_mac=True, set_src_mac=hostile_frames.B)
    batch.out(actions, number == 3, "f0")
    return actions


def cross_with_policy(bed, data_path, mode):
    """Send every frame twice; return the Crossing, stopped, and its summary."""
    with Crossing(
        bed, data_path, mode, USER_RULES, miss="user", policy=Policy(decide), decide=answer
    ) as crossing:
        frames = frames_for(bed)
        for _ in range(2):
            crossing.cross(frames)
        return crossing, crossing.stop()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("data_path", ["afxdp", "hybrid"])
def test_what_a_policy_gives_back_reaches_the_host_unchanged(bed, data_path, mode):
    """P1-P9: by l2fwd's injection at first; hybrid learns it, and the program passes the next."""
    crossing, summary = cross_with_policy(bed, data_path, mode)
    given_back = sum(port.get("host_packets", 0) for port in summary["ports"])
    assert 0 < given_back <= crossing.tally["host"]
    if mode == "native":
        crossing.check_books(summary)


@pytest.mark.parametrize("data_path", ["afxdp", "hybrid"])
def test_what_is_given_back_in_skb_mode_is_counted_once(bed, data_path):
    """Generic XDP sees it again, on its way to the host."""
    crossing, summary = cross_with_policy(bed, data_path, "skb")
    crossing.check_books(summary)


@pytest.fixture
def deciders(bed):
    """Whatever decides about a frame without a wire, by name: ``decide(frame)``."""
    with link.in_netns(bed.fwd):
        ifindexes = {name: link.find_link(name).ifindex for name in ("f0", "f1")}
    rules = parse_rules("\n".join(f"ethertype {kind} -> drop" for kind in NAMED)).ranked()
    program = Program("redirect", map_sizes(16))
    program.load()
    compiled = RuleMaps(program, 16).apply(rules, ifindexes, "pass")
    learned = Learned(ifindexes)
    learned.apply(rules, "pass")
    classifier = Classifier(compiled.masks, compiled.entries)
    yield {
        "redirect": lambda frame: VERDICTS[run_packet(program.fd, frame, ifindexes["f0"])[0]],
        "hybrid": lambda frame: learned.after(frame, ifindexes["f0"])[0],
        "afxdp": lambda frame: classifier.decide(frame, ifindexes["f0"])[0],
    }
    learned.close()
    program.close()


NAMED = {"arp": 0x0806, "ip6": 0x86DD, "0x88b5": 0x88B5, "0xffff": 0xFFFF}


def test_of_all_ethertypes_those_that_are_named_are_dropped(deciders):
    """P7"""
    for name, decide in deciders.items():
        frames = (bytes(12) + number.to_bytes(2, "big") + bytes(46) for number in range(1 << 16))
        dropped = {number for number, frame in enumerate(frames) if decide(frame) == "drop"}
        assert dropped == set(NAMED.values()), name


# P11

FLOOD_RULES = (
    "in f0 ethertype 0x88b5 -> out f1",
    "in f0 proto udp -> out f2",
    "in f0 proto udp src 192.0.2.1 -> drop",  # so that flows are told by their source
)
KEYS = 1_000_000 if IS_FUZZ else 500_000
TABLE_SIZE = 65536
PER_SECOND = 50_000
MAX_GROWTH_KIB = 16 << 10
FRESH = 20  # frames of a flow that comes after the flood


def cross_one_by_one(bed, source, count):
    """Send frames of one flow, each when the one before has arrived."""
    generator, sink = End(bed.gen, "g0"), End(bed.sink, "s1")
    frame = ethernet(0x0800, ipv4(UDP, ports(1000, 53), src=source)).ljust(60, b"\0")
    for _ in range(count):
        generator.socket.send(frame)
        assert sink.receive(1) == [frame]
    generator.close()
    sink.close()


def test_a_flood_of_new_flows_takes_nothing_from_one_that_is_learned(bed, forward):
    """P11: the table keeps its size, the process its memory, and inserts their rate."""
    add_link(bed, "f2", (bed.sink, "s1"))
    rules = [word for rule in FLOOD_RULES for word in ("--rule", rule)]
    limits = ["--flow-table-size", TABLE_SIZE, "--flow-rate", PER_SECOND, "--flow-timeout", 5]
    forwarder = forward(bed, "--data-path", "hybrid", *rules, *limits, "--interval", "0.1")
    flood = Flood(bed)
    flood.step()
    before = resident_kib(forwarder.pid)
    while flood.sent * AT_ONCE < KEYS:
        flood.step()
    while stats_of_now(forwarder)["flows"]["inserted"] <= TABLE_SIZE:  # on a fast machine
        for _ in range(TABLE_SIZE // AT_ONCE // 10):
            flood.step()
    flood.close()
    assert resident_kib(forwarder.pid) - before <= MAX_GROWTH_KIB
    entries, most = flow_table(forwarder.pid)
    assert TABLE_SIZE / 2 < entries <= most == TABLE_SIZE
    learned_anew(bed, forwarder)
    summary = forwarder.stop()
    flows = summary["flows"]
    assert TABLE_SIZE < flows["inserted"] <= PER_SECOND * (summary["elapsed"] + 0.1)
    assert flows["limited"] > 0
    sent = flood.sent * (AT_ONCE + 1) + FRESH
    assert summary["forwarded"] + sum(summary["drops"].values()) == sent
    assert summary["unaccounted"] == 0


def stats_of_now(forwarder):
    """Return the first stats that are not older than this call."""
    now = time.monotonic()
    while (stats := forwarder.wait_for("stats"))["time"] < now:
        pass
    return stats


def learned_anew(bed, forwarder):
    """Hold that a new flow goes over to the kernel, once user space has caught up."""
    before = stats_of_now(forwarder)
    while before["slow_path"] != (now := stats_of_now(forwarder))["slow_path"]:
        before = now
    cross_one_by_one(bed, bytes((192, 0, 2, 7)), FRESH)
    after = stats_of_now(forwarder)
    assert after["flows"]["inserted"] == before["flows"]["inserted"] + 1
    assert after["slow_path"] - before["slow_path"] < FRESH / 2
