"""Routing between two namespaces that have real routes through ours, judged by their own tools."""

import re
import shutil
import subprocess
import time

import pytest
from scapy.layers.inet import IP, UDP, IPOption_RR
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether

from l2fwd import link, rtnetlink
from l2fwd.config import ForwardConfig
from l2fwd.errors import ConfigError
from l2fwd.routes import Routes
from tests.test_bad_input import assert_one_line, run

pytestmark = pytest.mark.privileged

PATHS = [
    pytest.param(("--data-path", data_path, "--mode", mode), id=f"{data_path}-{mode}")
    for data_path in ("afxdp", "redirect", "hybrid")
    for mode in ("native", "skb")
]
ONE_OF_EACH = [PATHS[0], PATHS[2]]
SINK = {4: "10.2.0.2", 6: "fd00:2::2"}
GENERATOR = {4: "10.1.0.2", 6: "fd00:1::2"}
ROUTER = {4: "10.1.0.1", 6: "fd00:1::1"}
NEW_MAC = "02:00:00:00:00:77"
FORWARDING = ("ipv4/ip_forward", "ipv6/conf/all/forwarding")
ETH_P_ALL = 3


class Net:
    """gen (g0) -- fwd (f0, f1), a router -- sink (s0); both ends have their default route by it."""

    def __init__(self, bed):
        self.bed = bed
        self.fwd = bed.fwd
        for setting in FORWARDING:
            self.set(bed.fwd, setting, 1)
        for netns, ifname in ((bed.gen, "g0"), (bed.fwd, "f0"), (bed.fwd, "f1"), (bed.sink, "s0")):
            self.set(netns, f"ipv6/conf/{ifname}/accept_dad", 0)
            self.set(netns, f"ipv6/conf/{ifname}/disable_ipv6", 0)
            self.ip(
                netns, f"link set {ifname} promisc off", f"addr flush dev {ifname} scope global"
            )
        self.ip(bed.gen, "addr add 10.1.0.2/24 dev g0", "addr add fd00:1::2/64 dev g0 nodad",
                "route add default via 10.1.0.1", "route add default via fd00:1::1")  # fmt: skip
        self.ip(bed.fwd, "addr add 10.1.0.1/24 dev f0", "addr add fd00:1::1/64 dev f0 nodad",
                "addr add 10.2.0.1/24 dev f1", "addr add fd00:2::1/64 dev f1 nodad")  # fmt: skip
        self.ip(bed.sink, "link set lo up",
                "addr add 10.2.0.2/24 dev s0", "addr add fd00:2::2/64 dev s0 nodad",
                "route add default via 10.2.0.1", "route add default via fd00:2::1")  # fmt: skip

    @staticmethod
    def set(netns, setting, value):
        command = ["nsenter", f"--net=/run/netns/{netns}", "sh", "-c"]
        subprocess.run([*command, f"echo {value} > /proc/sys/net/{setting}"], check=True)

    @staticmethod
    def ip(netns, *lines):
        command = ["ip", "-n", netns, "-batch", "-"]
        subprocess.run(command, input="\n".join(lines) + "\n", text=True, check=True)

    @staticmethod
    def run(netns, *command):
        command = ["nsenter", f"--net=/run/netns/{netns}", *map(str, command)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return done.stdout + done.stderr

    def ping(self, address, *options, count=1, netns=None):
        """Return what ping says."""
        words = ("ping", "-n", "-c", count, "-i", 0.01, "-W", 1, *options, address)
        return self.run(netns or self.bed.gen, *words)

    def answers(self, address, **more):
        return " 0% packet loss" in self.ping(address, **more)

    def mac(self, netns, ifname):
        with link.in_netns(netns):
            return link.find_link(ifname).address


@pytest.fixture
def net(make_bed):
    return Net(make_bed())


@pytest.fixture
def route(forward, net):
    """Start l3fwd, and wait until it is ready."""

    def start(*options, **settings):
        more = {"verb": "l3fwd", "links": ("f0", "f1")} | settings
        return forward(net.bed, "-n", "0.05", *options, **more)

    return start


def forwarded(forwarder):
    """Return how many packets went its way by now, not the host's."""
    while not forwarder._queue.empty():
        forwarder.wait_for("stats")
    return forwarder.wait_for("stats")["forwarded"]


def until(condition, seconds=10):
    """Wait for ``condition`` to hold; return whether it did."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def takes_over(net, forwarder, address, **more):
    """Tell whether packets to ``address``, and the answers, come to be forwarded by us soon."""

    def both_ways():
        before = forwarded(forwarder)
        said = net.ping(address, count=5, **more)
        assert " 0% packet loss" in said, said
        return forwarded(forwarder) - before >= 10

    return until(both_ways)


@pytest.mark.parametrize("options", PATHS)
def test_both_ends_reach_each_other_through_us(net, route, options):
    forwarder = route(*options)
    for family in (4, 6):
        assert takes_over(net, forwarder, SINK[family])
        assert takes_over(net, forwarder, GENERATOR[family], netns=net.bed.sink)
        assert "ttl=63" in net.ping(SINK[family])
        assert net.answers(ROUTER[family])
    summary = forwarder.stop()
    assert summary["unaccounted"] == 0
    assert summary["drops"] == {}


@pytest.mark.parametrize("options", PATHS)
def test_traceroute_sees_the_hop(net, route, options):
    forwarder = route(*options)
    for family in (4, 6):
        assert takes_over(net, forwarder, SINK[family])
        said = net.ping(SINK[family], "-t", 1)
        assert re.search(rf"From {ROUTER[family]} .*(Time to live|Time) exceeded", said), said
        if shutil.which("traceroute"):
            said = net.run(net.bed.gen, "traceroute", "-n", "-q", 1, "-w", 2, SINK[family])
            hops = re.findall(r"^ *\d+  (\S+)", said, re.MULTILINE)
            assert hops == [ROUTER[family], SINK[family]], said


@pytest.mark.parametrize("options", PATHS)
def test_without_a_route_the_hosts_answer_comes_back(net, route, options):
    forwarder = route(*options)
    assert takes_over(net, forwarder, SINK[4])
    assert "From 10.1.0.1 icmp_seq=1 Destination Net Unreachable" in net.ping("10.9.0.1")
    assert "From fd00:1::1 icmp_seq=1 Destination unreachable" in net.ping("fd00:9::1")


@pytest.mark.parametrize("options", PATHS)
def test_a_route_changed_while_it_runs_takes_effect(net, route, options):
    forwarder = route(*options)
    net.ip(net.bed.sink, "addr add 10.9.0.1/32 dev lo", "addr add fd00:9::1/128 dev lo")
    for address, via, prefix in (
        ("10.9.0.1", "10.2.0.2", "10.9.0.0/24"),
        ("fd00:9::1", "fd00:2::2", "fd00:9::/64"),
    ):
        assert not net.answers(address)
        net.ip(net.fwd, f"route add {prefix} via {via}")
        assert takes_over(net, forwarder, address)
        net.ip(net.fwd, f"route del {prefix} via {via}", f"route add unreachable {prefix}")
        assert until(lambda address=address: "nreachable" in net.ping(address))
        net.ip(net.fwd, f"route del unreachable {prefix}", f"route add {prefix} via {via}")
        assert takes_over(net, forwarder, address)


@pytest.mark.parametrize("options", PATHS)
def test_a_longer_prefix_comes_first_also_when_it_comes_later(net, route, options):
    forwarder = route(*options)
    net.ip(net.fwd, "route add 10.8.0.0/16 via 10.2.0.2")
    net.ip(net.bed.sink, "addr add 10.8.1.1/32 dev lo", "addr add 10.8.2.1/32 dev lo")
    assert takes_over(net, forwarder, "10.8.1.1")
    net.ip(net.fwd, "route add prohibit 10.8.1.0/24")
    assert until(lambda: "Packet filtered" in net.ping("10.8.1.1"))
    assert takes_over(net, forwarder, "10.8.2.1")


@pytest.mark.parametrize("options", PATHS)
def test_a_neighbour_with_another_mac_is_followed(net, route, options):
    forwarder = route(*options)
    assert takes_over(net, forwarder, SINK[4])
    net.ip(net.bed.sink, f"link set s0 address {NEW_MAC}")
    # The same as the neighbour's own word, which comes when it likes.
    net.ip(net.fwd, f"neigh replace {SINK[4]} lladdr {NEW_MAC} dev f1 nud reachable")
    assert until(lambda: net.answers(SINK[4]))
    assert takes_over(net, forwarder, SINK[4])


@pytest.mark.parametrize("options", ONE_OF_EACH)
def test_our_own_link_may_get_another_mac(net, route, options):
    forwarder = route(*options)
    assert takes_over(net, forwarder, SINK[4])
    net.ip(net.fwd, f"link set f0 address {NEW_MAC}")
    net.ip(net.bed.gen, f"neigh replace 10.1.0.1 lladdr {NEW_MAC} dev g0 nud reachable")
    assert takes_over(net, forwarder, SINK[4])


@pytest.mark.parametrize("options", ONE_OF_EACH)
def test_a_link_that_goes_down_and_comes_up_is_routed_again(net, route, options):
    forwarder = route(*options)
    assert takes_over(net, forwarder, SINK[4])
    net.ip(net.fwd, "link set f1 down")
    assert until(lambda: "Unreachable" in net.ping(SINK[4]))
    net.ip(net.fwd, "link set f1 up")
    assert until(lambda: net.answers(SINK[4]))
    assert takes_over(net, forwarder, SINK[4])


@pytest.mark.parametrize("options", ONE_OF_EACH)
def test_a_link_made_anew_is_routed_again(net, route, options):
    forwarder = route(*options)
    assert takes_over(net, forwarder, SINK[4])
    net.ip(net.fwd, "link del f1")
    assert until(lambda: "Unreachable" in net.ping(SINK[4]))
    link.create_veth((net.bed.sink, "s0"), (net.fwd, "f1"))
    for netns, ifname in ((net.bed.sink, "s0"), (net.fwd, "f1")):
        net.run(netns, "ethtool", "-K", ifname, "tx", "off", "txvlan", "off", "gro", "on")
        net.ip(netns, f"link set {ifname} up")
        net.run(netns, "ethtool", "-K", ifname, "gro", "off")
        net.run(netns, "ethtool", "-K", ifname, "gro", "on")
    net.ip(net.fwd, "addr add 10.2.0.1/24 dev f1")
    net.ip(net.bed.sink, "addr add 10.2.0.2/24 dev s0", "route add default via 10.2.0.1")
    assert until(lambda: net.answers(SINK[4]))
    assert takes_over(net, forwarder, SINK[4])


@pytest.mark.parametrize("options", PATHS)
def test_what_is_too_long_for_the_next_link_the_host_answers(net, route, options):
    for netns, ifname in ((net.fwd, "f1"), (net.bed.sink, "s0")):
        net.ip(netns, f"link set {ifname} mtu 1400")
    forwarder = route(*options)
    for family, words, headers in ((4, "mtu = 1400", 28), (6, "mtu=1400", 48)):
        assert takes_over(net, forwarder, SINK[family])
        before = forwarded(forwarder)
        said = net.ping(SINK[family], "-M", "do", "-s", 1401 - headers)
        assert words in said, said
        assert forwarded(forwarder) == before
        assert " 0% packet loss" in net.ping(SINK[family], "-M", "do", "-s", 1400 - headers)
        assert forwarded(forwarder) >= before + 2
    assert net.answers(GENERATOR[4], netns=net.bed.sink)
    assert " 0% packet loss" in net.ping(SINK[4], "-M", "dont", "-s", 1440)
    assert forwarder.stop()["drops"] == {}


def test_the_links_are_not_promiscuous(net, route):
    route()
    with link.in_netns(net.fwd):
        assert not link.find_link("f0").is_promiscuous
        assert not link.find_link("f1").is_promiscuous


@pytest.mark.parametrize("options", ONE_OF_EACH)
def test_more_than_two_links(net, route, options):
    third = (net.bed.gen, "g2"), (net.fwd, "f2")
    link.create_veth(*third)
    for netns, ifname in third:
        net.ip(netns, f"link set {ifname} up")
        for gro in ("off", "on"):
            words = ("tx", "off", "txvlan", "off", "gro", gro)
            net.run(netns, "ethtool", "-K", ifname, *words)
    net.ip(net.fwd, "addr add 10.3.0.1/24 dev f2", "route add 10.9.0.0/24 via 10.3.0.2")
    net.ip(net.bed.gen, "addr add 10.3.0.2/24 dev g2", "addr add 10.9.0.1/32 dev lo",
           "link set lo up")  # fmt: skip
    for ifname in ("all", "g0", "g2"):  # two ways to one host
        net.set(net.bed.gen, f"ipv4/conf/{ifname}/rp_filter", 0)
    forwarder = route(*options, links=("f0", "f1", "f2"))
    assert takes_over(net, forwarder, "10.9.0.1", netns=net.bed.sink)
    assert takes_over(net, forwarder, SINK[4])


# Bytes, by raw sockets


def router_mac(net):
    return net.mac(net.fwd, "f0")


def frame_to(net, *, dst_mac=None, **ip):
    ether = Ether(dst=dst_mac or router_mac(net), src=net.mac(net.bed.gen, "g0"))
    return ether / IP(src=GENERATOR[4], dst=SINK[4], **ip) / UDP(sport=1000, dport=2000) / b"data"


def raw(netns, ifname):
    import socket

    with link.in_netns(netns):
        end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        end.bind((ifname, ETH_P_ALL))
    end.settimeout(0.3)
    return end


def arrivals(end):
    """Return the UDP packets to port 2000 that arrive."""
    found = []
    while True:
        try:
            data, (_, _, kind, *_) = end.recvfrom(65536)
        except TimeoutError:
            return found
        packet = Ether(data)
        if kind != 4 and UDP in packet and packet[UDP].dport == 2000:
            found.append(packet)


@pytest.mark.parametrize("options", PATHS)
def test_a_routed_packet_is_one_hop_older_and_else_the_same(net, route, options):
    forwarder = route(*options)
    assert takes_over(net, forwarder, SINK[4])
    assert takes_over(net, forwarder, SINK[6])
    packets = [frame_to(net, ttl=ttl, tos=4, id=ttl) for ttl in (2, 64, 255)]
    packets += [frame_to(net, flags="MF", ttl=9)]
    ether = Ether(dst=router_mac(net), src=net.mac(net.bed.gen, "g0"))
    ip6 = IPv6(src=GENERATOR[6], dst=SINK[6], hlim=7, fl=0x12345)
    packets.append(ether / ip6 / UDP(sport=1000, dport=2000) / b"data")
    before = forwarded(forwarder)
    with raw(net.bed.gen, "g0") as left, raw(net.bed.sink, "s0") as right:
        for packet in packets:
            left.send(bytes(packet))
        found = arrivals(right)
    assert forwarded(forwarder) - before >= len(packets)
    expected = []
    for packet in packets:
        packet = packet.copy()
        packet.src, packet.dst = net.mac(net.fwd, "f1"), net.mac(net.bed.sink, "s0")
        if IP in packet:
            packet[IP].ttl -= 1  # and the checksum is made anew
        else:
            packet[IPv6].hlim -= 1
        expected.append(bytes(packet))
    assert [bytes(each) for each in found] == expected


@pytest.mark.parametrize("options", PATHS)
def test_one_link_is_a_router_on_a_stick(net, route, options):
    net.ip(net.fwd, f"neigh add 10.1.0.9 lladdr {NEW_MAC} dev f0 nud permanent",
           "route add 10.9.0.0/24 via 10.1.0.9")  # fmt: skip
    forwarder = route(*options, links=("f0",))
    packet = frame_to(net, ttl=9)
    packet[IP].dst = "10.9.0.5"
    before = forwarded(forwarder)
    with raw(net.bed.gen, "g0") as end:
        end.send(bytes(packet))
        (found,) = arrivals(end)
    assert forwarded(forwarder) == before + 1
    assert (found.dst, found[IP].ttl) == (NEW_MAC, 8)


@pytest.mark.parametrize("options", PATHS)
def test_what_is_for_another_station_or_on_a_vlan_is_not_routed(net, route, options):
    forwarder = route(*options)
    assert takes_over(net, forwarder, SINK[4])
    net.ip(net.bed.gen, "link set g0 promisc on")
    strangers = [
        frame_to(net, dst_mac="02:00:00:00:00:99"),
        frame_to(net, dst_mac="ff:ff:ff:ff:ff:ff"),
    ]
    tagged = frame_to(net)
    tagged = Ether(bytes(tagged)[:12] + bytes.fromhex("81000007") + bytes(tagged)[12:])
    assert Dot1Q in tagged
    before = forwarded(forwarder)
    with raw(net.bed.gen, "g0") as left, raw(net.bed.sink, "s0") as right:
        for packet in (*strangers, tagged):
            left.send(bytes(packet))
        assert arrivals(right) == []
    assert forwarded(forwarder) == before


def test_ipv4_options_are_for_the_host(net, route):
    forwarder = route("--data-path", "redirect")
    assert takes_over(net, forwarder, SINK[4])
    before = forwarded(forwarder)
    with raw(net.bed.gen, "g0") as left, raw(net.bed.sink, "s0") as right:
        left.send(bytes(frame_to(net, options=[IPOption_RR(routers=["0.0.0.0"] * 2)])))
        (found,) = arrivals(right)
    assert found[IP].options[0].routers[0] == "10.2.0.1"  # the host wrote itself down
    assert forwarded(forwarder) == before


# Neighbours


def neighbour_state(net, address):
    (state,) = re.findall(r"(\w+)\s*$", net.run(net.fwd, "ip", "neigh", "show", address))
    return state


@pytest.mark.parametrize("options", ONE_OF_EACH)
def test_a_stale_neighbour_is_asked_after(net, route, options):
    forwarder = route(*options)
    assert takes_over(net, forwarder, SINK[4])
    net.ip(
        net.fwd, f"neigh replace {SINK[4]} lladdr {net.mac(net.bed.sink, 's0')} dev f1 nud stale"
    )
    assert until(lambda: neighbour_state(net, SINK[4]) != "STALE", seconds=15)


def test_a_gateway_that_nobody_has_talked_to_is_looked_for(net, route):
    net.ip(net.fwd, "neigh flush dev f1", f"route add 10.9.0.0/24 via {SINK[4]}")
    route()
    assert until(lambda: SINK[4] in net.run(net.fwd, "ip", "neigh", "show", "nud", "reachable"))


# What is refused


def run_l3fwd(net, *words):
    return run("l3fwd", *words, netns=net.fwd)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], ["link is missing"]),
        (["f0", "f0"], ["f0 is named twice"]),
        (["f0", "f1", "f0"], ["f0 is named twice"]),
        (["f0", "nosuch0"], ["nosuch0", "does not exist"]),
        (["f0", "f1", "--data-path", "fast"], ["data-path", "afxdp"]),
        (["f0", "f1", "--data-path", "redirect", "--ring-size", "64"], ["ring-size", "sockets"]),
        (["f0", "f1", "--queues", "7"], ["queue 7"]),
        (["f0", "f1", "--pin", "/sys/fs/bpf/x"], ["--pin"]),
        (["f0", "f1", "--duration", "-1"], ["duration"]),
    ],
)
def test_bad_input_is_named_in_one_line(net, words, said):
    assert_one_line(run_l3fwd(net, *words), 2, *said)


def test_a_link_that_is_down_is_refused_with_the_command_that_mends_it(net):
    net.ip(net.fwd, "link set f1 down")
    for data_path in ("afxdp", "redirect"):
        done = run_l3fwd(net, "f0", "f1", "--data-path", data_path)
        assert_one_line(done, 2, "ip link set f1 up")


@pytest.mark.parametrize("data_path", ["afxdp", "redirect"])
def test_a_host_that_does_not_forward_is_refused_with_the_setting(net, data_path):
    for setting in FORWARDING:
        net.set(net.fwd, setting, 0)
    done = run_l3fwd(net, "f0", "f1", "--data-path", data_path)
    assert_one_line(done, 2, "sysctl -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")


@pytest.mark.parametrize("options", ONE_OF_EACH)
def test_a_family_that_the_host_does_not_forward_is_left_to_it(net, route, options):
    net.set(net.fwd, FORWARDING[1], 0)
    forwarder = route(*options)
    warning = forwarder.wait_for("warning")["message"]
    assert "net.ipv6.conf.all.forwarding is off" in warning
    assert takes_over(net, forwarder, SINK[4])
    assert not net.answers(SINK[6])


def many_routes(first, last):
    vias = ("fd00:2::2", "fd00:2::3")
    return [f"route add 2001:db8::/{n} via {vias[n % 2]}" for n in range(first, last)]


def test_more_prefix_lengths_than_masks_are_refused_or_left_to_the_host(net, route):
    for address, mac in (("fd00:2::2", net.mac(net.bed.sink, "s0")), ("fd00:2::3", NEW_MAC)):
        net.ip(net.fwd, f"neigh replace {address} lladdr {mac} dev f1 nud permanent")
    forwarder = route()
    assert takes_over(net, forwarder, SINK[4])
    net.ip(net.fwd, *many_routes(32, 120))
    warning = forwarder.wait_for("warning")["message"]
    assert "64 are possible" in warning
    assert "--data-path redirect" in warning
    assert net.answers(SINK[4])
    net.ip(net.fwd, *(line.replace("add", "del") for line in many_routes(40, 120)))
    assert takes_over(net, forwarder, SINK[4])
    forwarder.stop()
    net.ip(net.fwd, *many_routes(40, 120))
    assert_one_line(run_l3fwd(net, "f0", "f1"), 2, "64 are possible", "--data-path redirect")


def test_routing_policies_are_warned_of(net, route):
    net.ip(net.fwd, "rule add from 10.1.0.2 lookup 100")
    assert "ip rule" in route().wait_for("warning")["message"]


def test_a_routed_job_takes_no_rules_of_its_own():
    with pytest.raises(ConfigError, match="of its own"):
        ForwardConfig(in_link="f0", out_link="f1", routed=True, one_way=True)


def test_a_port_of_a_bridge_is_left_to_the_host(net):
    with link.in_netns(net.fwd):
        routes = Routes(("f0", "f1", "lo"), [4])
        assert {each.name for each in routes.links().values()} == {"f0", "f1", "lo"}
        net.ip(net.fwd, "link add br0 type bridge", "link set f0 master br0")
        routes = Routes(("f0", "f1"), [4])
        assert {each.name for each in routes.links().values()} == {"f1"}


def test_every_queue_is_routed(make_bed, forward):
    net = Net(make_bed(queues=2))
    forwarder = forward(net.bed, "-n", "0.05", verb="l3fwd")
    assert len(forwarder.events[0]["sockets"]) == 4
    assert takes_over(net, forwarder, SINK[4])
    assert takes_over(net, forwarder, SINK[6])


def test_every_change_is_heard_of(net):
    with link.in_netns(net.fwd):
        monitor = rtnetlink.Monitor()
        try:
            assert not monitor.take()
            net.ip(net.fwd, "route add 10.9.0.0/24 via 10.2.0.2")
            assert monitor.take() == rtnetlink.ROUTES
            net.ip(net.fwd, f"neigh replace 10.2.0.9 lladdr {NEW_MAC} dev f1")
            assert monitor.take() == rtnetlink.NEIGHBOURS
            net.ip(net.fwd, "link set f1 mtu 1400")
            assert monitor.take() >= rtnetlink.LINKS
        finally:
            monitor.close()


def test_after_changes_that_were_lost_everything_is_read_again(net):
    with link.in_netns(net.fwd):
        monitor = rtnetlink.Monitor()
        try:
            monitor._socket.setsockopt(1, 8, 2048)  # SO_RCVBUF
            net.ip(net.fwd, *(f"route add 10.9.{n}.0/24 via 10.2.0.2" for n in range(200)))
            assert monitor.take() == rtnetlink.EVERYTHING
            assert not monitor.take()
        finally:
            monitor.close()
