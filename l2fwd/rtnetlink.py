"""Links, neighbours and routes as the kernel tells them, and word of their changes.

Made here, not by pyroute2: that takes 75 µs for a route, and a table of 100,000 is read again
whenever it changes.  All of it is about the network namespace of the calling thread.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from l2fwd.errors import kernel_error

# linux/rtnetlink.h
NEW_LINK: Final = 16
NEW_NEIGHBOUR: Final = 28
_GET_LINK: Final = 18
_GET_ROUTE: Final = 26
_GET_NEIGHBOUR: Final = 30
_GET_RULE: Final = 34
_ROUTE_MESSAGES: Final = frozenset((24, 25, 104, 105))  # routes, and next hops
_NEIGHBOUR_MESSAGES: Final = frozenset((28, 29))
# RTMGRP_LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE, RTNLGRP_NEXTHOP
_GROUPS: Final = 0x1 | 0x4 | 0x10 | 0x40 | 0x100 | 0x400 | 1 << 31

# linux/netlink.h
_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE: Final = struct.Struct("=HH")  # struct nlattr: length, type
_ATTRIBUTE_TYPE: Final = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_REQUEST: Final = 0x1
_DUMP: Final = 0x300
_CREATE: Final = 0x400
_ERROR: Final = 2
_DONE: Final = 3

_RECEIVE_BYTES: Final = 1 << 16
_MONITOR_BYTES: Final = 1 << 20

_LINK: Final = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change
_NEIGHBOUR: Final = struct.Struct("=B3xiHBB")  # struct ndmsg: family, index, state, flags, type
_ROUTE: Final = struct.Struct("=8BI")  # struct rtmsg
_NEXT_HOP: Final = struct.Struct("=HBBi")  # struct rtnexthop: length, flags, hops, index

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MASTER = 1, 3, 10
_NDA_DST, _NDA_LLADDR = 1, 2
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_MULTIPATH = 1, 4, 5, 6, 9
_RTA_TABLE, _RTA_VIA, _RTA_ENCAP = 15, 18, 22
_RTNH_DEAD: Final = 1
_ROUTE_CLONED: Final = 0x200
_NTF_USE: Final = 1

# linux/fib_rules.h: local, main and default, and what every rule has
_PLAIN_TABLES: Final = (255, 254, 253)
_FRA_TABLE: Final = 15
_PLAIN_RULE: Final = frozenset((6, 14, _FRA_TABLE, 21))  # PRIORITY, SUPPRESS_PREFIXLEN, PROTOCOL

# What changes: sets of these three.
ROUTES: Final = frozenset(("routes",))
NEIGHBOURS: Final = frozenset(("neighbours",))
LINKS: Final = frozenset(("links",))
EVERYTHING: Final = ROUTES | NEIGHBOURS | LINKS


class LinkEntry(NamedTuple):
    """A link: ``mac`` is empty where it has no Ethernet address; ``master`` is an ifindex, or 0."""

    ifindex: int
    name: str
    mac: bytes
    master: int


class NeighbourEntry(NamedTuple):
    """What the kernel knows of a neighbour; ``address`` has 4 or 16 bytes, ``state`` is NUD_*."""

    ifindex: int
    address: bytes
    mac: bytes
    state: int


class NextHop(NamedTuple):
    """Where a route goes; ``gateway`` is None for what is on the link itself."""

    ifindex: int
    gateway: bytes | None


class RouteEntry(NamedTuple):
    """A route as it is listed.

    ``family`` is 4 or 6; ``address`` has the bytes of ``length`` bits, or fewer; ``kind`` is RTN_*;
    ``is_plain`` means that nothing but the destination is looked at, and nothing is put around
    the packet.
    """

    family: int
    address: bytes
    length: int
    table: int
    kind: int
    metric: int
    hops: tuple[NextHop, ...]
    is_plain: bool


def read_links() -> list[LinkEntry]:
    """List all links."""
    found = []
    for body in _dump(_GET_LINK, _LINK.pack(0, 0, 0, 0, 0), "links"):
        _, _, ifindex, _, _ = _LINK.unpack_from(body)
        more = _attributes(body, _LINK.size)
        mac = more.get(_IFLA_ADDRESS, b"")
        name = os.fsdecode(more[_IFLA_IFNAME].rstrip(b"\0"))
        master = _number(more.get(_IFLA_MASTER), 0)
        found.append(LinkEntry(ifindex, name, mac if len(mac) == 6 else b"", master))
    return found


def read_neighbours() -> list[NeighbourEntry]:
    """List all neighbours, IPv4 and IPv6."""
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        for body in _dump(_GET_NEIGHBOUR, _NEIGHBOUR.pack(family, 0, 0, 0, 0), "neighbours"):
            _, ifindex, state, _, _ = _NEIGHBOUR.unpack_from(body)
            more = _attributes(body, _NEIGHBOUR.size)
            entry = NeighbourEntry(
                ifindex, more.get(_NDA_DST, b""), more.get(_NDA_LLADDR, b""), state
            )
            found.append(entry)
    return found


def read_routes() -> list[RouteEntry]:
    """List the routes of all tables, IPv4 and IPv6."""
    found = []
    for family, version in ((socket.AF_INET, 4), (socket.AF_INET6, 6)):
        for body in _dump(_GET_ROUTE, _ROUTE.pack(family, *(0,) * 8), "routes"):
            _, length, src_length, tos, table, _, _, kind, flags = _ROUTE.unpack_from(body)
            if body[0] != family or flags & (_ROUTE_CLONED | _RTNH_DEAD):
                continue  # without IPv6 a kernel answers with what else it has
            more = _attributes(body, _ROUTE.size)
            found.append(
                RouteEntry(
                    version,
                    more.get(_RTA_DST, b""),
                    length,
                    _number(more.get(_RTA_TABLE), table),
                    kind,
                    _number(more.get(_RTA_PRIORITY), 0),
                    tuple(_next_hops(more)),
                    not (src_length or tos or _RTA_ENCAP in more),
                )
            )
    return found


def has_policies() -> bool:
    """Tell whether routing looks at more than the tables local, main and default."""
    for family in (socket.AF_INET, socket.AF_INET6):
        for body in _dump(_GET_RULE, _ROUTE.pack(family, *(0,) * 8), "routing rules"):
            more = _attributes(body, _ROUTE.size)
            if _number(more.get(_FRA_TABLE), body[4]) not in _PLAIN_TABLES:
                return True
            if more.keys() - _PLAIN_RULE:
                return True
    return False


def _number(word: bytes | None, default: int) -> int:
    return default if word is None else int(struct.unpack("=I", word)[0])


def _gateway(more: dict[int, bytes]) -> bytes | None:
    via = more.get(_RTA_VIA)  # of the other family: its number in two bytes, then the address
    return via[2:] if via else more.get(_RTA_GATEWAY)


def _next_hops(more: dict[int, bytes]) -> Iterator[NextHop]:
    if _RTA_OIF in more:
        yield NextHop(_number(more[_RTA_OIF], 0), _gateway(more))
    listed = more.get(_RTA_MULTIPATH, b"")
    at = 0
    while at + _NEXT_HOP.size <= len(listed):
        length, flags, _, ifindex = _NEXT_HOP.unpack_from(listed, at)
        own = _attributes(listed[at : at + length], _NEXT_HOP.size)
        if not flags & _RTNH_DEAD and _RTA_ENCAP not in own:
            yield NextHop(ifindex, _gateway(own))
        at += max(_NEXT_HOP.size, length + 3 & ~3)


def ask_for_neighbours(wanted: Iterable[tuple[int, bytes]]) -> None:
    """Have the kernel resolve neighbours, or ask those that are stale whether they are there.

    Parameters
    ----------
    wanted : iterable of (int, bytes)
        Ifindex and address.  What cannot be asked for is left as it is.
    """
    with _netlink_socket() as sock:
        for ifindex, address in wanted:
            family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
            body = _NEIGHBOUR.pack(family, ifindex, 0, _NTF_USE, 0)
            body += _ATTRIBUTE.pack(_ATTRIBUTE.size + len(address), _NDA_DST) + address
            sock.send(_message(NEW_NEIGHBOUR, _REQUEST | _CREATE, body))


class Monitor:
    """Hears of every change from now on; see ``take``."""

    def __init__(self) -> None:
        self._socket = _netlink_socket(_GROUPS)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _MONITOR_BYTES)

    def take(self) -> frozenset[str]:
        """Return what has changed since the last call: ROUTES, NEIGHBOURS, LINKS; no waiting."""
        changed: frozenset[str] = frozenset()
        while True:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return changed
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # netlink_overrun: some were lost
                    raise kernel_error(error.errno or 0, "hear of", "changed routes") from None
                changed = EVERYTHING
                continue
            for kind, _ in _messages(data):
                changed |= _changed_by(kind)

    def close(self) -> None:
        self._socket.close()


def _changed_by(kind: int) -> frozenset[str]:
    if kind in _ROUTE_MESSAGES:
        return ROUTES
    if kind in _NEIGHBOUR_MESSAGES:
        return NEIGHBOURS
    return EVERYTHING  # the routes of a link that goes down go without a word (fib_sync_down_dev)


def _netlink_socket(groups: int = 0) -> socket.socket:
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        sock.bind((0, groups))
    except OSError as error:
        raise kernel_error(error.errno or 0, "open", "rtnetlink") from None
    return sock


def _message(kind: int, flags: int, body: bytes) -> bytes:
    body = body.ljust(len(body) + 3 & ~3, b"\0")
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, 0, 0) + body


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, at)
        yield kind, data[at + _HEADER.size : at + length]
        at += max(_HEADER.size, length + 3 & ~3)


def _attributes(body: bytes, at: int) -> dict[int, bytes]:
    found = {}
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        found[kind & _ATTRIBUTE_TYPE] = body[at + _ATTRIBUTE.size : at + length]
        at += max(_ATTRIBUTE.size, length + 3 & ~3)
    return found


def _dump(kind: int, body: bytes, what: str) -> Iterator[bytes]:
    with _netlink_socket() as sock:
        try:
            sock.send(_message(kind, _REQUEST | _DUMP, body))
            while True:
                for answer, found in _messages(sock.recv(_RECEIVE_BYTES)):
                    if answer == _DONE:
                        return
                    if answer == _ERROR:
                        number = -struct.unpack_from("=i", found)[0]
                        if number == errno.EAFNOSUPPORT or number == errno.EOPNOTSUPP:
                            return  # a kernel without IPv6 has none of it
                        raise OSError(number, os.strerror(number))
                    yield found
        except OSError as error:
            raise kernel_error(error.errno or 0, "read", what) from None
