"""What ``check`` finds, and that its remedies mend it."""

import argparse
import json
import subprocess
import time

import pytest

from l2fwd import check, ethtool
from l2fwd import link as links
from l2fwd.bpf import Attached
from l2fwd.check import Finding, check_host, check_link
from l2fwd.cli import check as verb
from l2fwd.errors import EXIT_UNSUPPORTED
from l2fwd.link import Link, in_netns
from l2fwd.netdev import XdpFeatures

NO_PROGRAM = Attached("none")
NIC = {
    "ifindex": 7,
    "ifname": "nic0",
    "kind": None,
    "driver": "i40e",
    "mtu": 1500,
    "is_up": True,
    "has_carrier": True,
    "is_promiscuous": True,
    "rx_queue_count": 8,
    "tx_queue_count": 8,
    "xdp_mode": "none",
    "xdp_program_id": 0,
    "address": "02:00:00:00:00:01",
    "peer_ifindex": None,
    "peer_netns_id": None,
}
NIC_XDP = {
    "basic": True,
    "redirect": True,
    "ndo_xmit": True,
    "zero_copy": True,
    "hw_offload": False,
    "rx_sg": False,
    "ndo_xmit_sg": False,
    "zc_max_segs": 1,
}


@pytest.fixture
def look(monkeypatch):
    """Look at a NIC that is not there: ``look(link={...}, xdp={...}, offloads={...})``."""

    def look_at(*, link=(), xdp=(), offloads=(), attached=NO_PROGRAM, **sizes):
        features = None if xdp is None else XdpFeatures(**(NIC_XDP | dict(xdp)))
        monkeypatch.setattr(check, "find_link", lambda name: Link(**(NIC | dict(link))))
        monkeypatch.setattr(check, "features", lambda name: dict(offloads))
        monkeypatch.setattr(check, "xdp_features", lambda ifindex: features)
        monkeypatch.setattr(check, "describe_attached", lambda ifindex: attached)
        return check_link("nic0", **sizes)

    return look_at


def faults(findings):
    return [finding for finding in findings if finding.level != "ok"]


def only_fault(findings):
    (fault,) = faults(findings)
    return fault


def wait_for_carrier(name):
    """A stacked link hears of its lower link's carrier some time later (linkwatch)."""
    deadline = time.monotonic() + 5
    while not links.find_link(name).has_carrier:
        assert time.monotonic() < deadline, f"{name} has no carrier"
        time.sleep(0.01)


def run_verb(*words):
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    return verb.run(parser.parse_args(words))


def test_a_nic_that_is_ready_has_no_fault(look):
    findings = look()
    assert faults(findings) == []
    assert all(finding.remedy == "" and finding.subject == "nic0" for finding in findings)


@pytest.mark.parametrize(
    ("link", "level", "remedy"),
    [
        ({"is_up": False}, "error", "ip link set dev nic0 up"),
        ({"has_carrier": False}, "error", ""),
        ({"tx_queue_count": 4}, "warning", "ethtool -L nic0 rx 4"),
        ({"mtu": 9000}, "error", "ip link set dev nic0 mtu 1774"),
    ],
)
def test_a_fault_of_the_link_comes_with_its_remedy(look, link, level, remedy):
    fault = only_fault(look(link=link))
    assert (fault.level, fault.remedy) == (level, remedy)


@pytest.mark.parametrize(
    ("name", "pids", "remedy"),
    [
        ("xdp_filter", (), "ip link set dev nic0 xdp off"),
        ("l2fwd_afxdp", (), "python -m l2fwd unload nic0"),
        ("l2fwd_afxdp", (7,), ""),
    ],
)
def test_a_program_on_the_link_is_named_with_its_holder(look, name, pids, remedy):
    fault = only_fault(look(attached=Attached("skb", 42, name, 0, pids)))
    assert fault.remedy == remedy
    assert name in fault.what
    assert "42" in fault.what


@pytest.mark.parametrize(
    ("offload", "level", "remedy"),
    [
        ("rx-lro", "warning", "ethtool -K nic0 lro off"),
        ("rx-gro-hw", "warning", "ethtool -K nic0 rx-gro-hw off"),
        ("rx-vlan-hw-parse", "warning", "ethtool -K nic0 rxvlan off"),
    ],
)
def test_an_offload_that_spoils_packets_comes_with_its_remedy(look, offload, level, remedy):
    fault = only_fault(look(offloads={offload: True}))
    assert (fault.level, fault.remedy) == (level, remedy)


def test_the_metadata_of_a_driver_is_told(look):
    told = [finding.what for finding in look() if "metadata" in finding.what]
    assert told == [
        "metadata of received packets: none",
        "metadata of packets sent in zero-copy: none",
    ]
    xdp = {"rx_metadata": {"timestamp", "hash"}, "tx_metadata": {"checksum"}}
    told = [finding.what for finding in look(xdp=xdp) if "metadata" in finding.what]
    assert told == [
        "metadata of received packets: hash, timestamp",
        "metadata of packets sent in zero-copy: checksum",
    ]


@pytest.mark.privileged
def test_a_veth_tells_what_it_knows(pair):
    with in_netns(pair[0]):
        links.set_up("left")
        (found,) = (finding for finding in check_link("left") if "metadata" in finding.what)
    assert found.what == "metadata of received packets: hash, timestamp, vlan-tag"


def test_gro_is_a_fault_only_where_programs_run_in_skb_mode(look):
    assert faults(look(offloads={"rx-gro": True})) == []
    findings = faults(look(offloads={"rx-gro": True}, xdp={"basic": False}))
    assert [finding.remedy for finding in findings] == ["", "ethtool -K nic0 gro off"]


@pytest.mark.parametrize(
    ("sizes", "mtu", "fits"),
    [
        ({}, 1774, True),
        ({}, 1775, False),
        ({"headroom": 64}, 1710, True),
        ({"headroom": 64}, 1711, False),
        ({"frame_size": 4096}, 3822, True),
        ({"frame_size": 4096}, 3823, False),
    ],
)
def test_the_mtu_fits_up_to_the_room_of_a_frame(look, sizes, mtu, fits):
    findings = look(link={"mtu": mtu}, xdp={"zero_copy": False}, **sizes)
    assert (faults(findings) == []) == fits
    if not fits:
        assert only_fault(findings).remedy == f"ip link set dev nic0 mtu {mtu - 1}"


def test_jumbo_frames_need_a_driver_that_takes_several_buffers(look):
    """R12"""
    jumbo = {"mtu": 9000}
    fault = only_fault(look(link=jumbo, xdp={"zero_copy": False}))
    assert fault.remedy == "ip link set dev nic0 mtu 1774"
    findings = look(link=jumbo, xdp={"zero_copy": False, "rx_sg": True})
    assert faults(findings) == []
    assert any("it takes 6 (multi-buffer)" in finding.what for finding in findings)
    assert faults(look(link=jumbo, xdp={"rx_sg": True, "zc_max_segs": 8})) == []
    fault = only_fault(look(link=jumbo, xdp={"rx_sg": True, "zc_max_segs": 5}))
    assert (fault.level, fault.remedy) == ("warning", "")
    assert "zero-copy sends 5 at most" in fault.what


def test_an_mtu_that_turns_zero_copy_into_copy_mode_is_told(look):
    assert faults(look(link={"mtu": 1766})) == []
    fault = only_fault(look(link={"mtu": 1767}))
    assert (fault.level, fault.remedy) == ("warning", "ip link set dev nic0 mtu 1766")
    assert faults(look(link={"mtu": 1767}, xdp={"rx_sg": True, "zc_max_segs": 8})) == []


@pytest.mark.parametrize("driver", ["igb", "igc", "ixgbe"])
def test_a_nic_that_uses_a_frame_by_the_kibibyte_is_told(look, driver):
    fault = only_fault(look(link={"driver": driver}))
    assert fault.level == "warning"
    assert "uses 1024 in zero-copy: use --frame-size 4096" in fault.what
    assert faults(look(link={"driver": driver}, frame_size=4096)) == []
    assert faults(look(link={"driver": driver}, xdp={"zero_copy": False})) == []


def test_a_kernel_that_tells_no_xdp_features_is_no_fault(look):
    assert faults(look(xdp=None)) == []


@pytest.mark.parametrize("missing", ["basic", "redirect", "ndo_xmit"])
def test_a_missing_xdp_feature_is_a_warning(look, missing):
    assert only_fault(look(xdp={missing: False})).level == "warning"


@pytest.mark.parametrize("name", ["l2fwd-nowhere", "a b", "", "a\nb", "sixteen-letters-"])
def test_an_unknown_link_is_one_error_in_one_line(name):
    (finding,) = check_link(name)
    assert finding.level == "error"
    assert "\n" not in finding.subject + finding.what


def test_missing_capabilities_are_named(monkeypatch):
    everything = (1 << 41) - 1
    only_net_raw = 1 << 13
    monkeypatch.setattr(check, "_effective_capabilities", lambda: only_net_raw)
    named = [finding.what.split()[0] for finding in check._capabilities()]
    assert named == ["CAP_NET_ADMIN", "CAP_BPF"]
    monkeypatch.setattr(check, "_effective_capabilities", lambda: everything & ~(1 << 39))
    assert faults(check._capabilities()) == [], "CAP_SYS_ADMIN stands for CAP_BPF"


@pytest.mark.parametrize(
    ("limit_bytes", "capabilities", "level"),
    [
        (8 << 20, 0, "error"),
        (16 << 20, 0, "ok"),
        (-1, 0, "ok"),
        (8 << 20, 1 << 14, "ok"),
    ],
)
def test_memlock_counts_unless_cap_ipc_lock_is_held(monkeypatch, limit_bytes, capabilities, level):
    monkeypatch.setattr(check, "_effective_capabilities", lambda: capabilities)
    limits = (limit_bytes, limit_bytes)
    monkeypatch.setattr(check.resource, "getrlimit", lambda which: limits)
    assert check._memlock().level == level


@pytest.mark.parametrize(
    ("release", "level"),
    [
        ("4.19.0-27-amd64", "error"),
        ("5.9.16", "error"),
        ("5.15.0-91-generic", "error"),
        ("6.1.0-28-amd64", "ok"),
        ("6.18+", "ok"),
        ("7.0-rc1", "ok"),
    ],
)
def test_the_kernel_must_be_new_enough(monkeypatch, release, level):
    monkeypatch.setattr(check.platform, "release", lambda: release)
    assert check._kernel().level == level


def test_every_finding_about_this_host_is_one_line():
    findings = check_host()
    assert {finding.subject for finding in findings} == {"host"}
    assert all("\n" not in finding.what + finding.remedy for finding in findings)


def test_json_is_one_object_a_line_and_ends_with_the_sums(capsys):
    code = run_verb("--json", "l2fwd-nowhere", "l2fwd-nowhere")
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    *found, summary = events
    assert {event["event"] for event in found} == {"finding"}
    assert found[-1]["subject"] == "l2fwd-nowhere"
    assert sum(event["subject"] == "l2fwd-nowhere" for event in found) == 1
    assert summary["event"] == "summary"
    assert summary["ok"] + summary["warnings"] + summary["errors"] == len(found)
    assert summary["errors"] >= 1
    assert code == EXIT_UNSUPPORTED


def test_plain_lines_are_aligned_and_carry_the_remedy(capsys, monkeypatch):
    findings = [
        Finding("ok", "host", "fine"),
        Finding("warning", "host", "not fine", "mend it"),
    ]
    monkeypatch.setattr(check, "check_host", lambda: findings)
    assert run_verb() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["ok       host  fine", "warning  host  not fine -> mend it"]


@pytest.mark.privileged
def test_following_the_remedies_makes_a_veth_ready(pair):
    with in_netns(pair[0]):
        subprocess.run(["ethtool", "-L", "left", "rx", "1"], check=True)
        first = faults(check_link("left"))
        assert {finding.level for finding in first} == {"error", "warning"}
        for _ in range(4):
            for finding in faults(check_link("left")):
                if finding.remedy:
                    run = subprocess.run(finding.remedy, shell=True, capture_output=True)
                    assert run.returncode == 0, finding
        assert faults(check_link("left")) == []


@pytest.mark.privileged
def test_gro_that_was_on_before_the_peer_came_up_is_mended_too(pair):
    with in_netns(pair[0]):
        links.set_up("left")
        with in_netns(pair[1]):
            ethtool.set_features("right", {"rx-gro": True})
            links.set_up("right")
        (fault,) = (f for f in check_link("left") if "ndo-xmit" in f.what)
        subprocess.run(fault.remedy, shell=True, check=True, capture_output=True)
        (mended,) = (f for f in check_link("left") if "ndo-xmit" in f.what)
    assert (fault.level, mended.level) == ("warning", "ok")


@pytest.mark.privileged
def test_bridge_and_macvlan_have_no_native_xdp_and_are_no_error(pair):
    with in_netns(pair[0]):
        for words in ("add br0 type bridge", "add link left name mac0 type macvlan"):
            subprocess.run(["ip", "link", *words.split()], check=True)
        for name in ("left", "br0", "mac0"):
            links.set_up(name)
        with in_netns(pair[1]):
            links.set_up("right")
        wait_for_carrier("mac0")
        found = {name: faults(check_link(name)) for name in ("br0", "mac0")}
    for name in ("br0", "mac0"):
        assert any("no native XDP" in finding.what for finding in found[name])
    assert {finding.level for finding in found["mac0"]} == {"warning"}
