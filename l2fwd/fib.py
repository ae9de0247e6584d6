"""Routes made into rules, so that the first rule that matches is the longest prefix.

What a rule forwards is what the kernel would forward by its tables ``local`` and ``main``, to a
neighbour whose MAC address is known.  All else is for the host stack, which answers, resolves
neighbours, fragments, and forwards what leaves by other links:

- addresses of the host itself; multicast, broadcast, link-local and loopback, also as a source;
- routes that are no unicast, look at more than the destination (TOS, a source prefix), or put
  something around the packet; routes by links that are not the job's;
- on a link's own prefix, neighbours that are not known; gateways that are not known.

Of several next hops the first usable one gets all.  Rules of the table ``local`` come before any of
``main``, as in the kernel.  Other tables, and routing policies, are not looked at.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Final, NamedTuple

from l2fwd.rule_words import Network
from l2fwd.rules import Action, Match, Rule, RuleTable

_BITS: Final = {4: 32, 6: 128}
_NETWORKS: Final[dict[int, type[IPv4Network] | type[IPv6Network]]] = {
    4: IPv4Network,
    6: IPv6Network,
}
_FOR_THE_HOST: Final = {
    4: ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32"),
    6: ("::/128", "::1/128", "fe80::/10", "ff00::/8"),
}
_LINK_LOCAL: Final = IPv6Network("fe80::/10")
_PASS: Final = Action(kind="pass")


class RoutedLink(NamedTuple):
    """A link of the job; ``mac`` has six bytes."""

    name: str
    mac: bytes


class Hop(NamedTuple):
    """Where a route goes: ``gateway`` has 4 or 16 bytes, or is None for what is on the link."""

    ifindex: int
    gateway: bytes | None


class Route(NamedTuple):
    """A prefix and where it goes: without ``hops``, to the host.

    ``prefix`` is the address as a number; ``is_local`` tells the table ``local``.
    """

    prefix: int
    length: int
    metric: int
    hops: tuple[Hop, ...]
    is_local: bool


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The kernel's tables, as far as they concern the job.

    Attributes
    ----------
    links : dict of int to RoutedLink
        The job's, by ifindex.
    routes : dict of int to list of Route
        By family, 4 and 6; of families that are not routed, none.
    neighbours : dict of (int, bytes) to bytes
        MAC address by ifindex and address: those on the job's links that can be sent to.
    """

    links: Mapping[int, RoutedLink]
    routes: Mapping[int, list[Route]]
    neighbours: Mapping[tuple[int, bytes], bytes]


@dataclass(frozen=True, slots=True)
class Routing:
    """Rules that route, and the gateways that nobody knows yet: ifindex and address."""

    rules: RuleTable
    unresolved: frozenset[tuple[int, bytes]]


class _Item(NamedTuple):
    """What decides about a prefix; in the order of looking at them."""

    prefix: int
    length: int
    turn: int  # at one prefix: what is the host's, then routes, then neighbours
    metric: int
    place: int
    route: Route | None
    neighbour: tuple[int, bytes] | None


class _Span(NamedTuple):
    """A prefix that later ones may lie in."""

    last: int
    is_local: bool
    connected: int  # ifindex of the link that it is on, or 0
    action: Action


_NOWHERE: Final = _Span(-1, False, 0, _PASS)


def route_rules(snapshot: Snapshot) -> Routing:
    """Return the rules that route as ``snapshot`` tells."""
    compiler = _Compiler(snapshot)
    found: dict[int, dict[tuple[int, int], Action]] = {
        family: compiler.actions(family, routes) for family, routes in snapshot.routes.items()
    }
    rules = RuleTable(_rules(snapshot.links.values(), found))
    return Routing(rules, frozenset(compiler.unresolved))


def _rules(
    links: Iterable[RoutedLink], found: Mapping[int, Mapping[tuple[int, int], Action]]
) -> Iterator[Rule]:
    for family, actions in found.items():
        networks = [(_NETWORKS[family](prefix), action) for prefix, action in actions.items()]
        for link in links if networks else ():
            if family == 6:
                yield Rule(_match(link, src=_LINK_LOCAL), _PASS, priority=1)
            for network, action in networks:
                yield Rule(_match(link, dst=network), action)


def _match(link: RoutedLink, src: Network | None = None, dst: Network | None = None) -> Match:
    """Match what is sent to the router itself: a VLAN is another link of the host's."""
    return Match(in_link=link.name, dst_mac=link.mac, vlan=(), src=src, dst=dst)


def _host_routes(family: int) -> Iterator[Route]:
    for text in _FOR_THE_HOST[family]:
        network = _NETWORKS[family](text)
        yield Route(int(network.network_address), network.prefixlen, 0, (), is_local=True)


class _Compiler:
    """Finds what becomes of each prefix; the shorter prefixes around it come first."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self.unresolved: set[tuple[int, bytes]] = set()
        self._actions: dict[tuple[int, bytes], Action] = {}  # one object for each neighbour

    def actions(self, family: int, routes: Iterable[Route]) -> dict[tuple[int, int], Action]:
        """Return the action of each (prefix, length) that differs from the prefix around it."""
        found: dict[tuple[int, int], Action] = {}
        around: list[_Span] = []
        seen = None
        for item in self._items(family, routes):
            while around and item.prefix > around[-1].last:
                around.pop()
            outer = around[-1] if around else _NOWHERE
            if outer.is_local:
                continue
            if item.neighbour is not None:
                if item.neighbour[0] == outer.connected:
                    found[item.prefix, item.length] = self._to(item.neighbour)
                continue
            if item[:3] == seen:
                continue  # the same prefix, of a higher metric
            seen = item[:3]
            assert item.route is not None
            span = self._span(family, item.route)
            if span.action is not outer.action:
                found[item.prefix, item.length] = span.action
            around.append(span)
        return found

    def _items(self, family: int, routes: Iterable[Route]) -> list[_Item]:
        bits = _BITS[family]
        items = [
            _Item(each.prefix, each.length, not each.is_local, each.metric, place, each, None)
            for place, each in enumerate((*_host_routes(family), *routes))
        ]
        items.extend(
            _Item(int.from_bytes(neighbour[1], "big"), bits, 2, 0, 0, None, neighbour)
            for neighbour in self._snapshot.neighbours
            if len(neighbour[1]) * 8 == bits
        )
        return sorted(items)

    def _span(self, family: int, route: Route) -> _Span:
        last = route.prefix | (1 << _BITS[family] - route.length) - 1
        if route.is_local:
            return _Span(last, True, 0, _PASS)
        for hop in route.hops:
            if hop.ifindex not in self._snapshot.links:
                continue
            if hop.gateway is None:
                return _Span(last, False, hop.ifindex, _PASS)
            gateway = hop.ifindex, hop.gateway
            if gateway in self._snapshot.neighbours:
                return _Span(last, False, 0, self._to(gateway))
            self.unresolved.add(gateway)
        return _Span(last, False, 0, _PASS)

    def _to(self, neighbour: tuple[int, bytes]) -> Action:
        action = self._actions.get(neighbour)
        if action is None:
            link = self._snapshot.links[neighbour[0]]
            action = self._actions[neighbour] = Action(
                kind="out",
                out_link=link.name,
                dec_ttl=True,
                set_src_mac=link.mac,
                set_dst_mac=self._snapshot.neighbours[neighbour],
            )
        return action
