"""Routes made into rules: judged by the longest prefix, as Python's ipaddress finds it."""

import ipaddress
import random

import pytest

from l2fwd.errors import ConfigError
from l2fwd.fib import Hop, Route, RoutedLink, Snapshot, route_rules
from l2fwd.rule_table import MAX_MASKS, compile_rules
from l2fwd.rules import parse_rule

MACS = {1: bytes.fromhex("020000000001"), 2: bytes.fromhex("020000000002")}
LINKS = {ifindex: RoutedLink(f"eth{ifindex}", mac) for ifindex, mac in MACS.items()}
FOREIGN = 9  # a link that is none of the job's
NETWORKS = {4: ipaddress.IPv4Network, 6: ipaddress.IPv6Network}
ADDRESSES = {4: ipaddress.IPv4Address, 6: ipaddress.IPv6Address}
# Few bits that differ, so that prefixes lie in one another.
FIRST = {4: int(ipaddress.IPv4Address("10.0.0.0")), 6: int(ipaddress.IPv6Address("2001:db8::"))}


def mac(number):
    return bytes([2, 1, 0, 0, 0, number])


def packed(text):
    return ipaddress.ip_address(text).packed


def route(prefix, *hops, metric=0, is_local=False):
    """``hops``: (ifindex, gateway or None)."""
    network = ipaddress.ip_network(prefix)
    hops = tuple(Hop(ifindex, gateway and packed(gateway)) for ifindex, gateway in hops)
    return Route(int(network.network_address), network.prefixlen, metric, hops, is_local)


def snapshot(*routes, neighbours=(), links=LINKS):
    """``neighbours``: (ifindex, address, number of its MAC)."""
    by_family = {4: [], 6: []}
    for text, each in routes:
        by_family[ipaddress.ip_network(text).version].append(each)
    known = {(ifindex, packed(address)): mac(number) for ifindex, address, number in neighbours}
    return Snapshot(links, by_family, known)


def simple(*routes, neighbours=()):
    """``routes``: (prefix, (ifindex, gateway), ...)."""
    return snapshot(*((r[0], route(*r)) for r in routes), neighbours=neighbours)


def fate(rules, address, in_link="eth1"):
    """Return (out link, MAC) of the first rule that takes ``address``, or "pass"."""
    address = ipaddress.ip_address(address)
    for rule in rules.ranked():
        match = rule.match
        if match.in_link != in_link or match.src is not None:
            continue
        if match.dst.version == address.version and address in match.dst:
            if rule.action.kind == "pass":
                return "pass"
            return rule.action.out_link, rule.action.set_dst_mac
    return "pass"


def oracle(snap, address):
    """What the kernel would do, found by looking at every route: the same answers as ``fate``."""
    if address.is_multicast or address.is_link_local or address.is_loopback:
        return "pass"
    if address.is_unspecified or (address.version == 4 and address.packed[0] == 0):
        return "pass"
    best = {True: None, False: None}
    for each in snap.routes[address.version]:
        network = NETWORKS[address.version]((each.prefix, each.length))
        if address in network:
            other = best[each.is_local]
            rank = (each.length, -each.metric)
            if other is None or rank > (other.length, -other.metric):
                best[each.is_local] = each
    if best[True] is not None or best[False] is None:
        return "pass"
    for hop in best[False].hops:
        if hop.ifindex not in snap.links:
            continue
        if hop.gateway is None:
            found = snap.neighbours.get((hop.ifindex, address.packed))
            return (snap.links[hop.ifindex].name, found) if found else "pass"
        if (hop.ifindex, hop.gateway) in snap.neighbours:
            return snap.links[hop.ifindex].name, snap.neighbours[hop.ifindex, hop.gateway]
    return "pass"


def random_snapshot(rng, family):
    bits = 32 if family == 4 else 128
    spread = 10  # bits that differ

    def address():
        return FIRST[family] + rng.getrandbits(spread)

    def hop():
        gateway = None
        if rng.random() < 0.6:
            gateway = address().to_bytes(bits // 8, "big")
        return Hop(rng.choice([1, 2, FOREIGN]), gateway)

    routes, neighbours = [], {}
    for _ in range(rng.randrange(60)):
        length = rng.choice([0, 8, *range(bits - spread, bits + 1)])
        prefix = address() >> bits - length << bits - length
        is_local = rng.random() < 0.1
        hops = () if is_local else tuple(hop() for _ in range(rng.randrange(3)))
        # One metric each: of equal ones the kernel keeps one only.
        routes.append(Route(prefix, length, len(routes), hops, is_local))
    rng.shuffle(routes)
    gateways = [h for each in routes for h in each.hops if h.gateway]
    for each in rng.sample(gateways, len(gateways) * 2 // 3):
        if each.ifindex in LINKS:
            neighbours[each.ifindex, each.gateway] = mac(rng.randrange(6))
    for _ in range(rng.randrange(20)):
        at = rng.choice([1, 2]), address().to_bytes(bits // 8, "big")
        neighbours[at] = mac(rng.randrange(6))
    return Snapshot(LINKS, {family: routes}, neighbours)


@pytest.mark.parametrize("family", [4, 6])
def test_the_first_rule_is_the_longest_prefix(family):
    rng = random.Random(family)
    seen = set()
    for _ in range(60):
        snap = random_snapshot(rng, family)
        rules = route_rules(snap).rules
        addresses = [FIRST[family] + rng.getrandbits(10) for _ in range(60)]
        addresses += [int.from_bytes(each, "big") for _, each in snap.neighbours]
        addresses += [each.prefix for each in snap.routes[family]]
        for number in addresses:
            address = ADDRESSES[family](number)
            expected = oracle(snap, address)
            assert fate(rules, address) == expected, (address, str(rules), snap)
            assert fate(rules, address, "eth2") == expected
            seen.add(expected if expected == "pass" else expected[0])
    assert seen == {"pass", "eth1", "eth2"}


@pytest.mark.parametrize("family", [4, 6])
def test_no_rule_says_what_the_prefix_around_it_says(family):
    rng = random.Random(family)
    for _ in range(20):
        rules = route_rules(random_snapshot(rng, family)).rules
        listed = [r for r in rules if r.match.in_link == "eth1" and r.match.dst is not None]
        for rule in listed:
            around = [
                other
                for other in listed
                if other is not rule and rule.match.dst.subnet_of(other.match.dst)
            ]
            closest = max(around, key=lambda other: other.match.dst.prefixlen, default=None)
            outer = closest.action.kind if closest else "pass"
            if outer == "pass":
                assert rule.action.kind == "out", str(rule)
            elif rule.match.dst.prefixlen < rule.match.dst.max_prefixlen:
                assert rule.action != closest.action, str(rule)


def test_the_rule_of_a_route_is_what_a_router_does():
    snap = simple(("0.0.0.0/0", (2, "10.2.0.1")), neighbours=[(2, "10.2.0.1", 7)])
    rules = route_rules(snap).rules
    wanted = parse_rule(
        "in eth1 dst_mac 02:00:00:00:00:01 vlan none dst 0.0.0.0/0 -> out eth2 dec_ttl "
        "set_src_mac 02:00:00:00:00:02 set_dst_mac 02:01:00:00:00:07"
    )
    assert wanted in rules
    assert fate(rules, "192.0.2.1") == ("eth2", mac(7))


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.1",
        "127.0.0.1",
        "169.254.1.1",
        "224.0.0.5",
        "239.1.2.3",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "ff02::1",
        "ff0e::1",
    ],
)
def test_what_is_never_routed_goes_to_the_host_also_under_a_default_route(address):
    snap = simple(
        ("0.0.0.0/0", (2, "10.2.0.1")), ("::/0", (2, "fe80::9")),
        ("169.254.1.0/24", (2, "10.2.0.1")),
        neighbours=[(2, "10.2.0.1", 7), (2, "fe80::9", 8), (2, "fe80::1", 1)],
    )  # fmt: skip
    rules = route_rules(snap).rules
    assert fate(rules, address) == "pass"
    assert fate(rules, "192.0.2.1") == ("eth2", mac(7))
    assert fate(rules, "2001:db8::1") == ("eth2", mac(8))


def test_a_link_local_source_goes_no_further():
    snap = simple(("::/0", (2, "fe80::9")), neighbours=[(2, "fe80::9", 8)])
    first = route_rules(snap).rules.ranked()[0]
    assert str(first.match.src) == "fe80::/10"
    assert first.action.kind == "pass"


def test_without_a_route_out_there_is_no_rule():
    snap = simple(
        ("10.0.0.0/8", (FOREIGN, "10.9.0.1")), ("10.1.0.0/16",), ("10.2.0.0/16", (2, None))
    )
    assert len(route_rules(snap).rules) == 0


def test_a_gateway_that_nobody_knows_is_told_and_left_to_the_host():
    snap = simple(("10.0.0.0/8", (2, "10.2.0.1")), ("::/0", (1, "fe80::9")))
    routing = route_rules(snap)
    assert routing.unresolved == {(2, packed("10.2.0.1")), (1, packed("fe80::9"))}
    assert len(routing.rules) == 0


def test_of_several_next_hops_the_first_usable_one_gets_all():
    hops = ((FOREIGN, "10.9.0.1"), (2, "10.2.0.1"), (1, "10.1.0.1"), (2, "10.2.0.2"))
    known = [(1, "10.1.0.1", 5), (2, "10.2.0.2", 6)]
    routing = route_rules(simple(("10.0.0.0/8", *hops), neighbours=known))
    assert fate(routing.rules, "10.3.0.1") == ("eth1", mac(5))


def test_an_ipv4_route_may_go_by_an_ipv6_gateway():
    snap = simple(("10.0.0.0/8", (2, "fe80::9")), neighbours=[(2, "fe80::9", 8)])
    assert fate(route_rules(snap).rules, "10.3.0.1") == ("eth2", mac(8))


def test_neighbours_are_forwarded_to_on_their_own_link_only():
    known = [(1, "10.1.0.7", 1), (2, "10.1.0.8", 2), (1, "10.9.0.1", 3)]
    rules = route_rules(simple(("10.1.0.0/24", (1, None)), neighbours=known)).rules
    assert fate(rules, "10.1.0.7") == ("eth1", mac(1))
    assert fate(rules, "10.1.0.8") == fate(rules, "10.1.0.9") == fate(rules, "10.9.0.1") == "pass"


def test_the_least_metric_counts():
    snap = snapshot(
        ("10.0.0.0/8", route("10.0.0.0/8", (1, "10.1.0.1"), metric=20)),
        ("10.0.0.0/8", route("10.0.0.0/8", (2, "10.2.0.1"), metric=10)),
        neighbours=[(1, "10.1.0.1", 1), (2, "10.2.0.1", 2)],
    )
    assert fate(route_rules(snap).rules, "10.3.0.1") == ("eth2", mac(2))


def test_the_table_local_comes_before_longer_prefixes_of_main():
    snap = snapshot(
        ("10.0.0.0/8", route("10.0.0.0/8", is_local=True)),
        ("10.1.0.0/16", route("10.1.0.0/16", (2, "192.0.2.1"))),
        ("0.0.0.0/0", route("0.0.0.0/0", (2, "192.0.2.1"))),
        neighbours=[(2, "192.0.2.1", 2)],
    )
    rules = route_rules(snap).rules
    assert fate(rules, "10.1.0.1") == "pass"
    assert fate(rules, "11.1.0.1") == ("eth2", mac(2))


def test_each_prefix_length_takes_one_mask_whatever_the_number_of_links():
    routes = [(f"10.0.0.0/{length}", (2, f"192.0.2.{length % 2 + 1}")) for length in range(8, 25)]
    snap = simple(*routes, neighbours=[(2, "192.0.2.1", 1), (2, "192.0.2.2", 2)])
    rules = route_rules(snap).rules
    compiled = compile_rules(rules.ranked(), {"eth1": 1, "eth2": 2}, 1000)
    assert len(compiled.masks) == 17
    assert len(rules) == len(compiled.entries) == 34


def test_more_prefix_lengths_than_masks_are_refused_by_name():
    routes = [(f"2001:db8::/{length}", (2, f"fe80::{length % 2 + 1}")) for length in range(32, 128)]
    snap = simple(*routes, neighbours=[(2, "fe80::1", 1), (2, "fe80::2", 2)])
    with pytest.raises(ConfigError, match=f"different masks, {MAX_MASKS} are possible"):
        compile_rules(route_rules(snap).rules.ranked(), {"eth1": 1, "eth2": 2}, 1000)
