"""The kernel's routes, neighbours and links, kept fresh: read again once they have changed.

All of it is about the network namespace of the thread that asks.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from l2fwd import rtnetlink
from l2fwd.errors import ConfigError
from l2fwd.fib import Hop, Route, RoutedLink, Snapshot

# linux/neighbour.h
_NUD_STALE: Final = 0x04
_NUD_USABLE: Final = 0x02 | _NUD_STALE | 0x08 | 0x10 | 0x80  # and DELAY, PROBE, PERMANENT

# linux/rtnetlink.h
_TABLE_MAIN: Final = 254
_TABLE_LOCAL: Final = 255
_RTN_UNICAST: Final = 1

_FORWARDING: Final = {
    4: ("net.ipv4.ip_forward", Path("/proc/sys/net/ipv4/ip_forward")),
    6: ("net.ipv6.conf.all.forwarding", Path("/proc/sys/net/ipv6/conf/all/forwarding")),
}


def routed_families() -> tuple[list[int], list[str]]:
    """Return the families that the host forwards, 4 and 6, and the settings that are off.

    Raises
    ------
    ConfigError
        If it forwards none.
    """
    is_on = {family: _is_on(path) for family, (_, path) in _FORWARDING.items()}
    off = [name for family, (name, _) in _FORWARDING.items() if not is_on[family]]
    if len(off) == len(_FORWARDING):
        settings = " ".join(f"{name}=1" for name in off)
        raise ConfigError(f"this host does not forward; let it: sysctl -w {settings}")
    return [family for family, on in is_on.items() if on], off


def _is_on(setting: Path) -> bool:
    try:
        return setting.read_text().strip() != "0"
    except FileNotFoundError:  # a kernel without IPv6
        return False


class Routes:
    """The kernel's tables, as far as they concern some links.

    Parameters
    ----------
    names : sequence of str
        Of the links; those that are not there are left out until they are.
    families : sequence of int
        4, 6 or both.
    """

    def __init__(self, names: Sequence[str], families: Sequence[int]) -> None:
        self._names = frozenset(names)
        self._families = families
        self._monitor: rtnetlink.Monitor | None = None
        self._stale = rtnetlink.EVERYTHING  # what is to be read again
        self._links: dict[int, RoutedLink] = {}
        self._neighbours: list[rtnetlink.NeighbourEntry] = []
        self._routes: dict[int, list[Route]] = {}

    def open(self) -> None:
        """Begin to hear of changes.

        Raises
        ------
        KernelError
        """
        self._monitor = rtnetlink.Monitor()

    def close(self) -> None:
        """Hear of no more changes; a second call does nothing."""
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None

    def have_changed(self, tables: frozenset[str] = rtnetlink.EVERYTHING) -> bool:
        """Tell whether one of ``tables`` may differ from what was read last."""
        if self._monitor is not None:
            self._stale |= self._monitor.take()
        return not self._stale.isdisjoint(tables)

    def links(self) -> dict[int, RoutedLink]:
        """Return the links that are there, by ifindex; not ports of a bridge, a bond or a VRF."""
        if self._needs(rtnetlink.LINKS):
            found = rtnetlink.read_links()
            self._links = {
                each.ifindex: RoutedLink(each.name, each.mac)
                for each in found
                if each.name in self._names and each.mac and not each.master
            }
        return self._links

    def snapshot(self) -> Snapshot:
        """Return the tables as they are now.

        Raises
        ------
        KernelError
            If the kernel does not tell.
        """
        links = self.links()
        if self._needs(rtnetlink.ROUTES):
            self._routes = self._read_routes()
        usable = {
            (each.ifindex, each.address): each.mac
            for each in self._known_neighbours()
            if each.ifindex in links and each.state & _NUD_USABLE and _is_station(each.mac)
        }
        return Snapshot(links, self._routes, usable)

    def stale_neighbours(self) -> list[tuple[int, bytes]]:
        """Return those on the links that have not been heard of for a while.

        The kernel asks a stale neighbour whether it is there when it sends to it; it does not
        know of what we send.
        """
        links = self.links()
        return [
            (each.ifindex, each.address)
            for each in self._known_neighbours()
            if each.ifindex in links and each.state & _NUD_STALE
        ]

    def _needs(self, table: frozenset[str]) -> bool:
        needs = self.have_changed(table)
        self._stale -= table  # before it is read: what changes meanwhile is heard of
        return needs

    def _known_neighbours(self) -> list[rtnetlink.NeighbourEntry]:
        if self._needs(rtnetlink.NEIGHBOURS):
            self._neighbours = rtnetlink.read_neighbours()
        return self._neighbours

    def _read_routes(self) -> dict[int, list[Route]]:
        routes: dict[int, list[Route]] = {family: [] for family in self._families}
        for each in rtnetlink.read_routes():
            if each.family in routes and each.table in (_TABLE_MAIN, _TABLE_LOCAL):
                routes[each.family].append(_route(each))
        return routes


def _route(entry: rtnetlink.RouteEntry) -> Route:
    is_local = entry.table == _TABLE_LOCAL
    width = 4 if entry.family == 4 else 16
    goes_on = entry.kind == _RTN_UNICAST and entry.is_plain and not is_local
    return Route(
        int.from_bytes(entry.address.ljust(width, b"\0"), "big"),
        entry.length,
        entry.metric if entry.is_plain else -1,  # comes first: only the host can tell
        tuple(Hop(*hop) for hop in entry.hops) if goes_on else (),
        is_local,
    )


def _is_station(mac: bytes) -> bool:
    return len(mac) == 6 and not mac[0] & 1 and any(mac)
