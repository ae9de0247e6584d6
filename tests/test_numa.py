"""Packet memory near the NIC, and nothing done where there is one node only."""

import re
from pathlib import Path

import numpy as np
import pytest

from l2fwd import link, numa
from l2fwd._rings import Memory
from l2fwd.config import UmemConfig
from l2fwd.numa import node_of
from l2fwd.xsk import Umem


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Pretend a machine: ``machine(online, address, node)``; then ``node_of`` with its paths."""

    def make(online, address="0000:03:00.0", node="1"):
        (tmp_path / "online").write_text(online + "\n")
        device = tmp_path / "0000:03:00.0"
        device.mkdir()
        (device / "numa_node").write_text(node + "\n")
        monkeypatch.setattr(numa, "bus_info", lambda ifname: address)
        return {"nodes": tmp_path / "online", "devices": tmp_path}

    return make


@pytest.mark.parametrize(
    ("online", "address", "node", "expected"),
    [
        ("0-1", "0000:03:00.0", "1", 1),
        ("0-1", "0000:03:00.0", "0", 0),
        ("0-1", "0000:03:00.0", "-1", None),  # the firmware does not tell
        ("0-1", "", "1", None),  # a veth
        ("0-1", "0000:99:00.0", "1", None),
        ("0", "0000:03:00.0", "0", None),  # one node: all memory is as near
    ],
)
def test_the_node_of_a_link(machine, online, address, node, expected):
    assert node_of("eth0", **machine(online, address, node)) == expected


def policy_at(address):
    """Return the memory policy of the mapping at ``address``, as the kernel prints it."""
    rows = Path("/proc/self/numa_maps")
    if not rows.exists():
        pytest.skip("a kernel without NUMA")
    found = re.search(rf"^{address:08x} (\S+)", rows.read_text(), re.M)
    return found[1] if found else ""


def test_memory_prefers_the_node_it_is_told():
    memory = Memory(64, 4096, node=0)
    np.asarray(memory)[:] = 1
    if memory.node is None:
        pytest.skip("a kernel without NUMA")
    assert policy_at(memory.address).startswith("prefer")


@pytest.mark.parametrize("node", [63, 1023, 1024, 70_000])
def test_a_node_that_is_not_there_is_not_preferred(node):
    memory = Memory(4, 4096, node=node)
    assert memory.node is None
    np.asarray(memory)[:] = 1


@pytest.mark.privileged
def test_on_one_node_nothing_is_done(bed):
    if Path("/sys/devices/system/node/online").read_text().strip() != "0":
        pytest.skip("this machine has several nodes")
    with link.in_netns(bed.fwd):
        umem = Umem(UmemConfig(frame_count=64), 32, near="f0")
    assert umem.pool.memory.node is None
    umem.frames[:] = 1
    assert not policy_at(umem.pool.memory.address).startswith("prefer")
    umem.close()
