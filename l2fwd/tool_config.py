"""Settings of the traffic tools that have some of their own."""

import ipaddress
import struct
from dataclasses import dataclass
from typing import Final

from l2fwd.config import ToolConfig
from l2fwd.errors import ConfigError

MAX_ANSWERED: Final = 1024  # addresses, in kern/echo.bpf.c


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoConfig(ToolConfig):
    """Answering ICMP echo, ARP and neighbour solicitation.

    Attributes
    ----------
    addresses : tuple of str
        IPv4 and IPv6, answered for on every link.
    any_address : bool
        Answer echo requests for any other address, too.
    in_kernel : bool
        The XDP program answers; there are no sockets.

    Raises
    ------
    ConfigError
    """

    addresses: tuple[str, ...] = ()
    any_address: bool = False
    in_kernel: bool = False

    def __post_init__(self) -> None:
        ToolConfig.__post_init__(self)
        if not self.addresses and not self.any_address:
            raise ConfigError("address is missing: name one with --address, or use --any-address")
        if len(self.addresses) > MAX_ANSWERED:
            raise ConfigError(f"address: {len(self.addresses)} given, {MAX_ANSWERED} are possible")
        for address in self.addresses:
            pack_address(address)

    @property
    def uses_sockets(self) -> bool:
        return not self.in_kernel

    @property
    def packed_addresses(self) -> tuple[bytes, ...]:
        """Each address once, as ``asked_address`` of kern/answer.h."""
        return tuple(dict.fromkeys(map(pack_address, self.addresses)))


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleConfig(ToolConfig):
    """Every n-th packet to the host stack, the others to the sockets.

    Attributes
    ----------
    every : int
        n, counted by queue; 1 leaves all packets to the host stack.
    answer : bool
        Echo requests that come to the sockets are answered, whatever address they are for.
    program : str
        A BPF object that decides in place of the built-in one, ``FILE`` or ``FILE:PROGRAM``, with
        an XSKMAP ``xsks_map``; empty for none.

    Raises
    ------
    ConfigError
    """

    every: int = 2
    answer: bool = False
    program: str = ""

    def __post_init__(self) -> None:
        ToolConfig.__post_init__(self)
        if not 1 <= self.every < 1 << 32:
            raise ConfigError(f"every must be in [1, {(1 << 32) - 1}], got {self.every}")


def pack_address(text: str) -> bytes:
    """Return ``asked_address`` of kern/answer.h: 16 bytes, then the version of IP.

    >>> pack_address("192.0.2.1").hex()
    'c000020100000000000000000000000004000000'

    Raises
    ------
    ConfigError
        If it is no address that one host can have.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ConfigError(f"address must be like 192.0.2.1 or 2001:db8::1, got {text!r}") from None
    if "%" in text:
        raise ConfigError(f"address {text}: leave out the link, it is LINK")
    # As is_unicast4 and is_unicast6 of kern/answer.h.
    reserved = address.version == 4 and (address.is_reserved or address.packed[0] == 0)
    if address.is_multicast or address.is_loopback or address.is_unspecified or reserved:
        raise ConfigError(f"address {text} cannot be one host's on a link")
    return struct.pack("=16sI", address.packed, address.version)
