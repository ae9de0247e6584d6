"""Links and namespaces, on veths of the tests' own."""

import asyncio
import ctypes
import os
import platform
import struct
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from pyroute2 import IPRoute

from l2fwd import ethtool
from l2fwd import link as links
from l2fwd.errors import ConfigError, KernelError, UnsupportedError
from l2fwd.link import find_link, find_peer, in_netns
from l2fwd.netdev import xdp_features

QUEUES = 2


def held_resources():
    """What a call could leave behind: descriptors, threads, child processes, namespace."""
    children = Path("/proc/thread-self/children").read_text()
    return (
        sorted(os.listdir("/proc/self/fd")),
        threading.active_count(),
        children,
        os.stat("/proc/thread-self/ns/net").st_ino,
    )


@contextmanager
def attached_pass_program(ifname):
    """Attach ``return XDP_PASS`` to a link of this namespace; give the program's fd."""
    number = {"x86_64": 321, "aarch64": 280}[platform.machine()]  # bpf(2)
    code = ctypes.create_string_buffer(struct.pack("<BBhiBBhi", 0xB7, 0, 0, 2, 0x95, 0, 0, 0))
    licence = ctypes.create_string_buffer(b"GPL")
    request = struct.pack("<IIQQ", 6, 2, ctypes.addressof(code), ctypes.addressof(licence)).ljust(
        128, b"\0"
    )
    fd = ctypes.CDLL(None, use_errno=True).syscall(number, 5, request, len(request))
    assert fd >= 0, os.strerror(ctypes.get_errno())
    ifindex = find_link(ifname).ifindex
    try:
        with IPRoute() as ip:
            ip.link("set", index=ifindex, xdp_fd=fd)
            yield
            ip.link("set", index=ifindex, xdp_fd=-1)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "1 to 15 bytes"),
        ("sixteen-letters-", "1 to 15 bytes"),
        ("é" * 8, "1 to 15 bytes"),
        ("a/b", "must not hold"),
        ("veth%d", "must not hold"),
        ("a b", "must not hold"),
        ("a\nb", "must not hold"),
        ("a\0b", "must not hold"),
        ("\udc80", "must not hold"),
        ("..", "must not hold"),
    ],
)
def test_a_name_no_link_can_have_is_refused_with_the_reason(name, reason):
    with pytest.raises(ConfigError) as caught:
        find_link(name)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_loopback_link_is_found_without_privilege():
    found = find_link("lo")
    assert (found.ifindex, found.ifname, found.peer_ifindex) == (1, "lo", None)
    assert found.rx_queue_count >= 1


@pytest.mark.parametrize("name", ["", "a/b", "..", "a\0b"])
def test_a_name_no_namespace_can_have_is_refused(name):
    with pytest.raises(ConfigError):
        links.create_netns(name)


@pytest.mark.privileged
def test_a_link_is_found_in_a_coroutine_in_its_threads_namespace(pair):
    """pyroute2 runs an event loop of its own."""

    async def main():
        before = held_resources()
        found = find_link("left")
        assert held_resources() == before
        with pytest.raises(ConfigError, match="nosuch0"):
            find_link("nosuch0")
        return found

    with in_netns(pair[0]):
        assert asyncio.run(main()) == find_link("left")


@pytest.mark.privileged
def test_a_veth_is_described_from_both_ends(pair):
    with in_netns(pair[0]):
        left = find_link("left")
        netns, right = find_peer(left)
    assert (left.kind, left.driver, left.mtu) == ("veth", "veth", 1400)
    assert (left.rx_queue_count, left.tx_queue_count) == (QUEUES, QUEUES)
    assert (left.is_up, left.has_carrier, left.is_promiscuous) == (False, False, False)
    assert (left.xdp_mode, left.xdp_program_id) == ("none", 0)
    assert netns == pair[1]
    assert (right.ifname, right.ifindex) == ("right", left.peer_ifindex)
    assert (right.rx_queue_count, right.tx_queue_count) == (QUEUES, QUEUES)
    assert right.address != left.address


@pytest.mark.privileged
def test_a_peer_in_the_same_namespace_is_found_without_a_namespace_name(pair):
    with in_netns(pair[0]):
        links.create_veth((None, "one"), (None, "two"))
        netns, peer = find_peer(find_link("one"))
    assert (netns, peer.ifname) == (None, "two")


@pytest.mark.privileged
def test_queue_counts_follow_the_channels_in_use(pair):
    with in_netns(pair[0]):
        subprocess.run(["ethtool", "-L", "left", "rx", "1"], check=True)
        left = find_link("left")
    assert (left.rx_queue_count, left.tx_queue_count) == (1, QUEUES)


@pytest.mark.privileged
def test_changes_to_a_link_are_seen_when_it_is_looked_at_again(pair):
    with in_netns(pair[1]):
        links.set_up("right")
    with in_netns(pair[0]):
        links.set_up("left")
        links.set_mtu("left", 1500)
        links.set_promiscuous("left", True)
        links.set_address("left", "02:00:00:00:00:01")
        changed = find_link("left")
        links.set_promiscuous("left", False)
        links.set_down("left")
        restored = find_link("left")
    assert (changed.is_up, changed.has_carrier, changed.is_promiscuous) == (True, True, True)
    assert (changed.mtu, changed.address) == (1500, "02:00:00:00:00:01")
    assert (restored.is_up, restored.has_carrier, restored.is_promiscuous) == (False,) * 3


@pytest.mark.privileged
def test_a_bridge_port_counts_as_promiscuous(pair):
    with in_netns(pair[0]):
        subprocess.run(["ip", "link", "add", "br0", "type", "bridge"], check=True)
        subprocess.run(["ip", "link", "set", "left", "master", "br0"], check=True)
        assert find_link("left").is_promiscuous
        assert find_link("br0").kind == "bridge"


@pytest.mark.privileged
def test_an_address_is_added_and_a_link_deleted(pair):
    with in_netns(pair[0]):
        links.add_address("left", "192.0.2.1/24")
        shown = subprocess.run(["ip", "addr"], check=True, capture_output=True, text=True).stdout
        links.delete_link("left")
        with pytest.raises(ConfigError):
            find_link("left")
    assert "inet 192.0.2.1/24" in shown


@pytest.mark.privileged
def test_ipv6_is_disabled_on_the_link_of_the_calling_threads_namespace(pair):
    with in_netns(pair[0]):
        links.create_veth((None, "quiet"), (None, "noisy"))
        links.disable_ipv6("quiet")
        values = [
            Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").read_text().strip()
            for name in ("quiet", "noisy")
        ]
    assert values == ["1", "0"]


@pytest.mark.privileged
def test_an_unknown_link_is_reported_with_the_close_name_and_the_remedy(pair):
    with in_netns(pair[0]), pytest.raises(ConfigError) as caught:
        find_link("lefft")
    expected = "link lefft does not exist; did you mean left? `ip link show` lists the links"
    assert str(caught.value) == expected


@pytest.mark.privileged
@pytest.mark.parametrize(
    "change",
    [
        links.set_up,
        links.set_down,
        links.delete_link,
        links.disable_ipv6,
        ethtool.features,
        lambda name: links.set_mtu(name, 1500),
        lambda name: links.add_address(name, "192.0.2.1/24"),
        lambda name: ethtool.set_features(name, {"rx-gro": True}),
    ],
)
def test_no_change_works_on_a_link_that_does_not_exist(pair, change):
    with in_netns(pair[0]), pytest.raises(ConfigError, match="does not exist"):
        change("nowhere")


@pytest.mark.privileged
@pytest.mark.parametrize(("name", "mode"), [("left", "native"), ("br0", "skb")])
def test_an_attached_program_is_seen_with_its_mode_and_id(pair, name, mode):
    with in_netns(pair[0]):
        subprocess.run(["ip", "link", "add", "br0", "type", "bridge"], check=True)
        with attached_pass_program(name):
            found = find_link(name)
        after = find_link(name)
    assert found.xdp_mode == mode
    assert found.xdp_program_id > 0
    assert (after.xdp_mode, after.xdp_program_id) == ("none", 0)


@pytest.mark.privileged
def test_features_have_the_kernels_names_and_ethtools(pair):
    with in_netns(pair[0]):
        before = ethtool.features("left")
        ethtool.set_features("left", {"rx-gro": True, "tx-checksumming": False})
        after = ethtool.features("left")
        listed = subprocess.run(
            ["ethtool", "-k", "left"], check=True, capture_output=True, text=True
        ).stdout
    assert before["tx-checksum-ip-generic"]
    assert before["tx-checksumming"]
    assert not before["generic-receive-offload"]
    assert after["generic-receive-offload"]
    assert not after["tx-checksum-ip-generic"]
    assert not after["tx-checksumming"]
    for line in listed.splitlines()[1:]:
        name, _, state = line.strip().partition(": ")
        if name in after:
            assert after[name] == state.startswith("on"), name


@pytest.mark.privileged
def test_a_feature_the_driver_keeps_or_nobody_has_is_refused(pair):
    with in_netns(pair[0]):
        with pytest.raises(UnsupportedError, match="keeps rx-lro off"):
            ethtool.set_features("left", {"rx-lro": True})
        with pytest.raises(ConfigError, match="did you mean rx-gro"):
            ethtool.set_features("left", {"rx-groo": True})


@pytest.mark.privileged
def test_redirect_into_a_veth_works_once_the_peer_is_up_and_then_gets_gro(pair):
    with in_netns(pair[0]):
        ifindex = find_link("left").ifindex
        links.set_up("left")
        with in_netns(pair[1]):
            links.set_up("right")
        before = xdp_features(ifindex)
        with in_netns(pair[1]):
            ethtool.set_features("right", {"generic-receive-offload": True})
        after = xdp_features(ifindex)
    if before is None:
        pytest.skip(f"kernel {platform.release()} has no netdev family")
    assert (before.basic, before.redirect, before.zero_copy) == (True, True, False)
    assert (before.ndo_xmit, after.ndo_xmit) == (False, True)


@pytest.mark.privileged
def test_a_bridge_has_no_xdp_features_and_a_missing_link_is_an_error(pair):
    with in_netns(pair[0]):
        subprocess.run(["ip", "link", "add", "br0", "type", "bridge"], check=True)
        features = xdp_features(find_link("br0").ifindex)
        with pytest.raises(KernelError, match="ENODEV"):
            xdp_features(9999)
    assert features is None or not features.basic


@pytest.mark.privileged
def test_a_namespace_is_created_once_and_removed_as_often_as_one_likes():
    name = f"l2fwd-test-{uuid4().hex[:8]}"
    links.create_netns(name)
    try:
        assert links.netns_exists(name)
        assert name in links.list_netns()
        with pytest.raises(KernelError, match="EEXIST"):
            links.create_netns(name)
        listed = subprocess.run(["ip", "netns"], check=True, capture_output=True, text=True)
        assert name in listed.stdout
    finally:
        links.remove_netns(name)
        links.remove_netns(name)
    assert not links.netns_exists(name)


@pytest.mark.privileged
def test_the_name_a_killed_run_left_behind_is_removed():
    name = f"l2fwd-test-{uuid4().hex[:8]}"
    (links.NETNS_DIR / name).touch()
    links.remove_netns(name)
    assert not links.netns_exists(name)


@pytest.mark.privileged
def test_a_namespace_that_does_not_exist_cannot_be_entered():
    with pytest.raises(ConfigError, match="does not exist"), in_netns("l2fwd-test-none"):
        pass


@pytest.mark.privileged
def test_only_the_calling_thread_moves_and_it_comes_back_after_an_error(pair):
    home = os.stat("/proc/thread-self/ns/net").st_ino
    seen = {}

    def look_and_fail():
        seen["inside"] = os.stat("/proc/thread-self/ns/net").st_ino
        seen["link"] = find_link("left").ifname
        seen["main"] = os.stat("/proc/self/ns/net").st_ino
        raise ZeroDivisionError

    def work():
        with pytest.raises(ZeroDivisionError), in_netns(pair[0]):
            look_and_fail()
        seen["after"] = os.stat("/proc/thread-self/ns/net").st_ino

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen["link"] == "left"
    assert seen["inside"] != home
    assert seen["main"] == seen["after"] == home


@pytest.mark.privileged
def test_nothing_is_left_behind_by_any_call(pair):
    name = f"l2fwd-test-{uuid4().hex[:8]}"
    before = held_resources()
    links.create_netns(name)
    with in_netns(pair[0]):
        left = find_link("left")
        find_peer(left)
        xdp_features(left.ifindex)
        ethtool.set_features("left", {"rx-gro": True})
        links.set_up("left")
        links.create_veth((None, "one"), (name, "two"))
        for broken in ("nowhere", "a/b"):
            with pytest.raises(ConfigError):
                find_link(broken)
        with pytest.raises(KernelError):
            links.create_veth((None, "one"), (name, "three"))
        with pytest.raises(ConfigError):
            links.create_veth((None, "four"), ("l2fwd-test-none", "five"))
    links.remove_netns(name)
    assert held_resources() == before
