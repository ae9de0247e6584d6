"""The TX ring on a socket of its own: same memory, same queue, its own counters."""

import os
import socket

import pytest

from l2fwd import link
from l2fwd._worker import Worker
from l2fwd.config import BindMode, SocketConfig, UmemConfig
from l2fwd.errors import KernelError
from l2fwd.tx_socket import TxSocket
from l2fwd.xsk import BoundSocket, Umem

pytestmark = pytest.mark.privileged

RING = 64
PACKET = bytes.fromhex("020000000001 020000000002 88b5") + bytes(46)


@pytest.fixture
def inside(bed):
    with link.in_netns(bed.fwd):
        yield bed


@pytest.fixture
def umem(inside):
    umem = Umem(UmemConfig(frame_count=128), RING)
    yield umem
    umem.close()


@pytest.fixture
def split(umem):
    settings = SocketConfig(ring_size=RING, bind_mode=BindMode.COPY)
    made = [BoundSocket(umem, ifname, 0, settings, split=True) for ifname in ("f0", "f1")]
    yield made
    for xsk in made:
        xsk.close()


def test_each_port_receives_on_one_socket_and_sends_on_another(split):
    for xsk in split:
        assert xsk.sender.fd != xsk.handle.fd
        assert xsk.sender.ring.size == RING
        assert not os.get_inheritable(xsk.sender.fd)


def test_without_split_there_is_one_socket(umem):
    xsk = BoundSocket(umem, "f0", 0, SocketConfig(ring_size=RING))
    assert xsk.sender is None
    xsk.close()


def test_what_is_sent_leaves_and_its_frames_come_back(inside, split, umem):
    left, right = split
    left.lend(RING // 2)
    worker = Worker(left.port, right.port)
    with link.in_netns(inside.sink):
        far = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
        far.bind(("s0", 0x88B5))
        far.settimeout(5)
    from l2fwd.bpf import Program
    from l2fwd.config import AttachMode

    program = Program("afxdp")
    attachment = program.attach(link.find_link("f0").ifindex, "f0", AttachMode.NATIVE)
    program.set_socket(0, left.handle.fd)
    with link.in_netns(inside.gen):
        near = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        near.bind(("g0", 0))
    near.send(PACKET)
    while not worker.turn():
        pass
    assert far.recv(2048) == PACKET
    right.port.reclaim()
    assert sum(worker.frames().values()) == umem.pool.frame_count
    assert right.port.counters()["tx_completed"] == 1
    assert right.statistics()["tx_invalid_descs"] == 0
    attachment.detach()
    program.close()
    near.close()
    far.close()


def test_what_the_sender_counts_of_sending_is_added(split, monkeypatch):
    class Counting:
        def get_option(self, level, name, size):
            return (b"\1" + bytes(7)) * 6

        def close(self):
            pass

    _, right = split
    own = right.sender
    monkeypatch.setattr(right, "sender", Counting())
    counted = right.statistics()
    assert (counted["tx_invalid_descs"], counted["tx_ring_empty_descs"]) == (1, 1)
    assert (counted["rx_dropped"], counted["rx_fill_ring_empty_descs"]) == (0, 0)
    monkeypatch.setattr(right, "sender", own)


def test_a_failure_names_the_queue_and_leaves_nothing(inside, umem):
    xsk = BoundSocket(umem, "f0", 0, SocketConfig(ring_size=RING))
    with pytest.raises(KernelError, match="bind f0 queue 7 for sending: EINVAL"):
        TxSocket("f0", 7, xsk.handle.fd, RING)
    with pytest.raises(KernelError, match="make TX ring of f0 queue 0 for sending: EINVAL"):
        TxSocket("f0", 0, xsk.handle.fd, 3)  # no power of two
    with pytest.raises(KernelError, match="bind nolink queue 0 for sending: ENODEV"):
        TxSocket("nolink", 0, xsk.handle.fd, RING)
    xsk.close()


def test_preferred_busy_polling_keeps_one_socket(umem):
    settings = SocketConfig(ring_size=RING, bind_mode=BindMode.COPY, busy_poll_budget=64)
    xsk = BoundSocket(umem, "f0", 0, settings, split=True)
    assert xsk.sender is None
    xsk.close()


def test_a_socket_that_cannot_be_split_is_closed(umem, monkeypatch):
    def refuse(*_):
        raise KernelError(12, "bind", "f0 queue 0 for sending")

    monkeypatch.setattr("l2fwd.xsk.TxSocket", refuse)
    with pytest.raises(KernelError, match="ENOMEM"):
        BoundSocket(umem, "f0", 0, SocketConfig(ring_size=RING), split=True)
    assert umem.handle.socket_count == 0
