"""What echo answers, written from the RFCs alone: slow and obvious."""

import ipaddress
import random
import struct

from scapy.layers.inet import ICMP, IP, checksum
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    in6_chksum,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Raw
from scapy.utils6 import in6_getnsma, in6_getnsmac, inet_pton

MAC = "02:00:00:00:00:99"  # of the link that answers
PEER = "02:00:00:00:00:01"
PEER4, PEER6 = "10.77.0.1", "2001:db8::1"
OURS4, OURS6 = "10.77.0.9", "2001:db8::9"
OTHER4, OTHER6 = "10.77.0.8", "2001:db8::8"


def solicited_node(target):
    """Return the group, and its MAC address, in which ``target`` is asked for."""
    group = in6_getnsma(inet_pton(10, target))
    return ipaddress.IPv6Address(group).compressed, in6_getnsmac(group)


def expected(frame, mac=MAC, addresses=(OURS4, OURS6), any_address=False):
    """Return the answer to a frame, or None; a wrong ICMP checksum is kept wrong, somehow."""
    ours = {ipaddress.ip_address(address) for address in addresses}
    mac = bytes.fromhex(mac.replace(":", ""))
    if len(frame) < 14 or frame[6] & 1 or not (frame[0] & 1 or frame[:6] == mac):
        return None
    at = 12
    if frame[12:14] in (b"\x81\x00", b"\x88\xa8"):
        at = 16
    if len(frame) < at + 2:
        return None
    ethertype = int.from_bytes(frame[at : at + 2], "big")
    head, body = frame[6:12] + mac + frame[12 : at + 2], frame[at + 2 :]
    if ethertype == 0x0806:
        answer = arp_answer(body, mac, ours)
    elif ethertype == 0x0800:
        answer = None if frame[0] & 1 else echo4_answer(body, ours, any_address)
    elif ethertype == 0x86DD and len(body) > 40 and body[40] == 135:
        return neighbour_answer(head, body, mac, ours)
    elif ethertype == 0x86DD:
        answer = None if frame[0] & 1 else echo6_answer(body, ours, any_address)
    else:
        answer = None
    return None if answer is None else head + answer


def one_host(address):
    """Tell whether an address can be one host's."""
    if address.version == 4:
        return address.packed[0] not in (0, 127) and address.packed[0] < 224
    return not address.is_multicast and int(address) != 0


def arp_answer(body, mac, ours):
    if len(body) < 28 or body[:8] != bytes.fromhex("0001080006040001") or body[8] & 1:
        return None
    sender, target = (ipaddress.IPv4Address(body[i : i + 4]) for i in (14, 24))
    if target not in ours or not (one_host(sender) or int(sender) == 0):
        return None
    reply = ARP(op=2, hwsrc=mac, psrc=str(target), hwdst=body[8:14], pdst=str(sender))
    return bytes(reply) + body[28:]


def echo4_answer(body, ours, any_address):
    if len(body) < 28 or body[0] != 0x45 or checksum(body[:20]) != 0:
        return None
    total = int.from_bytes(body[2:4], "big")
    fragment = int.from_bytes(body[6:8], "big") & 0x3FFF
    source, target = (ipaddress.IPv4Address(body[i : i + 4]) for i in (12, 16))
    if fragment or body[9] != 1 or not 28 <= total <= len(body) or body[20:22] != b"\x08\x00":
        return None
    if not (one_host(source) and one_host(target) and (any_address or target in ours)):
        return None
    packet = IP(body[:20])
    packet.src, packet.dst, packet.ttl = str(target), str(source), 64
    del packet.chksum
    message = ICMP(type=0, code=0) / Raw(body[28:total])
    message = bytes(message)[:4] + body[24:total]
    message = with_checksum(message, checksum(b"\0\0\0\0" + message[4:]))
    return bytes(packet)[:20] + message + body[total:]


def with_checksum(message, value):
    return message[:2] + struct.pack(">H", value) + message[4:]


def echo6_answer(body, ours, any_address):
    if len(body) < 48 or body[0] >> 4 != 6 or body[6] != 58 or body[40:42] != b"\x80\x00":
        return None
    length = int.from_bytes(body[4:6], "big")
    source, target = (ipaddress.IPv6Address(body[i : i + 16]) for i in (8, 24))
    if not 8 <= length <= len(body) - 40:
        return None
    if not (one_host(source) and one_host(target) and (any_address or target in ours)):
        return None
    head = body[:7] + b"\x40" + target.packed + source.packed
    message = b"\x81\0\0\0" + body[44 : 40 + length]
    check = in6_chksum(58, IPv6(src=str(target), dst=str(source)), message)
    return head + with_checksum(message, check) + body[40 + length :]


def neighbour_answer(head, body, mac, ours):
    length = int.from_bytes(body[4:6], "big")
    if len(body) < 64 or body[0] >> 4 != 6 or body[6] != 58 or body[7] != 255:
        return None
    if not 24 <= length <= min(len(body) - 40, 24 + 64) or body[41] != 0:
        return None
    source, group, target = (ipaddress.IPv6Address(body[i : i + 16]) for i in (8, 24, 48))
    options = options_of(body[64 : 40 + length])
    addressed = str(group) == solicited_node(str(target))[0] or (group == target and int(source))
    if options is None or (int(source) == 0 and 1 in options) or source.is_multicast:
        return None
    if not (addressed and one_host(target) and target in ours):
        return None
    if in6_chksum(58, IPv6(src=str(source), dst=str(group)), body[40 : 40 + length]) not in (
        0,
        0xFFFF,
    ):
        return None
    is_probe = int(source) == 0
    reply = IPv6(src=str(target), dst="ff02::1" if is_probe else str(source), hlim=255)
    reply /= ICMPv6ND_NA(R=0, S=not is_probe, O=1, tgt=str(target))
    reply /= ICMPv6NDOptDstLLAddr(lladdr=mac.hex(":"))
    if is_probe:
        head = bytes.fromhex("333300000001") + head[6:]
    return head + bytes(reply)


def options_of(data):
    """Return the kinds of options, or None if they are not well-formed."""
    kinds = []
    while data:
        if len(data) < 8 or not data[1] or len(data) < 8 * data[1]:
            return None
        kinds.append(data[0])
        data = data[8 * data[1] :]
    return kinds


def icmp_is_right(frame):
    """Tell whether the ICMP checksum of an echo or an advertisement is right, as scapy sees it."""
    packet = Ether(frame)
    if IP in packet:
        return checksum(bytes(packet[IP])[20 : packet[IP].len]) == 0
    if IPv6 in packet:
        whole = bytes(packet[IPv6])
        message = whole[40 : 40 + packet[IPv6].plen]
        # A message whose sum is right adds up to zero, which in6_chksum writes as all ones.
        return in6_chksum(58, IPv6(src=packet[IPv6].src, dst=packet[IPv6].dst), message) in (
            0,
            0xFFFF,
        )
    return True


# Questions


def ether(dst=MAC, vlan=None):
    return Ether(src=PEER, dst=dst) / Dot1Q(vlan=vlan) if vlan else Ether(src=PEER, dst=dst)


def echo4(dst=OURS4, vlan=None, mac=MAC, size=56, **ip):
    packet = ether(mac, vlan) / IP(src=PEER4, dst=dst, **ip) / ICMP(id=7, seq=9)
    return bytes(packet / Raw(bytes(i & 0xFF for i in range(size))))


def echo6(dst=OURS6, vlan=None, mac=MAC, size=56, **ip):
    data = bytes(i & 0xFF for i in range(size))
    packet = ether(mac, vlan) / IPv6(src=PEER6, dst=dst, **ip)
    return bytes(packet / ICMPv6EchoRequest(id=7, seq=9, data=data))


def arp(target=OURS4, vlan=None, mac="ff:ff:ff:ff:ff:ff", sender=PEER4):
    return bytes(ether(mac, vlan) / ARP(op=1, hwsrc=PEER, psrc=sender, pdst=target))


def solicit(target=OURS6, vlan=None, source=PEER6, unicast=False, option=True, mac=MAC):
    group, group_mac = solicited_node(target)
    packet = ether(mac if unicast else group_mac, vlan)
    packet /= IPv6(src=source, dst=target if unicast else group, hlim=255)
    packet /= ICMPv6ND_NS(tgt=target)
    return bytes(packet / ICMPv6NDOptSrcLLAddr(lladdr=PEER) if option else packet)


def questions(mac=MAC):
    """Return a question of each kind and shape that has an answer."""
    return [
        frame
        for vlan in (None, 7)
        for frame in (
            echo4(vlan=vlan, mac=mac),
            echo4(vlan=vlan, mac=mac, size=0) + bytes(14),  # padded to the least an Ethernet has
            echo4(vlan=vlan, mac=mac, size=1001, tos=4, ttl=1, id=77, flags="DF"),
            echo6(vlan=vlan, mac=mac),
            echo6(vlan=vlan, mac=mac, size=0),
            echo6(vlan=vlan, mac=mac, size=999, tc=8, fl=5, hlim=1),
            arp(vlan=vlan),
            arp(vlan=vlan, mac=mac) + bytes(18),
            arp(vlan=vlan, sender="0.0.0.0"),
            solicit(vlan=vlan),
            solicit(vlan=vlan, option=False),
            solicit(vlan=vlan, unicast=True, mac=mac),
            solicit(vlan=vlan, unicast=True, option=False, mac=mac),
            solicit(vlan=vlan, source="::", option=False),
        )
    ]


def not_for_us(mac=MAC):
    """Return what looks like a question and has no answer."""
    double = Ether(src=PEER, dst=mac) / Dot1Q(vlan=1) / Dot1Q(vlan=2)
    wrong_mac = "02:00:00:00:00:77"
    return [
        echo4(dst=OTHER4, mac=mac),
        echo6(dst=OTHER6, mac=mac),
        arp(target=OTHER4),
        solicit(target=OTHER6),
        echo4(mac=wrong_mac),
        echo6(mac=wrong_mac),
        echo4(mac="ff:ff:ff:ff:ff:ff"),
        echo6(mac="33:33:00:00:00:09"),
        arp(mac=wrong_mac),
        echo4(mac=mac, frag=3),
        echo4(mac=mac, flags="MF"),
        echo4(mac=mac, options=[b"\x01\x01\x01\x01"]),
        bytes(double / IP(src=PEER4, dst=OURS4) / ICMP()),
        bytes(ether(mac) / IP(src="224.0.0.1", dst=OURS4) / ICMP()),
        bytes(ether(mac) / IP(src=PEER4, dst=OURS4) / ICMP(type=0)),
        bytes(ether(mac) / IPv6(src=PEER6, dst=OURS6) / ICMPv6EchoReply()),
        bytes(ether(mac) / ARP(op=2, hwsrc=PEER, psrc=PEER4, pdst=OURS4)),
        solicit(source="::", option=True),
        solicit(source="::", unicast=True, option=False, mac=mac),
        solicit()[:-1],
    ]


def hostile(count, seed, mac=MAC):
    """Yield questions with bytes flipped, cut, grown and glued; many are mended again."""
    chance = random.Random(seed)
    corpus = questions(mac) + not_for_us(mac)
    for _ in range(count):
        frame = bytearray(chance.choice(corpus))
        for _ in range(chance.choice((0, 1, 1, 2, 8))):
            place = chance.randrange(min(len(frame), 100))
            frame[place] = chance.choice((0, 1, 0xFF, chance.randrange(256), frame[place] ^ 1))
        kind = chance.randrange(6)
        if kind == 0:
            del frame[chance.randrange(len(frame) + 1) :]
        elif kind == 1:
            frame += bytes(chance.randrange(256) for _ in range(chance.randrange(100)))
        elif kind == 2:
            mend(frame)
        yield bytes(frame)


def mend(frame):
    """Make the checksums right again, so that what else is wrong decides."""
    at = 18 if frame[12:14] == b"\x81\x00" else 14
    if frame[at - 2 : at] == b"\x08\x00" and len(frame) >= at + 20:
        frame[at + 10 : at + 12] = b"\0\0"
        frame[at + 10 : at + 12] = struct.pack(">H", checksum(bytes(frame[at : at + 20])))
    elif frame[at - 2 : at] == b"\x86\xdd" and len(frame) >= at + 64:
        length = int.from_bytes(frame[at + 4 : at + 6], "big")
        frame[at + 42 : at + 44] = b"\0\0"
        source, target = (str(ipaddress.IPv6Address(bytes(frame[at + i : at + i + 16])))
                          for i in (8, 24))  # fmt: skip
        message = bytes(frame[at + 40 : at + 40 + length])
        check = in6_chksum(58, IPv6(src=source, dst=target), message)
        frame[at + 42 : at + 44] = struct.pack(">H", check)
