"""Frames that mean harm, built byte by byte: what senders get wrong, and what attackers try.

Each is at least an Ethernet header long, as a veth takes nothing shorter.  Source addresses
tell most of them apart, so that each is a flow of its own to rules that look at those.
"""

import struct
from itertools import count, product

A, B = bytes.fromhex("02000000000a"), bytes.fromhex("02000000000b")
BROADCAST = b"\xff" * 6
NEXT_BRIDGE = [bytes.fromhex(f"0180c20000{last:02x}") for last in (0, 1, 2, 3, 0x0E, 0x0F)]
NEARLY = [bytes.fromhex(mac) for mac in ("0180c2000010", "0180c2000100", "0180c3000000")]
TAG_TYPES = (0x8100, 0x88A8, 0x9100)

TCP, UDP, ICMP, AH = 6, 17, 1, 51
EXTENSIONS = (0, 43, 44, 51, 60)

V4_SOURCE, V4_TARGET = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
V6_SOURCE = bytes.fromhex("20010db8000000000000000000000001")
V6_TARGET = bytes.fromhex("20010db8000000000000000000000002")

_serials = count(1)


def sender():
    """Return an address that no other frame has."""
    return b"\x02\x5e" + next(_serials).to_bytes(4, "big")


def ethernet(ethertype, payload=b"", *, dst=A, src=None, tags=()):
    """Return a frame; ``tags`` are (type, 16 bits) from the outermost."""
    frame = dst + (src or sender())
    for kind, tci in tags:
        frame += struct.pack(">HH", kind, tci)
    return frame + ethertype.to_bytes(2, "big") + payload


def internet_sum(data):
    """RFC 1071"""
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF


def ipv4(proto, payload=b"", *, version=4, ihl=None, length=None, options=b"", fragment=0, ttl=64,
         check=None, src=V4_SOURCE, dst=V4_TARGET):  # fmt: skip
    """Return an IPv4 packet; whatever is given is written, right or wrong."""
    ihl = 5 + len(options) // 4 if ihl is None else ihl
    length = 20 + len(options) + len(payload) if length is None else length
    head = struct.pack(">BBHHHBB", version << 4 | ihl, 0, length, 7, fragment, ttl, proto)
    rest = src + dst + options
    if check is None:
        check = internet_sum(head + b"\0\0" + rest)
    return head + check.to_bytes(2, "big") + rest + payload


def ipv6(proto, payload=b"", *, version=6, length=None, hops=64, src=V6_SOURCE, dst=V6_TARGET):
    length = len(payload) if length is None else length
    return struct.pack(">IHBB", version << 28, length & 0xFFFF, proto, hops) + src + dst + payload


def ports(sport, dport, size=8):
    """Return the header of any protocol with ports, zeroes behind them."""
    return struct.pack(">HH", sport, dport) + bytes(size - 4)


def extension(kind, follows, *, units=0, offset=0):
    """Return an IPv6 extension header; ``units`` is its length field, whatever that means."""
    if kind == 44:
        return struct.pack(">BBHI", follows, 0, offset << 3 | 1, 7)
    size = (units + 2) * 4 if kind == AH else (units + 1) * 8
    return struct.pack(">BB", follows, units) + bytes(size - 2)


def chain(kinds, payload=b"", last=TCP):
    """Return (first next-header, bytes) of extension headers one behind the other."""
    packet, follows = payload, last
    for kind in reversed(kinds):
        packet, follows = extension(kind, follows, units=2 if kind == AH else 0) + packet, kind
    return follows, packet


def valid():
    """Frames with nothing wrong about them, of every kind that the parsers look into."""
    options = b"\x01" * 7 + b"\0"
    first, extensions = chain((0, 43, 60), ports(9, 80, 20))
    two_tags = ((0x88A8, 100), (0x8100, 1))
    return [
        ethernet(0x0800, ipv4(TCP, ports(1000, 80, 20))),
        ethernet(0x0800, ipv4(UDP, ports(1000, 53) + b"abc", options=options)),
        ethernet(0x0800, ipv4(TCP, ports(1000, 443, 20)), tags=two_tags),
        ethernet(0x86DD, ipv6(UDP, ports(1000, 53))),
        ethernet(0x86DD, ipv6(first, extensions), tags=two_tags[1:]),
        arp(),
        ethernet(0x88B5, bytes(range(46))),
    ]


def arp(*, operation=1, target=V4_TARGET, dst=BROADCAST, src=None):
    src = src or sender()
    packet = struct.pack(">HHBBH", 1, 0x0800, 6, 4, operation) + src + V4_SOURCE + bytes(6) + target
    return ethernet(0x0806, packet, dst=dst, src=src)


def cut():
    """P1: valid frames, cut anywhere."""
    return [frame[:size] for frame in valid() for size in range(14, len(frame) + 1)]


def lying_ipv4():
    """P2, P3: header lengths, versions, total lengths and options that are not so."""
    tcp = ports(1000, 80, 20)
    frames = [ipv4(TCP, bytes(40) + tcp, ihl=ihl) for ihl in range(16)]
    frames += [ipv4(TCP, tcp, version=version) for version in range(16)]
    lengths = (0, 1, 19, 20, 21, 23, 24, 39, 40, 41, 60, 1500, 0x7FFF, 0xFFFF)
    frames += [ipv4(TCP, tcp, length=length) for length in lengths]
    frames += [ipv4(TCP, tcp, length=length, options=bytes(4)) for length in (20, 23, 24, 25)]
    for option in (b"\0", b"\x01", b"\x07\x27\x04", b"\x83\x03\x04", b"\x07\0", b"\x07\xff"):
        options = option.ljust(40, b"\0")
        frames += [ipv4(TCP, tcp, options=options[:size]) for size in range(4, 41, 4)]
    return [ethernet(0x0800, frame) for frame in frames]


def padded():
    """P2, P12: bytes behind the packet are the frame's, and stay; odd sizes too."""
    packets = [ipv4(ICMP, bytes(8)), ipv4(UDP, ports(1, 53)), ipv4(TCP, ports(1, 80, 20))]
    padding = bytes(range(0x80, 0xC0))
    frames = [packet + padding[:size] for packet in packets for size in (0, 1, 2, 3, 5, 18, 26, 64)]
    return [ethernet(0x0800, frame) for frame in frames]


def fragments():
    """P4: first, middle, last, overlapping, DF, and the last one of 65,535 bytes."""
    tcp = ports(1000, 80, 20)
    fields = (0, 0x2000, 0x2001, 0x2002, 0x0001, 0x0002, 0x1FFF, 0x3FFF, 0x4000, 0x6000, 0x8000)
    frames = [ethernet(0x0800, ipv4(TCP, tcp, fragment=field)) for field in fields]
    for offset in (0, 1, 2, 0x1FFF):
        packet = extension(44, TCP, offset=offset) + tcp
        frames.append(ethernet(0x86DD, ipv6(44, packet)))
        behind = extension(0, 44) + packet
        frames.append(ethernet(0x86DD, ipv6(0, behind)))
    return frames


def tagged():
    """P5: no tag to five, of each type, priority tags, and each cut in the last tag."""
    frames = []
    packet = ipv4(TCP, ports(1000, 80, 20))
    for depth in range(6):
        kinds = product(TAG_TYPES, repeat=min(depth, 2))
        for outer in kinds:
            tags = [(kind, vid) for kind, vid in zip(outer, (100, 1), strict=False)]
            tags += [(0x8100, 7)] * (depth - len(tags))
            whole = ethernet(0x0800, packet, tags=tags)
            frames.append(whole)
            frames += [whole[: 14 + 4 * depth - less] for less in range(4) if depth]
    for tci in (0x0000, 0xE000, 0x1000, 0x0FFF, 0xFFFF, 0xE064, 0x0001):
        frames.append(ethernet(0x0800, packet, tags=[(0x8100, tci)]))
    return frames


def chained_ipv6():
    """P6: extension headers in a row, too many, cut, too long; jumbograms; hop limit 0."""
    tcp = ports(1000, 80, 20)
    packets = []
    for kinds in [(kind,) * times for kind in EXTENSIONS for times in (1, 2, 8, 9)]:
        packets.append(chain(kinds, tcp))
    packets += [(kind, tcp) for kind in (50, 59, 135, 139, 253)]
    for kind, units in product((0, 43, 51, 60), (1, 3, 31, 127)):
        packets.append((kind, extension(kind, TCP, units=units) + tcp))
        packets.append((kind, struct.pack(">BB", TCP, 2 * units + 1) + tcp))
    frames = [ipv6(first, packet) for first, packet in packets]
    jumbo = struct.pack(">BBBBI", TCP, 0, 0xC2, 4, 70000)
    frames += [ipv6(0, jumbo + tcp, length=0), ipv6(0, jumbo, length=0xFFFF)]
    frames += [ipv6(TCP, tcp, hops=hops) for hops in (0, 1, 2, 255)]
    frames += [ipv6(TCP, tcp, version=version) for version in (0, 4, 5, 7, 15)]
    frames += [ipv6(TCP, tcp, length=length) for length in (0, 1, 19, 21, 0xFFFF)]
    mapped = bytes(10) + b"\xff\xff" + V4_TARGET
    frames.append(ipv6(TCP, tcp, dst=mapped))
    return [ethernet(0x86DD, frame) for frame in frames]


def ethertypes():
    """P7: of the lengths of 802.3, of protocols near those that are known, and of each protocol."""
    numbers = (0, 46, 0x05DC, 0x05FF, 0x0600, 0x07FF, 0x0801, 0x0805, 0x0807, 0x86DC, 0xFFFF)
    frames = [ethernet(number, ipv4(TCP, ports(1, 80, 20))) for number in numbers]
    return frames + [ethernet(0x0800, ipv4(proto, ports(1, 80, 20))) for proto in range(256)]


def for_the_next_bridge():
    """P8: ARP of all sorts, LLDP, BPDUs, PAUSE, and addresses that are nearly theirs."""
    frames = [arp(), arp(operation=2, dst=A), arp(target=V4_SOURCE), arp()[:20], arp()[:41]]
    frames += [arp() + bytes(18), arp(operation=0xFFFF)]
    lldp = bytes.fromhex("0207040200000000010403020000000602007800000000")
    llc = bytes.fromhex("424203000000000000") + bytes(34)
    for mac in NEXT_BRIDGE + NEARLY:
        frames += [ethernet(0x88CC, lldp, dst=mac), ethernet(len(llc), llc, dst=mac)]
        frames.append(ethernet(0x0800, ipv4(TCP, ports(1, 80, 20)), dst=mac))
        frames.append(ethernet(0x0800, ipv4(TCP, ports(1, 80, 20)), dst=mac, tags=[(0x8100, 100)]))
    pause = bytes.fromhex("0001ffff") + bytes(42)
    return [*frames, ethernet(0x8808, pause, dst=NEXT_BRIDGE[1])]


def odd_addresses(own):
    """P9: from everybody, from nobody, from ``own`` (the link's), to the same as from."""
    packet = ipv4(UDP, ports(1, 53))
    sources = [BROADCAST, bytes(6), bytes.fromhex("01005e000001"), NEXT_BRIDGE[0], own, A]
    targets = [BROADCAST, bytes(6), bytes.fromhex("333300000001"), own, B, A]
    return [ethernet(0x0800, packet, src=src, dst=dst) for src in sources for dst in targets]


def odd_sums():
    """P12: checksums right, wrong, 0 and 0xffff, where the TTL goes down by one."""
    frames = []
    for ttl, check in product((0, 1, 2, 3, 64, 128, 255), (None, 0, 1, 0xFEFF, 0xFF00, 0xFFFF)):
        frames.append(ethernet(0x0800, ipv4(UDP, ports(1, 53), ttl=ttl, check=check)))
    # Those whose sum is about to carry, or ends up as 0 or 0xffff.
    for last in range(0, 65536, 251):
        target = bytes((10, 9)) + last.to_bytes(2, "big")
        frames.append(ethernet(0x0800, ipv4(UDP, ports(1, 53), dst=target)))
    return frames


def all_of_them(own):
    """Return every frame; ``own`` is the MAC address of the link that they are sent to."""
    return [
        *cut(), *lying_ipv4(), *padded(), *fragments(), *tagged(), *chained_ipv6(), *ethertypes(),
        *for_the_next_bridge(), *odd_addresses(own), *odd_sums(),
    ]  # fmt: skip
