"""Packets to be made: what they look like, how many, how fast.  Values and bytes, no kernel.

All are UDP, over IPv4 or IPv6, in a VLAN or not.  One packet is a template; what differs from
packet to packet is at fixed places of it, and the rest of both checksums is worked out here.

>>> traffic = Traffic(payload="sequence", sources=100)
>>> template = traffic.template(bytes.fromhex("020000000001"))
>>> len(template.data), template.payload_at
(64, 42)
"""

import ipaddress
import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

from l2fwd.abi import ETHERNET_HEADER_BYTES, VLAN_TAG_BYTES
from l2fwd.errors import ConfigError
from l2fwd.words import check_unicast

# What stands first in the payload, by name: its bytes.  Big-endian.
PATTERN_ONLY: Final = struct.Struct("")
PKTGEN: Final = struct.Struct("!IIII")  # pgh_magic, seq_num, tv_sec, tv_usec of net/core/pktgen.c
NUMBERED: Final = struct.Struct("!IHQQ")  # magic, stream, number, CLOCK_MONOTONIC in ns
PAYLOADS: Final = {"pattern": PATTERN_ONLY, "tstamp": PKTGEN, "sequence": NUMBERED}
PKTGEN_MAGIC: Final = 0xBE9BE955
NUMBERED_MAGIC: Final = 0x6C326677  # MAGIC in _verifier.pyx
MAX_STREAM: Final = 0xFFFF
MAX_SOURCES: Final = (1 << 32) - 1  # counted in 32 bits

# Locally administered, and nobody's: a switch may flood it, no host's stack has to look at it.
DEFAULT_DST_MAC: Final = bytes.fromhex("020000000002")
# RFC 2544 and RFC 5180: for benchmarks.
DEFAULT_ADDRESSES: Final = {4: ("198.18.0.1", "198.19.0.1"), 6: ("2001:2::1", "2001:2:0:1::1")}
DEFAULT_PORT: Final = 4096  # xdpsock's, source and destination

_ETHERTYPE_VLAN: Final = 0x8100
_ETHERTYPES: Final = {4: 0x0800, 6: 0x86DD}
_IPV4: Final = struct.Struct("!BBHHHBBH4s4s")
_IPV6: Final = struct.Struct("!IHBB16s16s")
_UDP: Final = struct.Struct("!HHHH")
_IP_BYTES: Final = {4: _IPV4.size, 6: _IPV6.size}
_PROTOCOL_UDP: Final = 17
_HOPS: Final = 64

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Template(NamedTuple):
    """One packet, and what a generator has to know to make others of it.

    ``*_at`` are offsets in ``data``.  The sums are of 16-bit words, as both checksums take them:
    of all that is the same in every packet, the checksum itself excluded.
    """

    data: bytes
    source_at: int  # last four bytes of the source address
    port_at: int  # source port
    ip_check_at: int  # 0: IPv6 has none
    udp_check_at: int
    payload_at: int
    ip_sum: int
    udp_sum: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """UDP packets to be made.

    Attributes
    ----------
    size : int
        Bytes of each packet, Ethernet header and VLAN tag included, the check sequence not.
    count : int or None
        Packets to be made by all workers together; None: no end.
    rate : float or None
        Packets a second by all workers together; None: as fast as can be.
    cycle_us : int or None
        Instead of a rate: a batch from each worker every so many microseconds.
    pattern : int
        32 bits that fill the payload, over and over.
    payload : str
        What stands before them: nothing (``pattern``), the kernel's pktgen header with number and
        wall-clock time (``tstamp``), or what ``rxdrop --verify`` checks (``sequence``).
    vlan_id, vlan_priority : int or None, int
        Of the 802.1Q tag; None: no tag.
    dst_mac : bytes
    src_mac : bytes or None
        None: the link's own.
    src_ip, dst_ip : str or None
        Of one family; None: from the range for benchmarks, IPv4 unless the other is IPv6.
    src_port, dst_port : int
    sources, ports : int
        Flows: so many source addresses, from ``src_ip`` on, times so many source ports, from
        ``src_port`` on, one packet each in turn.

    Raises
    ------
    ConfigError
        If a value is out of range, or two contradict each other.
    """

    size: int = 64
    count: int | None = None
    rate: float | None = None
    cycle_us: int | None = None
    pattern: int = 0x12345678
    payload: str = "pattern"
    vlan_id: int | None = None
    vlan_priority: int = 0
    dst_mac: bytes = DEFAULT_DST_MAC
    src_mac: bytes | None = None
    src_ip: str | None = None
    dst_ip: str | None = None
    src_port: int = DEFAULT_PORT
    dst_port: int = DEFAULT_PORT
    sources: int = 1
    ports: int = 1

    def __post_init__(self) -> None:
        if self.payload not in PAYLOADS:
            raise ConfigError(f"payload must be one of {', '.join(PAYLOADS)}, got {self.payload!r}")
        if not 0 <= self.pattern < 1 << 32:
            raise ConfigError(f"tx-pkt-pattern must have 32 bits, got {self.pattern:#x}")
        self._check_pace()
        self._check_headers()
        self._check_flows()
        if self.size < self.header_bytes:
            raise ConfigError(
                f"tx-pkt-size must be at least {self.header_bytes} bytes for these headers, "
                f"got {self.size}"
            )

    def _check_pace(self) -> None:
        if self.count is not None and not 1 <= self.count < 1 << 63:
            raise ConfigError(
                f"tx-pkt-count must be at least 1, got {self.count}; leave it out for no end"
            )
        if self.rate is not None and not 0.001 <= self.rate <= 1e9:
            raise ConfigError(
                f"rate must be in [0.001, 1e9] packets a second, got {self.rate:g}; "
                "leave it out for as fast as can be"
            )
        if self.cycle_us is not None and not 1 <= self.cycle_us <= 10**9:
            raise ConfigError(f"tx-cycle must be in [1, 10^9] microseconds, got {self.cycle_us}")
        if self.rate is not None and self.cycle_us is not None:
            raise ConfigError("rate and tx-cycle both say how fast: give one of them")

    def _check_headers(self) -> None:
        if self.vlan_id is not None and not 0 <= self.vlan_id <= 4094:
            raise ConfigError(f"tx-vlan-id must be in [0, 4094], got {self.vlan_id}")
        if not 0 <= self.vlan_priority <= 7:
            raise ConfigError(f"tx-vlan-pri must be in [0, 7], got {self.vlan_priority}")
        for name, mac in (("tx-dmac", self.dst_mac), ("tx-smac", self.src_mac)):
            if mac is not None and len(mac) != 6:
                raise ConfigError(f"{name} must have six bytes, got {len(mac)}")
        if self.src_mac is not None:
            check_unicast(self.src_mac, "tx-smac")
        if self.addresses[0].is_multicast:
            raise ConfigError(f"src-ip must be an address of one host, got {self.src_ip}")

    def _check_flows(self) -> None:
        for name, port in (("src-port", self.src_port), ("dst-port", self.dst_port)):
            if not 0 <= port <= 65535:
                raise ConfigError(f"{name} must be in [0, 65535], got {port}")
        if not 1 <= self.ports <= 65536 - self.src_port:
            raise ConfigError(
                f"ports must be in [1, {65536 - self.src_port}] from src-port {self.src_port} on, "
                f"got {self.ports}"
            )
        room = min((1 << 32) - self.first_source, MAX_SOURCES)
        if not 1 <= self.sources <= room:
            raise ConfigError(
                f"sources must be in [1, {room}] from src-ip {self.addresses[0]} on, "
                f"got {self.sources}"
            )

    @property
    def addresses(self) -> tuple[Address, Address]:
        """Source and destination."""
        given = {
            name: _parse_ip(text, name)
            for name, text in (("src-ip", self.src_ip), ("dst-ip", self.dst_ip))
            if text is not None
        }
        families = {address.version for address in given.values()}
        if len(families) == 2:
            raise ConfigError(
                f"src-ip {self.src_ip} and dst-ip {self.dst_ip} are of two families; "
                "give two of IPv4 or two of IPv6"
            )
        source, target = DEFAULT_ADDRESSES[families.pop() if families else 4]
        return (
            given.get("src-ip", ipaddress.ip_address(source)),
            given.get("dst-ip", ipaddress.ip_address(target)),
        )

    @property
    def first_source(self) -> int:
        """Last 32 bits of the first source address."""
        return int(self.addresses[0]) & 0xFFFFFFFF

    @property
    def header_bytes(self) -> int:
        """Bytes before the pattern begins."""
        tag = VLAN_TAG_BYTES if self.vlan_id is not None else 0
        ip = _IP_BYTES[self.addresses[0].version]
        return ETHERNET_HEADER_BYTES + tag + ip + _UDP.size + PAYLOADS[self.payload].size

    def check_link(self, ifname: str, mtu: int, frame_size: int) -> None:
        """Refuse packets that a frame does not hold, or the link does not take.

        Raises
        ------
        ConfigError
        """
        if self.size > frame_size:
            raise ConfigError(
                f"tx-pkt-size must be at most frame-size {frame_size}, got {self.size}"
            )
        most = mtu + ETHERNET_HEADER_BYTES + (VLAN_TAG_BYTES if self.vlan_id is not None else 0)
        if self.size > most:
            raise ConfigError(
                f"tx-pkt-size must be at most {most} for the MTU of {ifname}, got {self.size}; "
                f"lower it, or raise the MTU: ip link set {ifname} mtu {mtu + self.size - most}"
            )

    def share(self, worker: int, workers: int) -> int | None:
        """Return how many of ``count`` packets one of so many workers makes; None: no end."""
        if self.count is None:
            return None
        return self.count // workers + (worker < self.count % workers)

    def template(self, link_mac: bytes, stream: int = 0) -> Template:
        """Lay out a packet; ``link_mac`` is the source unless another was given.

        ``stream`` is what a receiver tells one worker's numbers from another's by.
        """
        source, target = self.addresses
        ethernet = self._ethernet(link_mac)
        udp_at = len(ethernet) + _IP_BYTES[source.version]
        payload = self._payload(self.size - udp_at - _UDP.size, stream)
        # Ports and source address are patched: the sums are without them.
        udp_bytes = _UDP.size + len(payload)
        ip = _ip_header(source, target, udp_bytes)
        udp = _UDP.pack(0, self.dst_port, udp_bytes, 0)
        pseudo = target.packed + source.packed[:-4] + struct.pack("!HH", _PROTOCOL_UDP, udp_bytes)
        is_ipv4 = source.version == 4
        return Template(
            data=ethernet + ip + udp + payload,
            source_at=len(ethernet) + (12 if is_ipv4 else 20),
            port_at=udp_at,
            ip_check_at=len(ethernet) + 10 if is_ipv4 else 0,
            udp_check_at=udp_at + 6,
            payload_at=udp_at + _UDP.size,
            ip_sum=sum_of_words(ip) if is_ipv4 else 0,
            udp_sum=sum_of_words(pseudo) + sum_of_words(udp + payload),
        )

    def _ethernet(self, link_mac: bytes) -> bytes:
        source = self.src_mac or link_mac
        tag = b""
        if self.vlan_id is not None:
            tag = struct.pack("!HH", _ETHERTYPE_VLAN, self.vlan_priority << 13 | self.vlan_id)
        kind = _ETHERTYPES[self.addresses[0].version]
        return self.dst_mac + source + tag + kind.to_bytes(2, "big")

    def _payload(self, length: int, stream: int) -> bytes:
        head = b""
        if self.payload == "tstamp":
            head = PKTGEN.pack(PKTGEN_MAGIC, 0, 0, 0)
        elif self.payload == "sequence":
            head = NUMBERED.pack(NUMBERED_MAGIC, stream, 0, 0)
        body = length - len(head)
        return head + (self.pattern.to_bytes(4, "big") * (body // 4 + 1))[:body]


def sum_of_words(data: bytes) -> int:
    """Add up 16-bit words as RFC 1071 does, not yet inverted."""
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def _ip_header(source: Address, target: Address, udp_bytes: int) -> bytes:
    """Return the IP header, its checksum and the last four bytes of the source zero."""
    start = source.packed[:-4] + bytes(4)
    if source.version == 4:
        length = _IPV4.size + udp_bytes
        return _IPV4.pack(0x45, 0, length, 0, 0, _HOPS, _PROTOCOL_UDP, 0, start, target.packed)
    return _IPV6.pack(6 << 28, udp_bytes, _PROTOCOL_UDP, _HOPS, start, target.packed)


def _parse_ip(text: str, name: str) -> Address:
    try:
        if "%" in text:  # names a link of this host, and is not in a packet
            raise ValueError
        return ipaddress.ip_address(text)
    except ValueError:
        raise ConfigError(
            f"{name} must be an address like 198.18.0.1 or 2001:2::1, got {text!r}"
        ) from None
