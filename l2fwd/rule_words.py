"""The words of a rule: names, numbers, addresses and ports, read and written.

``read_x(word, field)`` raises ConfigError naming the field; ``x_word(value)`` is its inverse.
Ranges are checked by the value that holds the field (rules.py).
"""

import ipaddress
import re
from socket import AF_INET, AF_INET6, inet_pton
from typing import Final

from l2fwd.errors import ConfigError
from l2fwd.words import check_ifname

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
PortRange = tuple[int, int]

ETHERTYPES: Final = {
    "ip": 0x0800, "arp": 0x0806, "rarp": 0x8035, "ip6": 0x86DD, "pause": 0x8808, "slow": 0x8809,
    "mpls": 0x8847, "pppoe": 0x8864, "eapol": 0x888E, "lldp": 0x88CC, "ptp": 0x88F7,
}  # fmt: skip
PROTOS: Final = {
    "icmp": 1, "igmp": 2, "ipip": 4, "tcp": 6, "udp": 17, "gre": 47, "esp": 50, "ah": 51,
    "icmp6": 58, "ospf": 89, "pim": 103, "vrrp": 112, "sctp": 132, "udplite": 136,
}  # fmt: skip
PROTO_ALIASES: Final = {"ipv6-icmp": PROTOS["icmp6"]}
PORT_PROTOS: Final = frozenset(PROTOS[name] for name in ("tcp", "udp", "sctp", "udplite"))

MAX_PRIORITY: Final = 65535
MAX_VID: Final = 4094  # 4095 is reserved (802.1Q)
MIN_ETHERTYPE: Final = 0x0600  # below it is an 802.3 length

_ETHERTYPE_NAMES: Final = {number: name for name, number in ETHERTYPES.items()}
_PROTO_NAMES: Final = {number: name for name, number in PROTOS.items()}
_PROTO_NUMBERS: Final = PROTOS | PROTO_ALIASES

_NUMBER: Final = re.compile(r"[0-9]{1,5}")
_HEX: Final = re.compile(r"0x[0-9a-fA-F]{1,4}")
_PREFIX: Final = re.compile(r"([0-9a-fA-F:.]{2,45})(?:/([0-9]{1,3}))?")
_VIDS: Final = re.compile(r"([0-9]{1,4})(?:\.([0-9]{1,4}))?")
_PORTS: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")

_AN_ADDRESS: Final = (
    "an IPv4 or IPv6 address, or a prefix without host bits, like 192.168.0.0/16 or 2001:db8::/32"
)
_SOME_PORTS: Final = "a port or a range in 0 to 65535, like 80 or 1024-2047"
ALLOWED: Final = {
    "rule name": "1 to 63 letters, digits, '_', '.' and '-'",
    "priority": f"0 to {MAX_PRIORITY}",
    "in": "a link name",
    "src_mac": "six bytes",
    "dst_mac": "six bytes",
    "ethertype": f"0x{MIN_ETHERTYPE:04x} to 0xffff or one of {', '.join(ETHERTYPES)}",
    "vlan": f"none, a VID 0 to {MAX_VID}, or two like 100.200",
    "proto": f"0 to 255 or one of {', '.join(PROTOS)}",
    "src": _AN_ADDRESS,
    "dst": _AN_ADDRESS,
    "sport": _SOME_PORTS,
    "dport": _SOME_PORTS,
    "action": "out LINK, drop, pass or user",
    "out": "a link name",
    "set_src_mac": "six bytes",
    "set_dst_mac": "six bytes",
    "push_vlan": f"a VID 1 to {MAX_VID}",
}


def bad(field: str, got: object) -> ConfigError:
    shown = repr(got)
    if len(shown) > 60:
        shown = f"{shown[:57]}..."
    return ConfigError(f"{field} must be {ALLOWED[field]}, got {shown}")


def check_number(field: str, number: object, low: int, high: int) -> None:
    if not isinstance(number, int) or not low <= number <= high:
        raise bad(field, number)


def check_ethertype(number: object) -> None:
    if not isinstance(number, int) or not MIN_ETHERTYPE <= number <= 0xFFFF:
        raise bad("ethertype", hex(number) if isinstance(number, int) else number)


def check_link(field: str, name: object) -> None:
    if not isinstance(name, str) or name == "->" or name.startswith("#"):
        raise bad(field, name)
    check_ifname(name, field)


def check_mac(field: str, mac: object) -> None:
    if not isinstance(mac, bytes) or len(mac) != 6:
        raise bad(field, mac)


def proto_word(number: int) -> str:
    return _PROTO_NAMES.get(number) or str(number)


def ethertype_word(number: int) -> str:
    return _ETHERTYPE_NAMES.get(number) or f"0x{number:04x}"


def vlan_word(vids: tuple[int, ...]) -> str:
    return ".".join(map(str, vids)) or "none"


def network_word(network: Network) -> str:
    if network.prefixlen == network.max_prefixlen:
        return str(network.network_address)
    return str(network)


def ports_word(ports: PortRange) -> str:
    first, last = ports
    return str(first) if first == last else f"{first}-{last}"


def mac_word(mac: bytes) -> str:
    return mac.hex(":")


def read_link(word: str, field: str) -> str:
    return word  # checked by the value that takes it


def read_number(word: str, field: str) -> int:
    if not _NUMBER.fullmatch(word):
        raise bad(field, word)
    return int(word)


def read_ethertype(word: str, field: str) -> int:
    if word in ETHERTYPES:
        return ETHERTYPES[word]
    if not _HEX.fullmatch(word):
        raise bad(field, word)
    return int(word, 16)


def read_proto(word: str, field: str) -> int:
    number = _PROTO_NUMBERS.get(word)
    return read_number(word, field) if number is None else number


def read_vlan(word: str, field: str) -> tuple[int, ...]:
    if word == "none":
        return ()
    vids = _VIDS.fullmatch(word)
    if not vids:
        raise bad(field, word)
    return (int(vids[1]),) if vids[2] is None else (int(vids[1]), int(vids[2]))


def read_network(word: str, field: str) -> Network:
    found = _PREFIX.fullmatch(word)
    if not found:
        raise bad(field, word)
    try:
        # The constructors take text as well, at twice the time of a whole file of rules.
        if ":" in word:
            number = int.from_bytes(inet_pton(AF_INET6, found[1]))
            return ipaddress.IPv6Network((number, int(found[2] or 128)))
        number = int.from_bytes(inet_pton(AF_INET, found[1]))
        return ipaddress.IPv4Network((number, int(found[2] or 32)))
    except (OSError, ValueError):
        raise bad(field, word) from None


def read_ports(word: str, field: str) -> PortRange:
    ports = _PORTS.fullmatch(word)
    if not ports:
        raise bad(field, word)
    first = int(ports[1])
    return (first, first if ports[2] is None else int(ports[2]))
