"""The key that both compilers match: what a frame shows to the rules, in 64 bytes.

A frame's key is filled as told below, by C, by Cython and by the tests alike; a rule becomes pairs
of (mask, key) over it.  Every field that a rule can name has a value for "not there" that no rule
can ask for, or a flag: so masked equality is the whole language.

What a frame shows to a rule
----------------------------
- A frame shorter than an Ethernet header (14 bytes) matches no rule, not even ``any``.
- A frame to 01:80:c2:00:00:00 .. 0f (link-local) matches only rules that name its ``dst_mac``.
- A tag is one of 8100, 88a8, 9100 with the four bytes that follow all in the frame.  The first two
  tags are read.  ``vlan none``: no tag; ``vlan 7``: the outermost VID is 7, whatever is inside;
  ``vlan 0``: a priority tag; ``vlan 7.9``: outermost 7, next 9.  The tag's protocol and
  priority bits do not matter.
- ``ethertype`` is the two bytes after these tags: of a third tag, or of one that is cut, its
  protocol.  In an 802.3 frame it is a length, below 0x0600, which no rule can name.
- IPv4 is ethertype 0x0800, version 4, header length >= 20, total length >= header length, and the
  header, options too, in the frame.  IPv6 is ethertype 0x86dd, version 6, 40 bytes in the frame.
  What fails this has no ``proto``, ``src``, ``dst`` or ports.  Nothing else bounds the packet but
  the frame: not IPv4's total length, not IPv6's payload length.
- ``proto`` is IPv4's protocol.  In IPv6 up to eight extension headers are stepped over, each
  wholly in the frame: hop-by-hop (0), routing (43), fragment (44), ah (51), destination options
  (60).  ``proto`` is the number where that stops: an upper protocol, a header that is cut, a
  ninth one, or, in a later fragment (offset > 0), what its fragment header names.
- ``sport`` and ``dport`` are the first four bytes after the IP headers when ``proto`` has ports,
  the four bytes are in the frame, and the packet is no later fragment.  Without them, no rule with
  ports matches, not even 0-65535.
"""

import sys
from collections.abc import Mapping
from struct import Struct
from typing import Final

from l2fwd.errors import ConfigError
from l2fwd.rule_words import Network, PortRange
from l2fwd.rules import Match, Rule

# Offset  Bytes  Field
#      0      4  in_ifindex   host byte order; all that follows is as on the wire, big-endian
#      4      6  dst_mac
#     10      6  src_mac
#     16      2  ethertype    after the first two tags
#     18      2  vlan_outer   VID, NO_VLAN without a tag
#     20      2  vlan_inner   VID, NO_VLAN without a second tag
#     22      1  proto        0 without IP
#     23      1  ip_version   4, 6, 0 without IP; IP_BIT is set in 4 and in 6
#     24      2  sport        0 without ports
#     26      2  dport        0 without ports
#     28      1  flags        HAS_PORTS, LINK_LOCAL
#     29      3  zero
#     32     16  src          IPv4 in the first four bytes, the rest zero
#     48     16  dst          the same
KEY: Final = Struct(">4s6s6sHHHBBHHB3x16s16s")
NO_VLAN: Final = 0xFFFF
IP_BIT: Final = 0x04
HAS_PORTS: Final = 0x01  # sport and dport were read
LINK_LOCAL: Final = 0x02  # dst_mac is 01:80:c2:00:00:00 .. 0f

_NO_ADDRESS: Final = (bytes(16), bytes(16))
_NO_PORTS: Final = ((0, 0),)


def expand_ports(ports: PortRange) -> list[tuple[int, int]]:
    """Return the fewest (value, mask) prefixes that cover a range, in ascending order.

    >>> [(value, hex(mask)) for value, mask in expand_ports((1, 4))]
    [(1, '0xffff'), (2, '0xfffe'), (4, '0xffff')]
    """
    first, last = ports
    found = []
    while first <= last:
        size = first & -first or 1 << 16
        while size > last - first + 1:
            size >>= 1
        found.append((first, 0x10000 - size))
        first += size
    return found


def _address(network: Network | None) -> tuple[bytes, bytes]:
    if network is None:
        return _NO_ADDRESS
    return network.netmask.packed.ljust(16, b"\0"), network.network_address.packed.ljust(16, b"\0")


def _ones(value: bytes | None, length: int) -> bytes:
    return bytes(length) if value is None else b"\xff" * length


def _ip_version(match: Match) -> tuple[int, int]:
    if match.family is not None:
        return 0xFF, match.family
    return (IP_BIT, IP_BIT) if match.proto is not None else (0, 0)


def key_masks(rule: Rule, ifindexes: Mapping[str, int]) -> list[tuple[bytes, bytes]]:
    """Return (mask, key) pairs: a frame matches iff ``its key & mask == key`` for one of them.

    Parameters
    ----------
    rule : Rule
    ifindexes : mapping of str to int
        Of every link that a match may name.

    Returns
    -------
    list of (bytes, bytes)
        64 bytes each, laid out as KEY.  One pair, unless a port range takes more prefixes; at
        most 30 * 30.

    Raises
    ------
    ConfigError
        If ``in`` names a link that is not in ``ifindexes``.
    """
    match = rule.match
    link, vids = match.in_link, match.vlan
    if link is not None and link not in ifindexes:
        raise ConfigError(f"in must be one of {', '.join(ifindexes)}, got {link!r}")
    in_ifindex = None if link is None else ifindexes[link].to_bytes(4, sys.byteorder)
    outer, inner = (None, None) if vids is None else (*(vids or (NO_VLAN,)), None)[:2]
    version_mask, version = _ip_version(match)
    src_mask, src = _address(match.src)
    dst_mask, dst = _address(match.dst)
    has_ports = HAS_PORTS if match.sport or match.dport else 0
    flags_mask = has_ports | (LINK_LOCAL if match.dst_mac is None else 0)
    mask_head = (
        _ones(in_ifindex, 4),
        _ones(match.dst_mac, 6),
        _ones(match.src_mac, 6),
        0 if match.ethertype is None else 0xFFFF,
        0 if outer is None else 0xFFFF,
        0 if inner is None else 0xFFFF,
        0 if match.proto is None else 0xFF,
        version_mask,
    )
    key_head = (
        in_ifindex or bytes(4),
        match.dst_mac or bytes(6),
        match.src_mac or bytes(6),
        match.ethertype or 0,
        outer or 0,
        inner or 0,
        match.proto or 0,
        version,
    )
    return [
        (
            KEY.pack(*mask_head, sport_mask, dport_mask, flags_mask, src_mask, dst_mask),
            KEY.pack(*key_head, sport, dport, has_ports, src, dst),
        )
        for sport, sport_mask in (expand_ports(match.sport) if match.sport else _NO_PORTS)
        for dport, dport_mask in (expand_ports(match.dport) if match.dport else _NO_PORTS)
    ]
