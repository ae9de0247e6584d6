"""What was learned, in the kernel: entries of hybrid's flow table, written by hand."""

import struct

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from l2fwd import link
from l2fwd._bpf import run_packet
from l2fwd.bpf import Program
from l2fwd.rule_layout import U32, flow_place
from l2fwd.rule_maps import RuleMaps, map_sizes
from l2fwd.rule_table import compile_rules
from l2fwd.rules import parse_rules

pytestmark = pytest.mark.privileged

DROP, REDIRECT = 1, 4  # enum xdp_action
SETTLED = 2**64 - 1


@pytest.fixture
def hybrid(bed):
    """A loaded program whose rules drop everything, and the ifindexes of its links."""
    with link.in_netns(bed.fwd):
        ifindexes = {name: link.find_link(name).ifindex for name in ("f0", "f1")}
        program = Program("hybrid", map_sizes(64))
        program.load()
        keys = [U32.pack(ifindex) for ifindex in ifindexes.values()]
        program.update("links", dict(zip(keys, keys, strict=True)))
        RuleMaps(program, 1024).apply(parse_rules("any -> drop").ranked(), ifindexes, "pass")
        yield program, ifindexes
        program.close()


def learn(program, ifindexes, text, *, slot=0, older=b"", place=None):
    """Put the flow that a rule describes under its hash, or under that of ``place``."""
    compiled = compile_rules(parse_rules(text), ifindexes, 1)
    ((mask, _),), (((_, key), action),) = compiled.masks, compiled.entries.items()
    flow_key = struct.pack("=HHI", 0, slot, 0) + key
    program.update("flow_masks", {U32.pack(slot): mask})
    program.update("flow_order", {U32.pack(0): bytes([slot, *older]).ljust(4, b"\xff")})
    value = flow_key + action + struct.pack("=4Q", 0, 0, 0, SETTLED)
    program.update("flows", {flow_place(place or flow_key): value})
    return flow_key


def test_a_settled_flow_is_forwarded_as_learned_and_others_go_by_the_rules(hybrid):
    program, ifindexes = hybrid
    learn(program, ifindexes, "proto udp dport 9 -> out f1 set_dst_mac 02:00:00:00:00:0c", slot=3)
    for port, expected in ((9, REDIRECT), (10, DROP)):
        frame = bytes(Ether(dst="02:00:00:00:00:01") / IP() / UDP(dport=port))
        verdict, became = run_packet(program.fd, frame, ifindexes["f0"])
        assert verdict == expected
        changed = bytes.fromhex("02000000000c") + frame[6:]
        assert became == (changed if expected == REDIRECT else frame)
    assert program.counters()["redirected_packets"] == 1
    assert program.counters()["rule_drops"] == 1


@pytest.mark.parametrize("older", [bytes([2]), bytes([3, 2]), bytes([0, 3, 2])])
def test_a_flow_under_an_older_mask_is_found_where_newer_ones_have_none(hybrid, older):
    program, ifindexes = hybrid
    for slot in (0, 3):
        learn(program, ifindexes, "proto tcp sport 1 -> out f1", slot=slot)
    learn(program, ifindexes, "proto udp dport 9 -> out f1", slot=2)
    learn(program, ifindexes, "proto udp sport 7 -> out f1", slot=1, older=older)
    for sport, dport, expected in ((1, 9, REDIRECT), (7, 1, REDIRECT), (1, 1, DROP)):
        frame = bytes(Ether() / IP() / UDP(sport=sport, dport=dport))
        assert run_packet(program.fd, frame, ifindexes["f0"])[0] == expected


def test_a_flow_of_the_same_hash_is_not_taken_for_another(hybrid):
    program, ifindexes = hybrid
    mine = learn(program, ifindexes, "proto udp dport 9 -> out f1")
    learn(program, ifindexes, "proto udp dport 10 -> out f1", place=mine)
    frame = bytes(Ether() / IP() / UDP(dport=9))
    assert run_packet(program.fd, frame, ifindexes["f0"])[0] == DROP
