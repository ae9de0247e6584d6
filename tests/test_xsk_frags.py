"""Chains of descriptors as the kernel takes them: its own test's cases, put on the ring raw."""

import contextlib
import ctypes
import errno
import os
import socket

import numpy as np
import pytest

from l2fwd import link, xsk
from l2fwd.abi import XDP_PKT_CONTD
from l2fwd.config import SocketConfig, UmemConfig
from l2fwd.errors import KernelError
from l2fwd.testing import XDP_DESC
from l2fwd.xsk import BoundSocket, Umem

pytestmark = pytest.mark.privileged

RING_SIZE = 128
ETHERTYPE = 0x88B5


class Raw:
    """A socket's TX ring, written behind the library's back; packets read at the other end."""

    def __init__(self, bed, geometry):
        self.umem = Umem(geometry, RING_SIZE)
        self.umem.frames[:, 12:14] = divmod(ETHERTYPE, 256)
        self.xsk = BoundSocket(self.umem, "f0", 0, SocketConfig(ring_size=RING_SIZE, frags=True))
        ring = self.xsk.handle.rings()["tx"]
        self.slots = np.ctypeslib.as_array(
            (ctypes.c_uint8 * (ring.size * XDP_DESC.itemsize)).from_address(ring.slots)
        ).view(XDP_DESC)
        self.producer = ctypes.c_uint32.from_address(ring.producer)
        self.consumer = ctypes.c_uint32.from_address(ring.consumer)
        with link.in_netns(bed.gen):
            self.sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE))
            self.sniffer.bind(("g0", ETHERTYPE))
        self.sniffer.settimeout(2)

    def send(self, descs):
        for i, desc in enumerate(descs):
            self.slots[(self.producer.value + i) % RING_SIZE] = desc
        self.producer.value += len(descs)
        sender = socket.socket(44, socket.SOCK_RAW, 0, fileno=os.dup(self.xsk.handle.fd))
        while self.consumer.value != self.producer.value:
            # One call stops at the first invalid descriptor, or says EAGAIN or EOVERFLOW.
            with contextlib.suppress(OSError):
                sender.send(b"", socket.MSG_DONTWAIT)
        sender.close()

    def received(self, count):
        return [len(self.sniffer.recv(65536)) for _ in range(count)]

    def close(self):
        self.sniffer.close()
        del self.slots
        self.xsk.close()
        self.umem.close()


@pytest.fixture(params=[2048, 4001], ids=["aligned", "unaligned"])
def raw(request, make_bed):
    bed = make_bed()
    for netns, ifname in ((bed.gen, "g0"), (bed.fwd, "f0")):
        with link.in_netns(netns):
            link.set_mtu(ifname, 65000)
    size = request.param
    with link.in_netns(bed.fwd):
        raw = Raw(bed, UmemConfig(frame_count=64, frame_size=size, unaligned=size != 2048))
        yield raw
        raw.close()


def chain(first, lengths, frame_size):
    return [
        ((first + i) * frame_size, length, XDP_PKT_CONTD if i + 1 < len(lengths) else 0)
        for i, length in enumerate(lengths)
    ]


@pytest.mark.parametrize(
    "bad",
    [
        lambda size, area: (area, 100, 0),  # starts where the UMEM ends
        lambda size, area: (area - 30, 100, 0),  # ends after it
        lambda size, area: (3 * size, size + 1, 0) if size == 2048 else (1 << 47, 100, 0),
        lambda size, area: (3 * size, 100, 1 << 16),  # an option that nobody knows
        lambda size, area: (3 * size, 0, 0),
    ],
)
def test_one_bad_fragment_takes_its_packet_with_it(raw, bad):
    """ALIGNED_INV_DESC_MULTI_BUFF, UNALIGNED_INV_DESC_MULTI_BUFF"""
    size, area = raw.umem.config.frame_size, raw.umem.config.size
    half = chain(2, [500, 500, 500], size)
    addr, length, options = bad(size, area)
    half[1] = (addr, length, options | XDP_PKT_CONTD)
    raw.send([*chain(0, [100, 200], size), *half, *chain(5, [64], size)])
    assert raw.received(2) == [300, 64]
    assert raw.xsk.statistics()["tx_invalid_descs"] > 0


def test_eighteen_fragments_are_sent_and_nineteen_are_not(raw):
    """TOO_MANY_FRAGS: the next valid packet arrives."""
    size = raw.umem.config.frame_size
    raw.send([*chain(0, [100] * 18, size), *chain(18, [100] * 19, size), *chain(40, [77], size)])
    assert raw.received(2) == [1800, 77]


def test_every_fragment_is_completed(raw):
    """P22: several completions a packet."""
    size = raw.umem.config.frame_size
    completion = raw.xsk.handle.rings()["completion"]
    raw.send([*chain(0, [1500] * 6, size), *chain(6, [60], size)])
    assert raw.received(2) == [9000, 60]
    assert ctypes.c_uint32.from_address(completion.producer).value == 7


def test_a_kernel_without_multi_buffer_is_named(bed, monkeypatch):
    """XDP_USE_SG is EINVAL before Linux 6.6."""

    def refuse(umem, ifname, queue_id, flags):
        raise KernelError(errno.EINVAL, "bind", f"{ifname} queue {queue_id}")

    monkeypatch.setattr(xsk, "SocketHandle", refuse)
    with link.in_netns(bed.fwd):
        umem = Umem(UmemConfig(frame_count=64), 32)
        with pytest.raises(KernelError, match=r"Linux 6\.6 .* lower the MTU"):
            BoundSocket(umem, "f0", 0, SocketConfig(ring_size=32, frags=True))
        umem.close()
