"""The sockets: what is obtained, what is refused, and memory that outlives them."""

import contextlib
import ctypes
import errno
import gc
import os
import socket
import struct
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from l2fwd import link
from l2fwd._worker import Worker
from l2fwd.bpf import Program
from l2fwd.config import AttachMode, BindMode, SocketConfig, UmemConfig
from l2fwd.errors import ConfigError, KernelError
from l2fwd.testing import XDP_DESC
from l2fwd.xsk import BoundSocket, Umem

pytestmark = pytest.mark.privileged

GEOMETRY = UmemConfig(frame_count=64)
SETTINGS = SocketConfig(ring_size=32)


@pytest.fixture
def inside(bed):
    """Run the test in the bed's middle namespace."""
    with link.in_netns(bed.fwd):
        yield bed


@pytest.fixture
def umem(inside):
    umem = Umem(GEOMETRY, SETTINGS.ring_size)
    yield umem
    umem.close()


@pytest.fixture
def xsk(umem):
    xsk = BoundSocket(umem, "f0", 0, SETTINGS)
    yield xsk
    xsk.close()


def test_what_was_obtained_is_read_back_from_the_kernel(xsk):
    assert not xsk.is_zero_copy
    assert xsk.statistics() == {
        "rx_dropped": 0,
        "rx_invalid_descs": 0,
        "tx_invalid_descs": 0,
        "rx_ring_full": 0,
        "rx_fill_ring_empty_descs": 0,
        "tx_ring_empty_descs": 0,
    }


def test_an_old_kernel_gives_three_statistics(xsk, monkeypatch):
    """P1: 24 bytes until Linux 5.9."""

    class OldKernel:
        def get_option(self, level, name, size):
            return struct.pack("=3Q", 1, 2, 3)

    monkeypatch.setattr(xsk, "handle", OldKernel())
    expected = {"rx_dropped": 1, "rx_invalid_descs": 2, "tx_invalid_descs": 3}
    assert xsk.statistics() == expected
    monkeypatch.undo()


def test_the_rings_have_the_size_asked_for(xsk):
    assert {ring.size for ring in xsk.handle.rings().values()} == {32}


def test_zero_copy_is_refused_where_the_driver_has_none(umem):
    with pytest.raises(KernelError, match="--bind copy") as caught:
        BoundSocket(umem, "f0", 0, SocketConfig(ring_size=32, bind_mode=BindMode.ZERO_COPY))
    assert caught.value.errno == errno.EOPNOTSUPP
    # The UMEM is none the worse for it.
    BoundSocket(umem, "f0", 0, SETTINGS).close()


def test_a_queue_that_is_taken_is_refused_and_its_owner_goes_on(xsk, monkeypatch):
    monkeypatch.setattr("l2fwd.xsk.BIND_RETRY_SECONDS", 0.05)
    other = Umem(GEOMETRY, 32)
    with pytest.raises(KernelError, match="another AF_XDP socket owns this queue") as caught:
        BoundSocket(other, "f0", 0, SETTINGS)
    assert caught.value.errno == errno.EBUSY
    other.close()
    assert xsk.statistics()["rx_dropped"] == 0


def test_a_queue_is_bound_again_right_after_it_was_closed(inside):
    """P7: the kernel lets go of it some milliseconds later."""
    for _ in range(10):
        umem = Umem(GEOMETRY, 32)
        BoundSocket(umem, "f0", 0, SETTINGS).close()
        umem.close()


def test_a_queue_that_is_not_there_is_named(umem):
    with pytest.raises(KernelError, match="bind f0 queue 9: EINVAL"):
        BoundSocket(umem, "f0", 9, SETTINGS)


def test_headroom_beyond_the_kernels_limit_is_refused(inside):
    """R7"""
    Umem(UmemConfig(frame_count=64, headroom=1344), 32).close()
    with pytest.raises(KernelError, match="lower --headroom"):
        Umem(UmemConfig(frame_count=64, headroom=1345), 32)


def test_the_tx_budget_is_what_the_kernel_takes(umem):
    """P24"""
    budgeted = BoundSocket(umem, "f0", 0, SocketConfig(ring_size=32, tx_budget=32))
    assert budgeted.tx_budget in (0, 32)  # 0: this kernel has no such option
    budgeted.close()


def test_views_of_the_packets_outlive_the_umem(inside):
    umem = Umem(GEOMETRY, 32)
    xsk = BoundSocket(umem, "f0", 0, SETTINGS)
    view = umem.frames
    assert (view.shape, view.dtype) == ((64, 2048), np.dtype(np.uint8))
    view[5, :4] = (1, 2, 3, 4)
    xsk.close()
    umem.close()
    with pytest.raises(ConfigError, match="closed"):
        xsk.port.reclaim()
    del xsk, umem
    gc.collect()
    assert view[5, :4].tolist() == [1, 2, 3, 4]
    view[:] = 0


def test_a_umem_cannot_go_while_a_socket_uses_it(umem, xsk):
    """P40"""
    with pytest.raises(KernelError, match="EBUSY"):
        umem.close()


def test_a_socket_that_closes_takes_its_frames_along_and_the_ledger_says_so(umem, xsk):
    second = BoundSocket(umem, "f1", 0, SETTINGS)
    second.port.refill(16)
    second.close()
    assert umem.pool.lost_count == 16
    assert umem.pool.free_count + umem.pool.lost_count == GEOMETRY.frame_count


def test_a_umem_whose_sockets_were_all_closed_is_not_bound_again(umem):
    BoundSocket(umem, "f0", 0, SETTINGS).close()
    with pytest.raises(ConfigError, match="make a new one"):
        BoundSocket(umem, "f0", 0, SETTINGS)


def test_a_port_in_use_is_neither_closed_nor_driven_by_a_second_worker(umem, xsk):
    """P42: one thread drives a socket."""
    second = BoundSocket(umem, "f1", 0, SETTINGS)
    worker = Worker(xsk.port, second.port)
    thread = threading.Thread(target=worker.run)
    thread.start()
    while worker.turns[0] == 0:
        time.sleep(0.001)
    for forbidden in (second.close, xsk.port.reclaim, worker.turn, worker.run):
        with pytest.raises(ConfigError, match="a worker is running"):
            forbidden()
    worker.stop()
    thread.join()
    second.close()


def test_two_links_share_one_umem(umem, xsk):
    """R11, P10"""
    second = BoundSocket(umem, "f1", 0, SETTINGS)
    assert second.port.pool is xsk.port.pool
    assert second.port.refill(16) == xsk.port.refill(16) == 16
    assert umem.pool.free_count == 32
    second.close()


def test_descriptors_do_not_survive_into_a_child(xsk):
    """X9: an inherited socket would keep the queue bound, an inherited link the program."""
    program = Program("afxdp", {"sockets": 1})
    found = link.find_link("f0")
    attachment = program.attach(found.ifindex, "f0", AttachMode.NATIVE)
    ours = [xsk.handle.fd, program.fd, attachment.fd]
    flags = [Path(f"/proc/self/fdinfo/{fd}").read_text() for fd in ours]
    attachment.detach()
    program.close()
    for text in flags:
        (value,) = (line.split()[1] for line in text.splitlines() if line.startswith("flags:"))
        assert int(value, 8) & os.O_CLOEXEC


def test_invalid_descriptors_are_counted_and_their_neighbours_sent(umem, xsk, inside):
    """R3: the list of the kernel's own test, put on the ring behind the library's back."""
    size, area = GEOMETRY.frame_size, GEOMETRY.size
    descs = [
        (0, 60, True),
        (size - 30, 60, False),  # crosses its frame
        (size, size + 1, False),  # longer than a frame
        (area - size, 60, True),  # the last frame
        (area, 60, False),  # starts where the UMEM ends
        (area - 30, 60, False),  # ends after it
        (1 << 63, 60, False),
        (2 * size, 60, True),
    ]
    ring = xsk.handle.rings()["tx"]
    slots = np.ctypeslib.as_array(
        (ctypes.c_uint8 * (ring.size * XDP_DESC.itemsize)).from_address(ring.slots)
    ).view(XDP_DESC)
    producer = ctypes.c_uint32.from_address(ring.producer)
    for i, (addr, length, _) in enumerate(descs):
        slots[i] = (addr, length, 0)
    with link.in_netns(inside.gen):
        sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        sniffer.bind(("g0", 3))
    sniffer.settimeout(2)
    umem.frames[:, 12:14] = (0x88, 0xB5)
    producer.value += len(descs)
    sender = socket.socket(44, socket.SOCK_RAW, 0, fileno=os.dup(xsk.handle.fd))
    while ctypes.c_uint32.from_address(ring.consumer).value != producer.value:
        # One call stops at the first invalid descriptor, or says EAGAIN.
        with contextlib.suppress(BlockingIOError):
            sender.send(b"", socket.MSG_DONTWAIT)
    sender.close()
    valid = sum(is_valid for *_, is_valid in descs)
    assert [len(sniffer.recv(4096)) for _ in range(valid)] == [60] * valid
    sniffer.close()
    assert xsk.statistics()["tx_invalid_descs"] == len(descs) - valid
