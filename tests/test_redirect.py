"""The kernel's data path: the oracle's verdict and bytes; rules swapped whole."""

import errno
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP
from scapy.layers.l2 import Ether

from l2fwd import ethtool, link, rule_layout
from l2fwd._bpf import run_packet
from l2fwd._classify import Classifier
from l2fwd.bpf import Program
from l2fwd.config import ForwardConfig, Rewrite
from l2fwd.datapath.redirect import RedirectPath
from l2fwd.errors import ConfigError, KernelError
from l2fwd.rule_keys import KEY
from l2fwd.rule_layout import LINK_RULES, link_rules
from l2fwd.rule_maps import MAX_ENTRIES, RuleMaps, map_sizes
from l2fwd.rule_table import ACTION, MAX_MASKS, compile_rules
from l2fwd.rules import Rule, RuleTable, parse_rules
from tests import oracle
from tests.learned import Learned
from tests.small_world import actions, matches, random_frame

pytestmark = pytest.mark.privileged

VERDICTS = {1: "drop", 2: "pass", 4: "out"}  # enum xdp_action
IS_FUZZ = os.environ.get("L2FWD_FUZZ") == "1"  # make fuzz: a million frames
TABLES, FRAMES_PER_TABLE = (50, 10_000) if IS_FUZZ else (40, 300)


@pytest.fixture
def kernel(bed):
    """A loaded program with both links in its map, and the ifindexes of the small world."""
    with link.in_netns(bed.fwd):
        ifindexes = {"eth0": link.find_link("f0").ifindex, "eth1": link.find_link("f1").ifindex}
        program = Program("redirect", map_sizes(64))
        program.load()
        keys = [ifindex.to_bytes(4, sys.byteorder) for ifindex in ifindexes.values()]
        program.update("links", dict(zip(keys, keys, strict=True)))
        yield program, RuleMaps(program, 1024), ifindexes
        program.close()


def test_a_table_that_the_kernel_has_no_room_for_leaves_the_old_one(bed, monkeypatch):
    monkeypatch.setattr(rule_layout, "near_places", lambda *_: None)
    with link.in_netns(bed.fwd):
        ifindexes = {name: link.find_link(name).ifindex for name in ("f0", "f1")}
        program = Program("redirect", map_sizes(8) | {"rules": 8})
        program.load()
        maps = RuleMaps(program, 64)
        maps.apply(parse_rules("in f0 -> drop"), ifindexes, "pass")
        many = parse_rules("\n".join(f"proto udp dport {port} -> pass" for port in range(40)))
        frame = bytes.fromhex("020000000002020000000001") + bytes(50)
        for _ in range(3):
            with pytest.raises(KernelError):
                maps.apply(many, ifindexes, "pass")
            assert VERDICTS[run_packet(program.fd, frame, ifindexes["f0"])[0]] == "drop"
        maps.apply(parse_rules("in f0 -> pass"), ifindexes, "drop")
        assert VERDICTS[run_packet(program.fd, frame, ifindexes["f0"])[0]] == "pass"
        assert len(program.items("rules")[0]) == 72
        program.close()


@pytest.fixture
def learned(kernel):
    """The program of hybrid, with the same links."""
    _, _, ifindexes = kernel
    learned = Learned(ifindexes)
    yield learned
    learned.close()


@st.composite
def tables(draw):
    listed = draw(st.lists(st.tuples(matches(), actions, st.integers(0, 2)), max_size=12))
    first = {(priority, match): action for match, action, priority in reversed(listed)}
    return RuleTable([Rule(match, action, "", p) for (p, match), action in first.items()])


@pytest.mark.parametrize("is_far", [False, True], ids=["near", "far by turns"])
def test_the_kernel_and_the_oracle_agree(kernel, learned, monkeypatch, is_far):
    """F3-F5, P1-P7: random rules against random frames, verdict and bytes, on every data path."""
    program, maps, ifindexes = kernel
    if is_far:
        places, turns = rule_layout.near_places, itertools.cycle([True, True, False, False])
        monkeypatch.setattr(
            rule_layout, "near_places", lambda *each: None if next(turns) else places(*each)
        )
    seen = set()

    @settings(
        max_examples=TABLES,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(tables(), st.sampled_from(["pass", "drop"]), st.integers(0, 2**32 - 1))
    def agree(table, miss, seed):
        try:
            maps.apply(table.ranked(), ifindexes, miss)
            compiled = compile_rules(table.ranked(), ifindexes, MAX_ENTRIES)
        except ConfigError as error:
            assume("different masks" not in str(error))  # port ranges may take too many
            raise
        learned.apply(table.ranked(), miss)
        classifier = Classifier(compiled.masks, compiled.entries, miss)
        rng = random.Random(seed)
        for _ in range(FRAMES_PER_TABLE):
            frame = random_frame(rng).ljust(14, b"\0")
            name = rng.choice(sorted(ifindexes))
            rule = oracle.classify(table, name, frame)
            expected = oracle.apply(rule.action, frame) if rule else (miss, frame)
            assert classifier.decide(frame, ifindexes[name])[:2] == expected, frame.hex()
            goes_up = ("pass", frame) if expected[0] in ("out", "user") else expected
            found = learned.before(frame, ifindexes[name])
            assert found in (goes_up, None), (str(rule), frame.hex())
            if expected[0] == "user":  # this path has none: left to the host
                expected = ("pass", frame)
            else:
                assert learned.after(frame, ifindexes[name]) == expected, (str(rule), frame.hex())
            verdict, became = run_packet(program.fd, frame, ifindexes[name])
            assert (VERDICTS[verdict], became) == expected, (str(rule), frame.hex())
            seen.add(expected[0])

    agree()
    assert seen == {"out", "drop", "pass"}


@pytest.mark.parametrize(
    ("text", "links_alone"),
    [
        ("in eth0 -> out eth1 set_dst_mac 02:00:00:00:00:0c\nin eth1 -> drop", {"eth0", "eth1"}),
        ("any -> out eth0 push_vlan 7", {"eth0", "eth1"}),
        ("in eth0 -> pass\nany -> drop", {"eth0", "eth1"}),
        ("any -> out eth0\nin eth0 dst_mac 01:80:c2:00:00:00 -> out eth1", {"eth1"}),
        ("in eth0 proto udp -> drop\nin eth0 -> out eth1\nin eth1 -> out eth0", {"eth1"}),
        ("in eth0 -> out eth1 dec_ttl\nin eth1 -> out eth0 swap_mac", {"eth1"}),
        ("src 0.0.0.0/0 -> drop", set()),
    ],
)
def test_links_whose_packets_need_no_look_get_the_oracles_verdict(kernel, text, links_alone):
    program, maps, ifindexes = kernel
    table = parse_rules(text)
    ranked = table.ranked()
    found = link_rules(ranked, ifindexes, compile_rules(ranked, ifindexes, MAX_ENTRIES))
    at_links = {int.from_bytes(each[:4], sys.byteorder) for each in found} - {0}
    assert at_links == {ifindexes[name] for name in links_alone}
    maps.apply(ranked, ifindexes, "pass")
    rng = random.Random(text)
    for _ in range(200):
        frame = random_frame(rng).ljust(14, b"\0")
        name = rng.choice(sorted(ifindexes))
        rule = oracle.classify(table, name, frame)
        expected = oracle.apply(rule.action, frame) if rule else ("pass", frame)
        verdict, became = run_packet(program.fd, frame, ifindexes[name])
        assert (VERDICTS[verdict], became) == expected, (str(rule), frame.hex())


def test_a_version_that_could_not_be_written_leaves_the_one_in_force(kernel, monkeypatch):
    program, maps, ifindexes = kernel
    frame = bytes(Ether() / IP(dst="10.0.0.1"))

    def verdict():
        return VERDICTS[run_packet(program.fd, frame, ifindexes["eth0"])[0]]

    def fail_once(name, entries):
        if failing[:1] == [name]:
            raise KernelError(errno.E2BIG, "update map", failing.pop(0))
        update(name, entries)

    maps.apply(parse_rules("dst 10.0.0.1 -> drop").ranked(), ifindexes, "pass")
    update = program.update
    monkeypatch.setattr(program, "update", fail_once)
    failing = ["masks", "near_rules", "link_rules", "tables", "generation"] * 2
    while failing:
        with pytest.raises(KernelError):
            maps.apply(parse_rules("proto 6 -> drop\nany -> pass").ranked(), ifindexes, "pass")
        assert verdict() == "drop"
    maps.apply(parse_rules("proto 1 -> drop").ranked(), ifindexes, "pass")
    assert verdict() == "pass"


def test_of_two_links_at_one_place_one_is_looked_up_as_before(kernel):
    program, maps, ifindexes = kernel
    ifindexes["eth2"] = ifindexes["eth0"] + LINK_RULES
    maps.apply(parse_rules("in eth0 -> drop\nin eth2 -> pass").ranked(), ifindexes, "pass")
    assert VERDICTS[run_packet(program.fd, bytes(60), ifindexes["eth0"])[0]] == "drop"


def test_every_cut_of_a_frame_gets_the_oracles_verdict(kernel):
    """P1"""
    program, maps, ifindexes = kernel
    table = parse_rules(
        """
        vlan 100.1 proto tcp dport 80 -> drop
        vlan 100.1 src 10.0.0.0/8 -> out eth0 dec_ttl
        vlan 100 -> out eth1 pop_vlan
        """
    )
    maps.apply(table.ranked(), ifindexes, "pass")
    head = bytes.fromhex("02000000000a 02000000000b 81000064 81000001 0800")
    ip = bytes.fromhex("46000030 00000000 40060000 0a000001 0a000002 01010101") + b"\0\x01\0\x50"
    whole = head + ip + bytes(20)
    for length in range(14, len(whole) + 1):
        frame = whole[:length]
        rule = oracle.classify(table, "eth0", frame)
        expected = oracle.apply(rule.action, frame) if rule else ("pass", frame)
        verdict, became = run_packet(program.fd, frame, ifindexes["eth0"])
        assert (VERDICTS[verdict], became) == expected, length


def test_hits_count_packets_and_bytes_and_survive_a_change_of_other_rules(kernel):
    program, maps, ifindexes = kernel
    one, two, three = parse_rules(
        "vlan 1 -> drop\nvlan 2 -> drop\nvlan 3 -> drop"
    )  # fmt: skip

    def send(vid, count):
        frame = bytes(12) + b"\x81\x00" + vid.to_bytes(2, "big") + bytes(46)
        for _ in range(count):
            run_packet(program.fd, frame, ifindexes["eth0"])

    maps.apply([one, two], ifindexes, "pass")
    send(1, 3)
    send(2, 2)
    assert maps.hits() == {one: (3, 186), two: (2, 124)}
    maps.apply([three, one], ifindexes, "pass")
    assert maps.hits() == {three: (0, 0), one: (3, 186)}
    send(3, 1)
    send(2, 1)
    assert maps.hits() == {three: (1, 62), one: (3, 186)}


def test_what_does_not_fit_is_refused_with_the_count_and_the_old_rules_stay(kernel):
    """I5"""
    program, maps, ifindexes = kernel
    (old,) = parse_rules("any -> drop")
    maps.apply([old], ifindexes, "pass")
    # Prefixes of two lengths each: more masks than the search has.
    many = parse_rules(
        "\n".join(
            f"src {'0.0.0.0' if s == 0 else '128.0.0.0'}/{s} dst 128.0.0.0/{d} -> drop"
            for s in range(1, 10)
            for d in range(1, 10)
        )
    )
    with pytest.raises(ConfigError, match=f"need 81 different masks, {MAX_MASKS} are possible"):
        maps.apply(many.ranked(), ifindexes, "pass")
    with pytest.raises(ConfigError, match="out must be one of eth0, eth1, got 'eth9'"):
        maps.apply(list(parse_rules("any -> out eth9")), ifindexes, "pass")
    assert VERDICTS[run_packet(program.fd, bytes(60), ifindexes["eth0"])[0]] == "drop"
    ranges = list(parse_rules("proto tcp sport 1-65534 -> drop"))
    with pytest.raises(ConfigError, match="need 30 table entries, 29 are possible"):
        compile_rules(ranges, ifindexes, 29)


def test_the_layouts_are_those_of_the_header():
    """The sizes that kern/l2fwd.h asserts."""
    assert (KEY.size, ACTION.size) == (64, 32)


# On the wire


@pytest.mark.parametrize("mode", ["native", "skb"])
def test_a_pair_of_links_forwards_everything_both_ways(bed, forward, open_wire, mode):
    """F1, F2"""
    forwarder = forward(bed, "--data-path", "redirect", "--mode", mode)
    modes = {each["link"]: each["attach_mode"] for each in forwarder.events[-1]["links"]}
    assert modes == {"f0": mode, "f1": mode}
    wire = open_wire(bed)
    for turn, length in enumerate((60, 511, 1514)):
        there = wire.send(100, first=turn * 100, length=length)
        assert wire.receive(100) == there
        back = wire.send(100, first=turn * 100, length=length, source=wire.sink)
        assert wire.receive(100, end=wire.gen) == back
    summary = forwarder.stop()
    assert summary["forwarded"] == 600
    assert summary["drops"] == {}
    assert summary["unaccounted"] == 0


def test_a_rule_takes_what_it_names_and_the_miss_policy_the_rest(bed, forward, open_wire):
    """F3, F4"""
    rule = "in f0 ethertype 0x88b5 -> out f1 set_dst_mac 00:00:11:22:33:44"
    forwarder = forward(bed, "--data-path", "redirect", "--rule", rule, "--miss", "drop")
    wire = open_wire(bed)
    sent = wire.send(20)
    assert wire.receive(20) == [bytes.fromhex("000011223344") + frame[6:] for frame in sent]
    wire.send(5, source=wire.sink)
    assert wire.receive(1, end=wire.gen, seconds=0.2) == []
    summary = forwarder.stop()
    assert summary["forwarded"] == 20
    assert summary["drops"] == {"rx_rule_drops": 5}


def test_a_packet_over_the_other_links_mtu_is_counted(bed, forward, open_wire):
    """F8"""
    for netns, ifname in ((bed.fwd, "f1"), (bed.sink, "s0")):
        with link.in_netns(netns):
            link.set_mtu(ifname, 1000)
    forwarder = forward(bed, "--data-path", "redirect")
    wire = open_wire(bed)
    wire.send(10, length=1400)
    sent = wire.send(10, length=900)
    assert wire.receive(10) == sent
    assert forwarder.stop()["drops"] == {"tx_mtu_drops": 10}


def test_a_new_mtu_counts_from_the_next_tick(bed, forward, open_wire):
    """F8"""
    forwarder = forward(bed, "--data-path", "redirect")
    wire = open_wire(bed)
    for mtu, arrives in ((1500, True), (1000, False), (1500, True)):
        with link.in_netns(bed.fwd):
            link.set_mtu("f1", mtu)
        time.sleep(0.05)
        sent = wire.send(10, length=1400) + wire.send(1, length=60)
        assert wire.receive(11, seconds=1) == (sent if arrives else sent[10:])
    assert forwarder.stop()["drops"] == {"tx_mtu_drops": 10}


def test_frames_for_the_next_bridge_stay_on_their_link(bed, forward, open_wire):
    """P8"""
    forwarder = forward(bed, "--data-path", "redirect")
    wire = open_wire(bed)
    frame = bytes.fromhex("0180c2000000") + wire.frame(1)[6:]
    wire.gen.send(frame)
    sent = wire.send(1, first=2)
    assert wire.receive(2, seconds=0.3) == sent
    forwarder.stop()


def test_rules_are_swapped_whole(bed, open_wire):
    """Show 4: never the link of the one table with the MAC of the other, and nothing lost."""
    macs = [bytes.fromhex("020000000a0a"), bytes.fromhex("020000000b0b")]
    given = [
        parse_rules(f"in f0 -> out f1 set_dst_mac {mac.hex(':')} set_src_mac {mac.hex(':')}")
        for mac in macs
    ]
    with link.in_netns(bed.fwd):
        path = RedirectPath(ForwardConfig(in_link="f0", out_link="f1", data_path="redirect",
                                          rules=given[0]), lambda event: None)  # fmt: skip
        path.start()
    wire = open_wire(bed)
    stop = threading.Event()
    swaps = 0

    def swap():
        nonlocal swaps
        while not stop.is_set():
            swaps += 1
            path.apply(given[swaps % 2])

    thread = threading.Thread(target=swap)
    thread.start()
    received = []
    began = time.monotonic()
    sent = 0
    while swaps < 30 and time.monotonic() - began < 20:
        sent += len(wire.send(100, first=sent))
        received += wire.receive(100)
    stop.set()
    thread.join()
    path.stop()
    assert len(received) == sent
    heads = {frame[:12] for frame in received}
    assert heads == {mac + mac for mac in macs}


def test_a_link_made_again_is_forwarded_to_again(bed, forward, open_wire):
    """X3, X4"""
    forwarder = forward(bed, "--data-path", "redirect")
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
    forwarder.wait_for("program_attached", 4)
    assert open_wire(bed).carries(4)
    forwarder.stop()


def test_a_killed_one_leaves_no_program(bed, forward, open_wire):
    """X8"""
    forwarder = forward(bed, "--data-path", "redirect")
    assert open_wire(bed).carries()
    forwarder.kill()
    time.sleep(0.1)
    with link.in_netns(bed.fwd):
        assert link.find_link("f0").xdp_mode == link.find_link("f1").xdp_mode == "none"


def run(bed, *words):
    command = ["nsenter", f"--net=/run/netns/{bed.fwd}", sys.executable, "-m", "l2fwd", "forward"]
    return subprocess.run(
        [*command, *words], capture_output=True, text=True, timeout=20, check=False
    )


# The command line of seed 000


def ping(bed, address):
    command = ["ip", "netns", "exec", bed.gen, "ping", "-c", "3", "-i", "0.1", "-W", "1", address]
    return subprocess.run(command, capture_output=True, timeout=20, check=False)


def test_fast_l2fwds_own_command_line_rewrites_only_what_it_names(bed, open_wire):
    """Show 2: ICMP to that address gets the MAC; all else goes by the miss policy, to the host."""
    words = "-inlink=f0 -ipproto=1 -dstIp=10.77.0.2 -outlink=f1 -dstMac=00:00:11:22:33:44"
    command = ["nsenter", f"--net=/run/netns/{bed.fwd}", sys.executable, "-m", "l2fwd"]
    process = subprocess.Popen([*command, *words.split()], stdout=subprocess.PIPE, text=True)
    with process:
        assert "forwarded by the rules, 1 rule" in process.stdout.readline()
        with link.in_netns(bed.gen):
            subprocess.run(
                ["ip", "neigh", "replace", "10.77.0.2", "lladdr", "02:00:00:00:00:02", "dev", "g0"],
                check=True,
            )
        wire = open_wire(bed)
        with link.in_netns(bed.sink):
            sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
            sniffer.bind(("s0", 0x0800))
        sniffer.settimeout(2)
        ping(bed, "10.77.0.2")
        frames = [sniffer.recv(2048) for _ in range(3)]
        wire.send(3)
        assert wire.receive(1, seconds=0.2) == []
        sniffer.close()
        process.send_signal(signal.SIGINT)
        summary = process.stdout.read()
    assert {frame[:6] for frame in frames} == {bytes.fromhex("000011223344")}
    assert {frame[23] for frame in frames} == {1}
    assert "forwarded 3 of 3 packets" in summary
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("-inlink=f0", "-outlink=LINK is missing"),
        ("-outlink=f1", "-inlink=LINK is missing"),
        ("-inlink=f0 -outlink=f1 -dstPort=1", "'-dstPort=1' is none of -inlink"),
        ("-inlink=f0 -outlink=f1 -inlink=f0", "-inlink is given twice"),
        ("-inlink=f0 -outlink", "-outlink needs a value"),
        ("-inlink=f0 -outlink=f1 -ipproto=256", "proto must be"),
        ("-inlink f0 --outlink=f1 -dstIp=256.1.1.1", "dst must be"),
        ("-inlink=f0 -outlink=f1 -dstMac=01:00:00:00:00:00", "set_dst_mac must be a unicast"),
    ],
)
def test_a_wrong_flag_of_fast_l2fwd_is_named(words, said):
    """I2"""
    command = [sys.executable, "-m", "l2fwd", *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rule", "any -> out f9"], "f9"),
        (["--data-path", "warp"], "afxdp, redirect or hybrid"),
        (["--data-path", "redirect", "--rule", "any -> out f9"], "f9"),
        (["--data-path", "redirect", "--rule", "any -> out"], "out"),
        (["--data-path", "redirect", "--rule", "dst 10.0.0.0/33 -> drop"], "dst"),
        (["--data-path", "redirect", "--rule", "any -> user"], "user"),
        (["--data-path", "redirect", "--miss", "user"], "redirect has none"),
        (["--data-path", "hybrid", "--miss", "user"], "name one with --policy"),
        (["--miss", "warp"], "pass, drop, user"),
        (["--rule", "any -> user"], "name one with --policy"),
        (["--rule", "any -> out f1", "--chain"], "chain"),
        (["--miss", "user", "--policy", "/nonexistent.py"], "/nonexistent.py"),
        (["--data-path", "hybrid", "--policy", "/nonexistent.py"], "policy is never asked"),
        (["--rule", "in f1 -> out f0", "--one-way"], "one-way is for all of a pair"),
        (["--data-path", "redirect", "--flow-timeout", "5"], "flow-timeout is about learned"),
        (["--data-path", "hybrid", "--flow-table-size", "0"], "flow-table-size must be"),
        (["--data-path", "redirect", "--rules", "/nonexistent"], "/nonexistent"),
        (["--data-path", "redirect", "--rules", "/dev/null"], "/dev/null"),
        (["--data-path", "redirect", "--ring-size", "64"], "ring-size"),
        (["--data-path", "redirect", "--chain"], "chain"),
        (["--data-path", "redirect", "--rule", "any -> out f1", "--swap-mac"], "rewriting"),
    ],
)
def test_a_wrong_rule_is_named_and_nothing_is_attached(bed, words, said):
    """I2"""
    done = run(bed, "f0", "f1", *words)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    with link.in_netns(bed.fwd):
        assert link.find_link("f0").xdp_mode == "none"


def test_a_file_of_rules_is_read_and_counted(bed, tmp_path):
    rules = tmp_path / "rules"
    rules.write_text("".join(f"dst 10.{i >> 8}.{i & 255}.1 -> out f1\n" for i in range(5000)))
    arguments = ["--data-path", "redirect", "--rules", str(rules), "--duration", "0.1", "--json"]
    done = run(bed, "f0", "f1", *arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[0])["links"][0]["rules"] == 5000


def test_a_pairs_rewriting_goes_out_only(bed, open_wire):
    rewrite = Rewrite(dst_mac=bytes.fromhex("000011223344"))
    config = ForwardConfig(in_link="f0", out_link="f1", data_path="redirect", rewrite=rewrite)
    with link.in_netns(bed.fwd):
        path = RedirectPath(config, lambda event: None)
        path.start()
    wire = open_wire(bed)
    (there,) = wire.send(1)
    (back,) = wire.send(1, source=wire.sink)
    assert wire.receive(1) == [rewrite.dst_mac + there[6:]]
    assert wire.receive(1, end=wire.gen) == [back]
    path.stop()
    assert path.sample().unaccounted == 0
