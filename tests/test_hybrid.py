"""Data path ``hybrid``: what is learned, when the kernel takes over, and what a change touches."""

import ctypes
import json
import socket
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from l2fwd import ethtool, link
from l2fwd._bpf import run_packet
from l2fwd._classify import Classifier
from l2fwd.bpf import Program
from l2fwd.config import FlowConfig, ForwardConfig
from l2fwd.datapath.ruled import RuledPath
from l2fwd.errors import ConfigError
from l2fwd.flow_table import MAX_MASKS, FlowTable, Progress, flow_mask
from l2fwd.lab import GENERATOR_MAC, SINK_MAC
from l2fwd.records import FLOW, FLOW_KEY
from l2fwd.rule_layout import flow_place
from l2fwd.rule_maps import MAX_ENTRIES, RuleMaps, map_sizes
from l2fwd.rule_table import compile_rules
from l2fwd.rules import parse_rules

pytestmark = pytest.mark.privileged

FLOW_FRAMES, FLOWS, GAP_SECONDS = 40, 100, 100e-6
SETTLED = 2**64 - 1
MONOTONIC_COARSE = 6  # linux/time.h


def frame(flow, number, src="10.77.0.1"):
    """A UDP frame of 64 bytes: its flow in the source port, its number in the payload."""
    payload = struct.pack(">I", number) + bytes(18)
    packet = Ether(src=GENERATOR_MAC, dst=SINK_MAC) / IP(src=src, dst="10.77.0.2")
    return bytes(packet / UDP(sport=1024 + flow, dport=7) / payload)


def flow_and_number(data):
    return int.from_bytes(data[34:36]) - 1024, int.from_bytes(data[42:46])


@pytest.fixture
def ends(bed):
    """Raw sockets for IPv4 at both outer ends: generator, sink."""
    opened = []
    for netns, name in ((bed.gen, "g0"), (bed.sink, "s0")):
        with link.in_netns(netns):
            end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
            end.bind((name, 0x0800))
        end.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
        opened.append(end)
    yield opened
    for end in opened:
        end.close()


def receive(end, count, seconds=3.0):
    """Return up to ``count`` frames that came in."""
    found = []
    deadline = time.monotonic() + seconds
    while len(found) < count and time.monotonic() < deadline:
        end.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            data, (_, _, kind, *_) = end.recvfrom(4096)
        except TimeoutError:
            break
        if kind != socket.PACKET_OUTGOING and data[23] == 17:
            found.append(data)
    return found


@pytest.fixture
def hybrid(bed):
    """Start the path in this process, between f0 and f1."""
    started = []

    def start(rules="", **settings):
        config = ForwardConfig(
            in_link="f0", out_link="f1", data_path="hybrid",
            **({"rules": parse_rules(rules)} if rules else {}), **settings,
        )  # fmt: skip
        events = []
        with link.in_netns(bed.fwd):
            path = RuledPath(config, events.append)
            path.start()
        path.events = events
        started.append(path)
        return path

    yield start
    for path in started:
        path.stop()


def settle(ends, data, seconds=5.0):
    """Send one frame after another until the kernel has taken the flow over."""
    gen, sink = ends
    for _ in range(20):
        gen.send(data)
        assert receive(sink, 1)
        time.sleep(0.02)


def learned(path):
    """Return what is learned by source port: (packets, wait_for, destination MAC)."""
    flows = path.flows()
    ports = flows["key"]["packet"]["sport"].tolist()
    macs = [bytes(mac) for mac in flows["action"]["dst_mac"]]
    return dict(
        zip(
            ports,
            zip(flows["packets"].tolist(), flows["wait_for"].tolist(), macs, strict=True),
            strict=True,
        )
    )


@pytest.mark.parametrize("mode", ["native", "skb"])
def test_the_first_frame_is_slow_and_the_second_is_fast(bed, forward, ends, mode):
    """F6"""
    rule = "in f0 proto udp dport 7 -> out f1 set_dst_mac 00:00:11:22:33:44"
    forwarder = forward(bed, "--data-path", "hybrid", "--mode", mode, "--rule", rule)
    gen, sink = ends
    gen.send(frame(0, 0))
    (first,) = receive(sink, 1)
    time.sleep(0.2)
    for number in range(1, 11):
        gen.send(frame(0, number))
    received = [first, *receive(sink, 10)]
    assert received == [
        bytes.fromhex("000011223344") + frame(0, number)[6:] for number in range(11)
    ]
    summary = forwarder.stop()
    assert summary["forwarded"] == summary["rx_packets"] == 11
    assert summary["slow_path"] == 1
    assert summary["flows"] == {"inserted": 1, "limited": 0, "failed": 0, "forgotten": 0}
    assert summary["unaccounted"] == 0
    assert summary["drops"] == {}


@pytest.mark.parametrize("mode", ["native", "skb"])
def test_no_frame_of_a_flow_overtakes_another_when_the_kernel_takes_over(bed, forward, ends, mode):
    """F6: at 10,000 frames a second, over and over again."""
    forwarder = forward(
        bed, "--data-path", "hybrid", "--mode", mode, "--rule",
        "in f0 proto udp dport 7 -> out f1",
        "--rule", "in f0 proto udp sport 1 dport 7 -> drop",  # so that each port is a flow
    )  # fmt: skip
    gen, sink = ends
    frames = [[frame(flow, number) for number in range(FLOW_FRAMES)] for flow in range(FLOWS)]
    due = time.perf_counter()
    for flow in frames:
        for data in flow:
            while time.perf_counter() < due:
                pass
            due += GAP_SECONDS
            gen.send(data)
    received = {}
    for data in receive(sink, FLOWS * FLOW_FRAMES):
        flow, number = flow_and_number(data)
        received.setdefault(flow, []).append(number)
    assert received == {flow: list(range(FLOW_FRAMES)) for flow in range(FLOWS)}
    summary = forwarder.stop()
    assert summary["flows"]["inserted"] == FLOWS
    assert FLOWS <= summary["slow_path"] < FLOWS * FLOW_FRAMES
    assert summary["unaccounted"] == 0


@pytest.mark.parametrize("data_path", ["redirect", "hybrid"])
def test_veths_that_take_no_native_redirect_get_skb_mode_and_it_is_said(
    bed, forward, open_wire, data_path
):
    """A veth as ip(8) makes it has no GRO, and with that no NDO_XMIT for its peer."""
    with link.in_netns(bed.sink):
        ethtool.set_features("s0", {"generic-receive-offload": False})
    forwarder = forward(bed, "--data-path", data_path)
    assert {each["attach_mode"] for each in forwarder.events[-1]["links"]} == {"skb"}
    wire = open_wire(bed)
    sent = wire.send(20)
    assert wire.receive(20) == sent
    assert forwarder.stop()["forwarded"] == 20
    assert any("fell back to skb" in str(each.get("message")) for each in forwarder.events)
    strict = forward(bed, "--data-path", data_path, "--strict", ready=False)
    assert strict.wait() == 1
    assert "--strict: f1" in strict.stderr


def test_a_pair_without_rules_is_one_flow_a_link(bed, hybrid, ends):
    path = hybrid()
    for flow in range(5):
        settle(ends, frame(flow, 0))
    flows = path.flows()
    keys = flows["key"]["packet"]
    there = keys["in_ifindex"] == path.sides[0].link.ifindex
    assert flows["wait_for"][there].tolist() == [SETTLED]
    assert not keys["sport"].any()
    assert path.sample().forwarded >= 100  # and what the sink's host answers


def test_a_change_of_rules_forgets_the_flows_it_touches_and_no_other(bed, hybrid, ends):
    rules = "in f0 proto udp sport {} -> out f1 set_dst_mac 02:00:00:00:00:{:02x}"
    old = "\n".join(rules.format(1024 + i, 16 + i) for i in range(3))
    path = hybrid(old)
    for flow in range(3):
        settle(ends, frame(flow, 0))
    before = learned(path)
    assert sorted(before) == [1024, 1025, 1026]
    assert all(wait_for == SETTLED for _, wait_for, _ in before.values())
    # The second changes its MAC; the third goes, and is the miss policy's.
    path.apply(parse_rules("\n".join([rules.format(1024, 16), rules.format(1025, 99)])))
    assert learned(path) == {1024: before[1024]}
    gen, sink = ends
    for flow in range(3):
        gen.send(frame(flow, 1))
    found = {flow_and_number(data)[0]: data[:6] for data in receive(sink, 3, 0.5)}
    assert found == {0: bytes.fromhex("020000000010"), 1: bytes.fromhex("020000000063")}
    assert learned(path)[1024][0] == before[1024][0] + 1


def test_flows_outlive_a_change_that_looks_at_other_fields(bed, hybrid, ends):
    path = hybrid("in f0 proto udp sport 1024 -> out f1\nin f0 proto udp sport 1025 -> out f1")
    for flow in range(2):
        settle(ends, frame(flow, 0))
    before = learned(path)
    more = [
        "src 10.99.0.0/16",
        "dst_mac 02:00:00:00:00:77",
        "vlan 7 ethertype arp",
        "src 2001:db8::/64",
    ]
    for i in range(len(more)):
        kept = "in f0 proto udp sport 1024 -> out f1"
        path.apply(parse_rules("\n".join([kept, *(f"{m} -> drop" for m in more[: i + 1])])))
        if i < MAX_MASKS - 1:
            assert learned(path) == {1024: before[1024]}, more[i]
    assert learned(path) == {}  # the mask it was learned under made room
    settle(ends, frame(0, 0))
    assert learned(path)[1024][1] == SETTLED


def test_hits_of_a_rule_are_its_own_wherever_they_were_counted(bed, hybrid, ends):
    text = "in f0 proto udp sport {} -> {}"
    path = hybrid("\n".join(text.format(1024 + i, "out f1") for i in range(2)))
    for flow in range(2):
        settle(ends, frame(flow, 0))
    size = len(frame(0, 0))
    first, second = path.config.rules
    assert path.hits() == {first: (20, 20 * size), second: (20, 20 * size)}
    kept, new = parse_rules(f"{first}\n" + text.format(1026, "out f1 swap_mac"))
    path.apply(parse_rules(f"{kept}\n{new}"))
    gen, sink = ends
    for flow in (0, 2, 2):
        gen.send(frame(flow, 1))
        receive(sink, 1)
    assert path.hits() == {kept: (21, 21 * size), new: (2, 2 * size)}
    path.apply(parse_rules(f"{kept}\n{second}"))
    assert path.hits() == {kept: (21, 21 * size), second: (0, 0)}


def test_a_flow_without_traffic_is_forgotten(bed, hybrid, ends):
    path = hybrid(flows=FlowConfig(timeout=1.0))
    settle(ends, frame(0, 0))
    assert len(path.flows())
    deadline = time.monotonic() + 10
    while len(path.flows()) and time.monotonic() < deadline:
        with link.in_netns(bed.fwd):
            path.watch()
        time.sleep(0.1)
    assert path.sample().flows["forgotten"] >= 1
    settle(ends, frame(0, 0))
    assert len(path.flows())


def test_more_flows_than_allowed_a_second_are_forwarded_without_learning(bed, hybrid, ends):
    path = hybrid(
        "in f0 proto udp sport 1024-65535 dport 7 -> out f1\n"
        "in f0 proto udp sport 1 dport 7 -> drop",
        flows=FlowConfig(per_second=10),
    )
    gen, sink = ends
    for flow in range(500):
        gen.send(frame(flow, 0))
    assert len(receive(sink, 500)) == 500
    sample = path.sample()
    assert sample.flows["limited"] > 0
    assert sample.flows["inserted"] + sample.flows["limited"] == 500
    assert sample.flows["inserted"] < 100


def test_a_link_made_again_gets_flows_of_its_own(bed, forward, ends, open_wire):
    """X3, X4"""
    forwarder = forward(bed, "--data-path", "hybrid")
    assert open_wire(bed).carries()
    with link.in_netns(bed.fwd):
        link.delete_link("f1")
    time.sleep(0.5)
    link.create_veth((bed.sink, "s0"), (bed.fwd, "f1"))
    for netns, name in ((bed.sink, "s0"), (bed.fwd, "f1")):
        with link.in_netns(netns):
            link.disable_ipv6(name)
            link.set_up(name)
    for is_on in (False, True):  # NAPI at the sink, so that it takes redirected packets
        with link.in_netns(bed.sink):
            ethtool.set_features("s0", {"generic-receive-offload": is_on})
    forwarder.wait_for("port_up", 5)
    assert open_wire(bed).carries(4)
    assert forwarder.stop()["unaccounted"] == 0


def test_each_queue_has_flows_of_its_own(make_bed, forward, open_wire):
    bed = make_bed(queues=2)
    forwarder = forward(bed, "--data-path", "hybrid")
    wire = open_wire(bed)
    sent = wire.send(400)
    received = wire.receive(400)
    assert sorted(received) == sorted(sent)
    summary = forwarder.stop()
    assert summary["forwarded"] == 400
    assert summary["unaccounted"] == 0


def list_flows(bed, *words):
    """Run ``flows`` in the middle namespace; return its exit code, output and errors."""
    command = ["nsenter", f"--net=/run/netns/{bed.fwd}", sys.executable, "-m", "l2fwd", "flows"]
    done = subprocess.run(
        [*command, *words], capture_output=True, text=True, timeout=20, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_flows_are_listed_with_hits_and_age(bed, forward, ends):
    rules = [
        "in f0 proto udp sport 1024 src 10.77.0.0/24 -> out f1 set_dst_mac 02:00:00:00:00:10",
        "in f0 proto udp sport 1025 -> out f1 swap_mac push_vlan 7 dec_ttl",
    ]
    forward(bed, "--data-path", "hybrid", "--rule", rules[0], "--rule", rules[1])
    for flow, count in ((0, 20), (1, 5)):
        for number in range(count):
            ends[0].send(frame(flow, number))
            time.sleep(0.02)
    code, said, _ = list_flows(bed, "f0", "--json")
    assert code == 0
    *flows, summary = map(json.loads, said.splitlines())
    assert summary == {"event": "summary", "flows": 2}
    assert [flow["match"] + " -> " + flow["action"] for flow in flows] == [
        "in f0 proto udp src 10.77.0.0/24 sport 1024 -> out f1 set_dst_mac 02:00:00:00:00:10",
        "in f0 proto udp src 10.77.0.0/24 sport 1025 -> out f1 dec_ttl swap_mac push_vlan 7",
    ]
    for flow, most in zip(flows, (20, 5), strict=True):
        assert most / 2 <= flow["packets"] < most
        assert flow["bytes"] == flow["packets"] * len(frame(0, 0))
        assert flow["is_settled"]
        assert flow["by"] == "rule"
        assert 0 <= flow["age"] < 60
    code, said, _ = list_flows(bed, "f0", "-n", "1")
    assert code == 0
    assert said.splitlines()[-1] == "1 flows"
    assert rules[0].partition("->")[2] in said


@pytest.mark.parametrize(
    ("data_path", "words", "code", "said"),
    [
        (None, ["f0"], 1, "no XDP program is attached"),
        ("redirect", ["f0"], 1, "only --data-path hybrid does"),
        ("hybrid", ["f9"], 2, "f9"),
        ("hybrid", ["f0", "-n", "-1"], 2, "limit must be 0"),
    ],
)
def test_where_nothing_is_learned_is_said(bed, forward, data_path, words, code, said):
    if data_path:
        forward(bed, "--data-path", data_path)
    found, _, errors = list_flows(bed, *words)
    assert (found, errors.count("\n")) == (code, 1)
    assert said in errors


# When the kernel takes over


@pytest.fixture
def program(bed):
    with link.in_netns(bed.fwd):
        ifindexes = {name: link.find_link(name).ifindex for name in ("f0", "f1")}
        program = Program("hybrid", map_sizes(8) | {"flows": 128})
        program.load()
        keys = [ifindex.to_bytes(4, "little") for ifindex in ifindexes.values()]
        program.update("links", dict(zip(keys, keys, strict=True)))
        yield program, ifindexes
        program.close()


def test_a_flow_waits_for_its_packets_in_user_space(program):
    program, ifindexes = program
    (rule,) = parse_rules("in f0 -> out f1")
    compiled = RuleMaps(program, 64).apply([rule], ifindexes, "pass")
    mask = flow_mask(compiled)
    table = FlowTable(program)
    slot = table.use_mask(mask)
    classifier = Classifier(compiled.masks, compiled.entries)
    key = np.zeros(1, FLOW_KEY)
    key["mask_slot"] = slot
    known = int.from_bytes(classifier.key(frame(0, 0), ifindexes["f0"])) & int.from_bytes(mask)
    key.view(np.uint8)[8:] = np.frombuffer(known.to_bytes(64), np.uint8)

    def learn(age_ns=0):
        flow = np.zeros(1, FLOW)
        flow["key"] = key
        flow["action"] = np.frombuffer(classifier.actions()[:32], FLOW["action"])
        flow["last_seen"] = time.clock_gettime_ns(MONOTONIC_COARSE) - age_ns
        program.update("flows", {flow_place(key.tobytes()): flow.tobytes()})

    def verdict():
        return run_packet(program.fd, frame(0, 0), ifindexes["f0"])[0]

    def progress(sent_up, done):
        ctypes.c_uint64.from_address(address - 64).value = sent_up
        ctypes.c_uint64.from_address(address).value = done

    memory = Progress(program, 1)
    address = memory.address(0)
    passes, redirects = 2, 4
    assert verdict() == passes  # to the worker, if there were one
    learn()
    progress(sent_up=5, done=4)
    assert verdict() == passes
    assert table.items()[1]["wait_for"].tolist() == [6]
    progress(sent_up=6, done=5)
    assert verdict() == passes
    progress(sent_up=7, done=7)
    assert verdict() == redirects
    progress(sent_up=9, done=7)
    assert verdict() == redirects  # settled once and for all
    assert table.items()[1]["packets"].tolist() == [2]
    learn(age_ns=int(1e9))
    assert verdict() == redirects  # whose packets were lost on the way, waits not for ever


def test_exchanged_rules_touch_their_flows_also_where_a_field_is_new(program):
    """The key of a flow learned before lacks the new field, so it is not classified again."""
    links = {"a": 1, "b": 2, "c": 3}
    to_b = "priority 5 in a src 10.0.0.0/8 -> out b"
    to_c = "priority 5 in a dst 10.0.0.0/8 -> out c"
    tables = [
        parse_rules(text).ranked()
        for text in (f"{to_b}\n{to_c}", f"{to_c}\n{to_b}\nin a proto udp sport 5 -> drop")
    ]
    ids = {rule: rule_id for rule_id, rule in enumerate(tables[1])}
    before, after = (
        compile_rules(rules, links, MAX_ENTRIES, [ids[rule] for rule in rules]) for rules in tables
    )
    classifiers = [Classifier(each.masks, each.entries) for each in (before, after)]
    table, mask = FlowTable(program[0]), flow_mask(before)
    key, flow = np.zeros(1, FLOW_KEY), np.zeros(1, FLOW)
    key["mask_slot"] = table.use_mask(mask)
    shown = classifiers[0].key(frame(0, 0, src="10.0.0.1"), links["a"])
    key["packet"] = np.frombuffer(bytes(map(int.__and__, shown, mask)), FLOW_KEY["packet"])
    _, _, rank = classifiers[0].decide(frame(0, 0, src="10.0.0.1"), links["a"])
    actions = np.frombuffer(classifiers[0].actions(), FLOW["action"])
    flow["action"] = actions[actions["rank"] == rank]
    assert flow["action"]["out_ifindex"] == links["b"]
    flow["key"] = key
    program[0].update("flows", {flow_place(key.tobytes()): flow.tobytes()})
    table.use_mask(flow_mask(after))
    assert table.forget_changed(before, after, classifiers[1]) == 1


def test_masks_that_no_rule_needs_make_room_for_new_ones(program):
    table = FlowTable(program[0])
    masks = [bytes([255] * 4 + [i] * 60) for i in range(MAX_MASKS + 1)]
    slots = [table.use_mask(mask) for mask in masks]
    assert sorted(slots[:MAX_MASKS]) == list(range(MAX_MASKS))
    assert slots[-1] == slots[0]
    assert table.use_mask(masks[1]) == slots[1]
    assert table.use_mask(masks[0]) == slots[2]  # the one not used for longest


def test_a_flow_is_told_by_what_the_rules_look_at():
    rules = parse_rules("in a proto tcp dport 80 -> drop\nsrc 10.0.0.0/8 -> drop")
    mask = flow_mask(compile_rules(rules, {"a": 1, "b": 2}, MAX_ENTRIES))
    key = np.frombuffer(mask, FLOW_KEY["packet"])[0]
    assert key["in_ifindex"] == 2**32 - 1
    assert key["dport"] == 0xFFFF
    assert key["sport"] == 0
    assert key["src"].tolist() == [255] + [0] * 15
    assert not key["dst"].any()
    assert not key["dst_mac"].any()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"timeout": 0.5}, "flow-timeout must be in"),
        ({"timeout": 2e6}, "flow-timeout must be in"),
        ({"table_size": 0}, "flow-table-size must be in"),
        ({"per_second": 0}, "flow-rate must be in"),
    ],
)
def test_a_wrong_flow_setting_is_named(settings, said):
    with pytest.raises(ConfigError, match=said):
        FlowConfig(**settings)


def test_a_link_that_nothing_can_be_redirected_to_is_told(bed, forward):
    """Links that only a rule names are looked at too."""
    add = f"ip -n {bed.fwd} link add f2 type veth peer name t0 netns {bed.sink}"
    up = f"ip -n {bed.fwd} link set f2 up && ip -n {bed.sink} link set t0 up"
    subprocess.run(f"{add} && {up}", shell=True, check=True)
    forwarder = forward(bed, "--data-path", "hybrid", "--rule", "in f0 -> out f2")
    forwarder.stop()
    warnings = [each["message"] for each in forwarder.events if each["event"] == "warning"]
    assert any("f2" in each and "no ndo-xmit" in each for each in warnings), warnings
