"""A small world: random rules and random frames that meet often, for differential tests."""

import ipaddress
import struct

from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import ARP

from l2fwd.rules import Action, Match, Rule

LINKS = {"eth0": 3, "eth1": 4}
A, B = bytes.fromhex("02000000000a"), bytes.fromhex("02000000000b")
LINK_LOCAL = bytes.fromhex("0180c2000000")

macs = st.sampled_from([A, B, LINK_LOCAL])
vids = st.sampled_from([0, 1, 100, 4094])
port_numbers = st.sampled_from([0, 1, 79, 80, 81, 1023, 1024, 65535])
port_ranges = st.tuples(port_numbers, port_numbers).map(lambda pair: (min(pair), max(pair)))
v4_networks = st.builds(
    lambda a, n: ipaddress.IPv4Network((a, n), strict=False),
    st.sampled_from(["10.0.0.1", "10.0.0.2", "10.1.0.1", "0.0.0.0", "255.255.255.255"]),
    st.sampled_from([0, 8, 15, 31, 32]),
)
v6_networks = st.builds(
    lambda a, n: ipaddress.IPv6Network((a, n), strict=False),
    st.sampled_from(["2001:db8::1", "2001:db8::2", "2001:db9::1", "::", "a00:1::"]),
    st.sampled_from([0, 31, 32, 64, 127, 128]),
)


def rare(values):
    return st.one_of(st.none(), st.none(), values)


@st.composite
def matches(draw):
    fields = {
        "in_link": draw(rare(st.sampled_from(sorted(LINKS)))),
        "src_mac": draw(rare(macs)),
        "dst_mac": draw(rare(macs)),
        "vlan": draw(rare(st.lists(vids, max_size=2).map(tuple))),
    }
    kind = draw(st.sampled_from(["ethernet", "ip", "v4", "v6"]))
    if kind == "ethernet":
        types = st.sampled_from([0x0800, 0x0806, 0x86DD, 0x8100, 0x88B5])
        return Match(ethertype=draw(rare(types)), **fields)
    fields["proto"] = draw(st.none() | st.sampled_from([0, 1, 6, 17, 44, 50, 51, 58, 60, 132, 136]))
    if fields["proto"] in (6, 17, 132, 136):
        fields |= {"sport": draw(rare(port_ranges)), "dport": draw(rare(port_ranges))}
    if kind != "ip":
        networks = v4_networks if kind == "v4" else v6_networks
        ethertype = st.just(0x0800 if kind == "v4" else 0x86DD)
        fields |= {"src": draw(rare(networks)), "dst": draw(rare(networks))}
        if fields["proto"] is not None or fields["src"] or fields["dst"]:
            ip = st.sampled_from([0x0800, 0x86DD])
            known = fields["src"] is not None or fields["dst"] is not None
            fields["ethertype"] = draw(rare(ethertype if known else ip))
    return Match(**fields)


unicast = st.sampled_from([A, bytes.fromhex("000011223344")])
actions = st.one_of(
    st.builds(Action, kind=st.sampled_from(["drop", "pass", "user"])),
    st.builds(
        Action,
        kind=st.just("out"),
        out_link=st.sampled_from(sorted(LINKS)),
        swap_mac=st.booleans(),
        set_src_mac=st.none() | unicast,
        set_dst_mac=st.none() | unicast,
        pop_vlan=st.booleans(),
        push_vlan=st.none() | st.integers(1, 4094),
        dec_ttl=st.booleans(),
    ),
)
names = st.just("") | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}", fullmatch=True)
rules = st.builds(Rule, matches(), actions, names, st.integers(0, 65535))


def random_frame(rng):
    """Build a frame that the rules above may hit; some cut, some damaged, all from ``rng``."""
    macs = [A, B, LINK_LOCAL, bytes.fromhex("0180c2000010"), b"\xff" * 6]
    frame = rng.choice(macs) + rng.choice(macs)
    for _ in range(rng.choice([0, 0, 0, 1, 1, 2, 3, 5])):
        tci = rng.choice([0, 1, 100, 4094, 4095]) | rng.randrange(16) << 12
        frame += struct.pack(">HH", rng.choice([0x8100, 0x88A8, 0x9100]), tci)
    ethertype, packet = rng.choice([random_ipv4, random_ipv4, random_ipv6, random_other])(rng)
    frame += ethertype.to_bytes(2, "big") + packet + bytes(rng.choice([0, 0, 6, 30]))
    fate = rng.randrange(8)
    if fate == 0:
        return frame[: rng.randrange(len(frame) + 1)]
    if fate == 1:
        damaged = bytearray(frame)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        return bytes(damaged)
    return frame


def random_l4(rng):
    ports = [0, 1, 79, 80, 81, 1023, 1024, 1025, 65535]
    sport, dport = rng.choice(ports), rng.choice(ports)
    kind = rng.choice([TCP, UDP, 132, 136, 50, ICMP, None])
    if kind in (TCP, UDP):
        return (6 if kind is TCP else 17), bytes(kind(sport=sport, dport=dport))
    if kind in (132, 136, 50):
        return kind, struct.pack(">HH", sport, dport) + bytes(8)
    return (1, bytes(ICMP())) if kind is ICMP else (rng.randrange(256), b"")


def random_ipv4(rng):
    proto, l4 = random_l4(rng)
    addresses = ["10.0.0.1", "10.0.0.2", "10.1.0.1", "0.0.0.0", "255.255.255.255", "11.0.0.1"]
    header = IP(src=rng.choice(addresses), dst=rng.choice(addresses), proto=proto)
    header.options = b"\x01" * rng.choice([0, 0, 0, 4, 40])
    header.frag = rng.choice([0, 0, 0, 1, 8191])
    header.flags = rng.choice([0, "MF", "DF"])
    header.ttl = rng.choice([0, 1, 2, 64, 255])
    raw = bytearray(bytes(header / l4))
    if rng.random() < 0.2:
        raw[0] = rng.randrange(0x30, 0x60)
    if rng.random() < 0.1:
        raw[2:4] = rng.choice([0, 19, 20, 24, 1500, 65535]).to_bytes(2, "big")
    return 0x0800, bytes(raw)


def random_ipv6(rng):
    addresses = ["2001:db8::1", "2001:db8::2", "2001:db9::1", "::", "a00:1::"]
    proto, payload = random_l4(rng)
    for _ in range(rng.choice([0, 0, 1, 2, 7, 8, 9])):
        kind = rng.choice([0, 43, 44, 51, 60])
        if kind == 44:
            shape = IPv6ExtHdrFragment(nh=proto, offset=rng.choice([0, 0, 0, 0, 1, 8191]), m=1)
        elif kind == 51:
            size = rng.choice([1, 4, 5])
            shape = struct.pack(">BB", proto, size) + bytes((size + 2) * 4 - 2)
        else:
            layer = {0: IPv6ExtHdrHopByHop, 43: IPv6ExtHdrRouting, 60: IPv6ExtHdrDestOpt}[kind]
            shape = layer(nh=proto)
        proto, payload = kind, bytes(shape) + payload
    src, dst = rng.choice(addresses), rng.choice(addresses)
    header = IPv6(src=src, dst=dst, nh=proto, hlim=rng.choice([0, 1, 2, 255]))
    return 0x86DD, bytes(header) + payload


def random_other(rng):
    if rng.random() < 0.5:
        return 0x0806, bytes(ARP())
    ethertype = rng.choice([0x88B5, 0x8100, 0x0800, 0x86DD, 46, 0x05DC, 0x0600])
    return ethertype, rng.randbytes(rng.randrange(60))
