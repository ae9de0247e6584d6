"""The key of both compilers against the oracle, and the oracle's rewriter against scapy."""

import random
import struct
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether

from l2fwd.errors import ConfigError
from l2fwd.rule_keys import HAS_PORTS, KEY, LINK_LOCAL, NO_VLAN, expand_ports, key_masks
from l2fwd.rules import Rule, RuleTable, parse_rule, parse_rules
from tests import oracle
from tests.small_world import LINKS, actions, matches, random_frame

FRAMES_PER_TABLE = 60


@given(st.tuples(st.integers(0, 65535), st.integers(0, 65535)).map(sorted))
@settings(deadline=None, max_examples=200)
def test_port_prefixes_cover_the_range_exactly_and_once(ends):
    first, last = ends
    prefixes = expand_ports((first, last))
    covered = []
    for value, mask in prefixes:
        assert value & mask == value
        covered += range(value, value + 0x10000 - mask)
    assert covered == list(range(first, last + 1))
    assert len(prefixes) <= 30


def test_the_key_has_the_offsets_that_c_reads():
    assert KEY.size == 64
    rule = parse_rule(
        "in eth0 src_mac 02:00:00:00:00:0a dst_mac 02:00:00:00:00:0b ethertype ip vlan 100.200 "
        "proto udp src 10.0.0.0/8 dst 10.0.0.2 sport 53 dport 1024-2047 -> drop"
    )
    ((mask, key),) = key_masks(rule, LINKS)
    expected = {
        0: (3).to_bytes(4, sys.byteorder), 4: bytes.fromhex("02000000000b"),
        10: bytes.fromhex("02000000000a"), 16: b"\x08\x00", 18: b"\x00\x64", 20: b"\x00\xc8",
        22: b"\x11", 23: b"\x04", 24: b"\x00\x35", 26: b"\x04\x00", 28: b"\x01", 29: bytes(3),
        32: b"\x0a" + bytes(15), 48: b"\x0a\x00\x00\x02" + bytes(12),
    }  # fmt: skip
    for offset, value in expected.items():
        assert key[offset : offset + len(value)] == value, offset
    assert mask == b"\xff" * 26 + b"\xfc\x00\x01" + bytes(3) + b"\xff" + bytes(15) + (
        b"\xff" * 4 + bytes(12)
    )


def test_port_ranges_of_one_rule_multiply_and_unknown_links_are_named():
    rule = parse_rule("in eth0 proto tcp sport 1-65534 dport 1-65534 -> drop")
    assert len(key_masks(rule, LINKS)) == 900
    with pytest.raises(ConfigError, match="in must be one of eth1, got 'eth0'"):
        key_masks(rule, {"eth1": 4})


# The key, filled as the data paths fill it, against the oracle.


def frame_key(in_ifindex, frame):
    """Fill the key of ``frame`` with bounded reads, or return None: shorter than a header."""
    if len(frame) < 14:
        return None
    dst, src, ethertype = struct.unpack_from(">6s6sH", frame)
    offset, tags = 14, [NO_VLAN, NO_VLAN]
    for depth in range(2):
        if ethertype not in (0x8100, 0x88A8, 0x9100) or offset + 4 > len(frame):
            break
        tci, ethertype = struct.unpack_from(">HH", frame, offset)
        tags[depth] = tci & 0x0FFF
        offset += 4
    ip = (0, 0, 0, 0, 0, b"", b"")
    if ethertype == 0x0800:
        ip = ipv4_key(frame, offset) or ip
    elif ethertype == 0x86DD:
        ip = ipv6_key(frame, offset) or ip
    proto, version, sport, dport, has_ports, *addresses = ip
    flags = has_ports
    if dst[:5] == b"\x01\x80\xc2\x00\x00" and dst[5] < 16:
        flags |= LINK_LOCAL
    index = in_ifindex.to_bytes(4, sys.byteorder)
    return KEY.pack(
        index, dst, src, ethertype, *tags, proto, version, sport, dport, flags, *addresses
    )


def ipv4_key(frame, offset):
    if offset + 20 > len(frame):
        return None
    first, total, fragment, proto, src, dst = struct.unpack_from(">BxHxxHxBxx4s4s", frame, offset)
    length = (first & 15) * 4
    if first >> 4 != 4 or length < 20 or total < length or offset + length > len(frame):
        return None
    ports = (0, 0, 0) if fragment & 0x1FFF else ports_key(frame, offset + length, proto)
    return proto, 4, *ports, src, dst


def ipv6_key(frame, offset):
    if offset + 40 > len(frame) or frame[offset] >> 4 != 6:
        return None
    proto, src, dst = struct.unpack_from(">6xBx16s16s", frame, offset)
    offset += 40
    for _ in range(8):
        if proto not in (0, 43, 44, 51, 60) or offset + 8 > len(frame):
            break
        following, size, fragment = struct.unpack_from(">BBH", frame, offset)
        length = {44: 8, 51: (size + 2) * 4}.get(proto, (size + 1) * 8)
        if offset + length > len(frame):
            break
        later = proto == 44 and fragment & 0xFFF8
        proto, offset = following, offset + length
        if later:
            return proto, 6, 0, 0, 0, src, dst
    return proto, 6, *ports_key(frame, offset, proto), src, dst


def ports_key(frame, offset, proto):
    if proto not in (6, 17, 132, 136) or offset + 4 > len(frame):
        return 0, 0, 0
    return *struct.unpack_from(">HH", frame, offset), HAS_PORTS


def compile_table(table):
    """Return one hash per mask; of two rules with one masked key the better ranked stays."""
    hashes = {}
    for rank, rule in enumerate(table.ranked()):
        for mask, key in key_masks(rule, LINKS):
            hashes.setdefault(int.from_bytes(mask), {}).setdefault(
                int.from_bytes(key), (rank, rule)
            )
    return hashes


def search(hashes, key):
    """Tuple-space search: one look-up per mask; the least rank wins."""
    if key is None:
        return None
    number = int.from_bytes(key)
    hits = [entries[number & mask] for mask, entries in hashes.items() if number & mask in entries]
    return min(hits, key=lambda hit: hit[0])[1] if hits else None


@st.composite
def tables(draw):
    """Draw up to twelve rules, of which no two contradict each other."""
    found = {}
    for match, action in draw(st.lists(st.tuples(matches(), actions), min_size=1, max_size=12)):
        priority = draw(st.sampled_from([0, 0, 0, 1]))
        found.setdefault((match, priority), Rule(match, action, "", priority))
    return RuleTable(found.values())


@given(tables(), st.integers(0, 2**32))
@settings(deadline=None, max_examples=120)
def test_masked_equality_of_the_key_is_the_whole_language(table, seed):
    hashes, rng = compile_table(table), random.Random(seed)
    for _ in range(FRAMES_PER_TABLE):
        frame, link = random_frame(rng), rng.choice(sorted(LINKS))
        expected = oracle.classify(table, link, frame)
        found = search(hashes, frame_key(LINKS[link], frame))
        assert found is expected, f"{frame.hex()} from {link}:\n{table}"


def test_the_small_world_meets_itself_often_and_in_every_field():
    """A differential test over frames that match nothing would pass with any classifier."""
    rng = random.Random(1)
    frames = [random_frame(rng) for _ in range(3000)]
    for text in (
        "vlan none", "vlan 0", "vlan 100", "vlan 100.4094", "ethertype arp", "ethertype 0x8100",
        "proto tcp sport 80", "proto udp dport 1024", "proto sctp", "src 10.0.0.1",
        "dst 10.0.0.0/8", "src 2001:db8::1", "dst 2001:db8::/32", "proto 51 src ::/0",
        "proto udp src ::/0 dport 0-65535", "proto 44 src ::/0", "ethertype ip", "any",
        "dst_mac 01:80:c2:00:00:00",
    ):  # fmt: skip
        table = parse_rules(f"{text} -> drop")
        hits = sum(oracle.classify(table, "eth0", frame) is not None for frame in frames)
        assert 0 < hits < len(frames), (text, hits)


@pytest.mark.parametrize(
    ("text", "packet"),
    [
        ("proto 0", Ether() / ARP()),
        ("src 0.0.0.0/0", Ether() / ARP()),
        ("src 0.0.0.0/0", Ether() / IPv6(src="::")),
        ("src ::/0", Ether() / IP(src="0.0.0.0")),
        ("proto udp sport 0", Ether() / IP(proto=17, frag=1) / bytes(8)),
        ("proto udp dport 0-65535", Ether() / IP(proto=17) / bytes(3)),
        ("vlan 0", Ether() / IP()),
        ("vlan none", Ether() / Dot1Q(vlan=0) / IP()),
        ("vlan 7.0", Ether() / Dot1Q(vlan=7) / IP()),
        ("any", Ether(dst="01:80:c2:00:00:0f") / IP()),
        ("any", b"\x02" * 13),
    ],
)
def test_what_a_frame_does_not_have_equals_nothing_a_rule_can_name(text, packet):
    table, frame = parse_rules(f"{text} -> drop"), bytes(packet)
    assert oracle.classify(table, "eth0", frame) is None
    assert search(compile_table(table), frame_key(3, frame)) is None


def test_every_cut_of_a_frame_agrees():
    """P1"""
    table = parse_rules(
        """
        vlan 100.1 proto tcp dport 80 -> drop
        vlan 100 proto 44 -> pass
        vlan 100.1 src 10.0.0.0/8 -> user
        vlan 100 -> out eth0
        any -> out eth1
        """
    )
    tags = Ether() / Dot1Q(vlan=100) / Dot1Q(vlan=1)
    chain = b"\x3c\x00" + bytes(6) + b"\x06\x00" + bytes(6)
    for packet in (
        tags / IP(src="10.0.0.1", options=b"\x01" * 8) / TCP(dport=80),
        tags / IPv6(nh=44) / chain / TCP(dport=80),
    ):
        frame, takers = bytes(packet), set()
        for length in range(len(frame) + 1):
            cut = frame[:length]
            rule = oracle.classify(table, "eth0", cut)
            assert search(compile_table(table), frame_key(3, cut)) is rule, length
            takers.add(rule)
        assert None in takers
        assert len(takers) >= 4


# The oracle's rewriter


def rewritten(action, packet):
    return oracle.apply(parse_rule(f"any -> {action}").action, bytes(packet))


def ether(dst, src):
    return Ether(dst=f"02:00:00:00:00:{dst}", src=f"02:00:00:00:00:{src}")


@pytest.mark.parametrize(
    ("action", "before", "after"),
    [
        ("out e", ether("0a", "0b"), ether("0a", "0b")),
        ("out e swap_mac", ether("0a", "0b"), ether("0b", "0a")),
        ("out e swap_mac set_dst_mac 02:00:00:00:00:0c", ether("0a", "0b"), ether("0c", "0a")),
        ("out e swap_mac set_src_mac 02:00:00:00:00:0c", ether("0a", "0b"), ether("0b", "0c")),
    ],
)
def test_macs_are_swapped_before_they_are_set(action, before, after):
    rest = IP() / UDP() / b"odd"
    assert rewritten(action, before / rest) == ("out", bytes(after / rest))


@pytest.mark.parametrize(
    ("action", "before", "after"),
    [
        ("pop_vlan", [], []),
        ("pop_vlan", [(7, 5)], []),
        ("pop_vlan", [(7, 5), (8, 1)], [(8, 1)]),
        ("push_vlan 9", [], [(9, 0)]),
        ("push_vlan 9", [(7, 5)], [(9, 0), (7, 5)]),
        ("push_vlan 9 pop_vlan", [(7, 5)], [(9, 0)]),
    ],
)
def test_a_tag_is_popped_before_one_is_pushed(action, before, after):
    def tagged(tags):
        packet = Ether()
        for vid, prio in tags:
            packet /= Dot1Q(vlan=vid, prio=prio)
        return packet / IP() / UDP() / b"odd"

    assert rewritten(f"out e {action}", tagged(before)) == ("out", bytes(tagged(after)))


@pytest.mark.parametrize("ttl", [0, 1, 2, 64, 255])
@pytest.mark.parametrize("identification", range(0, 65536, 1021))
def test_the_ttl_goes_down_with_a_right_checksum_or_the_host_answers(ttl, identification):
    def packet(ttl):
        return Ether() / Dot1Q(vlan=7) / IP(id=identification, ttl=ttl) / UDP() / b"odd"

    expected = ("out", bytes(packet(ttl - 1))) if ttl > 1 else ("pass", bytes(packet(ttl)))
    assert rewritten("out e dec_ttl", packet(ttl)) == expected
    late = rewritten("out e swap_mac pop_vlan dec_ttl", packet(ttl))
    assert (late == ("pass", bytes(packet(ttl)))) == (ttl < 2)


def test_a_hop_limit_goes_down_and_what_is_not_ip_has_none():
    assert rewritten("out e dec_ttl", Ether() / IPv6(hlim=2)) == (
        "out",
        bytes(Ether() / IPv6(hlim=1)),
    )
    assert rewritten("out e dec_ttl", Ether() / IPv6(hlim=1))[0] == "pass"
    assert rewritten("out e dec_ttl", Ether() / ARP()) == ("out", bytes(Ether() / ARP()))


@pytest.mark.parametrize("kind", ["drop", "pass", "user"])
def test_only_out_changes_a_frame(kind):
    assert rewritten(kind, Ether() / IP()) == (kind, bytes(Ether() / IP()))


@given(actions, st.integers(0, 2**32))
@settings(deadline=None)
def test_a_rewrite_of_any_frame_changes_its_length_by_its_tags_alone(action, seed):
    frame = random_frame(random.Random(seed)).ljust(14, b"\0")
    verdict, after = oracle.apply(action, frame)
    if verdict != "out":
        assert after == frame
        return
    tags = (action.push_vlan is not None) - (action.pop_vlan and bool(oracle.look(frame).vids))
    assert len(after) == len(frame) + 4 * tags
