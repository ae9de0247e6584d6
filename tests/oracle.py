"""The slow and obvious classifier and rewriter that every data path is held against.

Written from the text of the language (l2fwd/rules.py and l2fwd/rule_keys.py, their docstrings) with
scapy's dissectors, one header at a time; nothing of the compilers is used.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import ip_address
from math import ceil, log2

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import Dot1Q, Ether
from scapy.layers.sctp import SCTP
from scapy.utils import checksum

ETHERNET_BYTES = 14
TAG_BYTES = 4
TAG_TYPES = (0x8100, 0x88A8, 0x9100)
EXTENSIONS = (0, 43, 44, 51, 60)  # hop-by-hop, routing, fragment, ah, destination options
PORT_LAYERS = {6: TCP, 17: UDP, 132: SCTP, 136: UDP}  # UDP-Lite has UDP's first four bytes


@dataclass
class Seen:
    """What one frame shows to a rule."""

    dst_mac: bytes = b""
    src_mac: bytes = b""
    ethertype: int = 0
    vids: list = field(default_factory=list)
    ip_offset: int | None = None
    version: int = 0
    proto: int | None = None
    src: object = None
    dst: object = None
    sport: int | None = None
    dport: int | None = None


@lru_cache(maxsize=4096)
def look(frame):
    """Return what ``frame`` shows, or None if it is shorter than an Ethernet header."""
    if len(frame) < ETHERNET_BYTES:
        return None
    # An 802.3 length would make scapy choose another layer; the last two bytes say all there is.
    macs = Ether(frame[:12] + b"\x08\x00")
    seen = Seen(mac_bytes(macs.dst), mac_bytes(macs.src), number(frame[12:14]))
    offset = ETHERNET_BYTES
    while seen.ethertype in TAG_TYPES and len(seen.vids) < 2 and offset + TAG_BYTES <= len(frame):
        tag = Dot1Q(frame[offset : offset + TAG_BYTES])
        seen.vids.append(tag.vlan)
        seen.ethertype = tag.type
        offset += TAG_BYTES
    if seen.ethertype == 0x0800:
        look_at_ipv4(seen, frame, offset)
    elif seen.ethertype == 0x86DD:
        look_at_ipv6(seen, frame, offset)
    return seen


def look_at_ipv4(seen, frame, offset):
    if offset + 20 > len(frame):
        return
    header = IP(frame[offset : offset + 20])
    length = header.ihl * 4
    if header.version != 4 or header.ihl < 5 or header.len < length:
        return
    if offset + length > len(frame):
        return
    seen.ip_offset, seen.version, seen.proto = offset, 4, header.proto
    seen.src, seen.dst = ip_address(header.src), ip_address(header.dst)
    if header.frag == 0:
        look_at_ports(seen, frame, offset + length)


def look_at_ipv6(seen, frame, offset):
    if offset + 40 > len(frame):
        return
    header = IPv6(frame[offset : offset + 40])
    if header.version != 6:
        return
    seen.ip_offset, seen.version, seen.proto = offset, 6, header.nh
    seen.src, seen.dst = ip_address(header.src), ip_address(header.dst)
    offset += 40
    for _ in range(8):
        if seen.proto not in EXTENSIONS or offset + 8 > len(frame):
            break
        length = extension_length(seen.proto, frame[offset + 1])
        if offset + length > len(frame):
            break
        if seen.proto == 44:
            fragment = IPv6ExtHdrFragment(frame[offset : offset + length])
            if fragment.offset > 0:
                seen.proto = fragment.nh
                return
        seen.proto = frame[offset]  # each begins with its Next Header
        offset += length
    look_at_ports(seen, frame, offset)


def extension_length(proto, length_field):
    """RFC 8200, 4.2 to 4.6; RFC 4302, 2.2."""
    if proto == 44:
        return 8
    return (length_field + 2) * 4 if proto == 51 else (length_field + 1) * 8


def look_at_ports(seen, frame, offset):
    if seen.proto in PORT_LAYERS and offset + 4 <= len(frame):
        # Zeroes complete the header for scapy; only its first four bytes are used.
        header = PORT_LAYERS[seen.proto](frame[offset : offset + 4] + bytes(16))
        seen.sport, seen.dport = header.sport, header.dport


def mac_bytes(text):
    return bytes.fromhex(text.replace(":", ""))


def number(two_bytes):
    return int.from_bytes(two_bytes, "big")


def is_link_local(mac):
    return mac[:5] == bytes.fromhex("0180c20000") and mac[5] <= 0x0F


def matches(match, in_link, seen):
    """Say whether every field that ``match`` names is as it says."""
    if is_link_local(seen.dst_mac) and match.dst_mac is None:
        return False
    checks = [
        match.in_link is None or match.in_link == in_link,
        match.src_mac is None or match.src_mac == seen.src_mac,
        match.dst_mac is None or match.dst_mac == seen.dst_mac,
        match.ethertype is None or match.ethertype == seen.ethertype,
        match.vlan is None or vlan_matches(match.vlan, seen.vids),
        match.proto is None or match.proto == seen.proto,
        match.src is None or (seen.src is not None and seen.src in match.src),
        match.dst is None or (seen.dst is not None and seen.dst in match.dst),
        match.sport is None or within(seen.sport, match.sport),
        match.dport is None or within(seen.dport, match.dport),
    ]
    return all(checks)


def vlan_matches(wanted, vids):
    if not wanted:
        return not vids
    return list(wanted) == vids[: len(wanted)]


def within(port, ports):
    return port is not None and ports[0] <= port <= ports[1]


def specificity(match):
    bits = 0
    bits += 32 if match.in_link is not None else 0
    bits += 48 if match.src_mac is not None else 0
    bits += 48 if match.dst_mac is not None else 0
    bits += 16 if match.ethertype is not None else 0
    bits += 0 if match.vlan is None else 24 if len(match.vlan) == 2 else 12
    bits += 8 if match.proto is not None else 0
    bits += 0 if match.src is None else match.src.prefixlen
    bits += 0 if match.dst is None else match.dst.prefixlen
    for ports in (match.sport, match.dport):
        if ports is not None:
            bits += 16 - ceil(log2(ports[1] - ports[0] + 1))
    return bits


def classify(table, in_link, frame):
    """Return the rule of ``table`` that takes ``frame``, or None: the miss policy."""
    seen = look(bytes(frame))
    taker = None
    for rule in table:
        if seen is None or not matches(rule.match, in_link, seen):
            continue
        if taker is None or rank(rule) > rank(taker):
            taker = rule
    return taker


def rank(rule):
    return (rule.priority, specificity(rule.match))


def apply(action, frame):
    """Return (verdict, bytes): "out", "drop", "pass" or "user", and what the frame has become."""
    frame = bytes(frame)
    if action.kind != "out":
        return action.kind, frame
    seen = look(frame)
    if action.dec_ttl and seen.version:
        if ttl_of(seen, frame) <= 1:
            return "pass", frame
        frame = with_less_ttl(seen, frame)
    ether = Ether(frame[:12] + b"\x08\x00")
    dst, src = mac_bytes(ether.dst), mac_bytes(ether.src)
    if action.swap_mac:
        dst, src = src, dst
    if action.set_src_mac is not None:
        src = action.set_src_mac
    if action.set_dst_mac is not None:
        dst = action.set_dst_mac
    rest = frame[12:]
    if action.pop_vlan and seen.vids:
        rest = rest[TAG_BYTES:]
    if action.push_vlan is not None:
        rest = b"\x81\x00" + bytes(Dot1Q(vlan=action.push_vlan, type=number(rest[:2]))) + rest[2:]
    return "out", dst + src + rest


def ttl_of(seen, frame):
    if seen.version == 4:
        return IP(frame[seen.ip_offset : seen.ip_offset + 20]).ttl
    return IPv6(frame[seen.ip_offset : seen.ip_offset + 40]).hlim


def with_less_ttl(seen, frame):
    at = seen.ip_offset
    if seen.version == 6:
        return frame[: at + 7] + bytes([frame[at + 7] - 1]) + frame[at + 8 :]
    old_word, old_sum = number(frame[at + 8 : at + 10]), number(frame[at + 10 : at + 12])
    new_word = old_word - 0x0100
    # RFC 1624, equation 3: HC' = ~(~HC + ~m + m'); scapy's checksum is the ~ of the sum.
    parts = (old_sum ^ 0xFFFF, old_word ^ 0xFFFF, new_word)
    new_sum = checksum(b"".join(part.to_bytes(2, "big") for part in parts))
    words = new_word.to_bytes(2, "big") + new_sum.to_bytes(2, "big")
    return frame[: at + 8] + words + frame[at + 12 :]
