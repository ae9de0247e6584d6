"""The library under wrong use: a typed error that names the remedy, and no frame lost.

Every test ends with all frames of the socket's UMEM where they belong, and nothing attached.
"""

import errno
import gc
import os
import signal
import subprocess
import threading
import time
from uuid import uuid4

import numpy as np
import pytest

from l2fwd import (
    Batch,
    ConfigError,
    KernelError,
    MultiQueueSocket,
    UnsupportedError,
    XdpSocket,
    link,
)
from l2fwd import bpf as bpf_module

pytestmark = [pytest.mark.privileged, pytest.mark.timeout(30)]

SMALL = {"frames": 64, "ring_size": 64}


@pytest.fixture
def inside(bed):
    """Run the test in the bed's middle namespace, and find nothing attached there after it."""
    with link.in_netns(bed.fwd):
        yield bed
        for ifname in ("f0", "f1"):
            try:
                found = link.find_link(ifname)
            except ConfigError:  # a test took it away
                continue
            assert found.xdp_mode == "none"


@pytest.fixture
def wire(bed, open_wire):
    return open_wire(bed)


@pytest.fixture
def xsk(inside):
    with XdpSocket("f0", **SMALL) as opened:
        yield opened
        if not opened.closed:
            opened.flush()
            assert held(opened) == 0


def held(xsk):
    """Return the frames that a caller holds; all the others must be somewhere."""
    frames = xsk.stats().frames
    assert sum(frames.values()) == xsk.umem.config.frame_count, frames
    assert frames["lost"] == 0
    return frames["user"]


def received(xsk, wire, count):
    """Let ``count`` packets arrive; return them in one batch."""
    wire.send(count)
    time.sleep(0.1)
    batch = xsk.read_batch(timeout=1)
    assert len(batch) == count
    return batch


def in_thread(use):
    """Run ``use`` in a thread; return what it raised."""
    raised = []

    def run():
        try:
            use()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised[0] if raised else None


# What is read into, and written


# Batches


# Closed, another thread, another process


METHODS = {
    "fileno": XdpSocket.fileno,
    "read": XdpSocket.read,
    "read_into": lambda xsk: xsk.read_into(bytearray(100)),
    "read_batch": XdpSocket.read_batch,
    "write": lambda xsk: xsk.write(bytes(60)),
    "write_batch": lambda xsk: xsk.write_batch([bytes(60)]),
    "write_batch of none": lambda xsk: xsk.write_batch([]),
    "write_batch of rows": lambda xsk: xsk.write_batch(np.zeros((1, 60), np.uint8)),
    "send_frames": lambda xsk: xsk.send_frames(np.zeros(1, np.uint64), np.zeros(1, np.uint32)),
    "flush": XdpSocket.flush,
    "hand_over": XdpSocket.hand_over,
}


def test_a_closed_socket_is_refused_by_every_method(inside):
    xsk = XdpSocket("f0", **SMALL)
    xsk.close()
    for use in (*METHODS.values(), XdpSocket.stats):
        with pytest.raises(ConfigError, match="closed"):
            use(xsk)
        assert "closed" in str(in_thread(lambda use=use: use(xsk)))


def test_a_closed_object_over_queues_is_refused(inside):
    many = MultiQueueSocket("f0", **SMALL)
    many.close()
    many.close()
    uses = (many.read_batch, many.read_batches, many.stats, lambda: many.write_batch([bytes(60)]))
    for use in uses:
        with pytest.raises(ConfigError, match="closed"):
            use()


def test_another_thread_is_refused_by_every_method(xsk):
    xsk.read_batch(timeout=0)
    for name, use in METHODS.items():
        if name != "fileno":  # asks for nothing that moves
            error = in_thread(lambda use=use: use(xsk))
            assert isinstance(error, ConfigError), name
            assert "is used by another thread" in str(error)
    assert xsk.stats().tx_packets == 0  # which any thread may ask for


def test_closing_ends_a_read_that_waits_in_another_thread(inside):
    xsk = XdpSocket("f0", **SMALL)
    timer = threading.Timer(0.2, xsk.close)
    timer.start()
    with pytest.raises(ConfigError, match="is closed"):
        xsk.read()
    timer.join()


def test_closing_while_another_thread_sends_does_no_harm(inside):
    for _ in range(5):
        xsk = XdpSocket("f0", **SMALL)
        timer = threading.Timer(0.02, xsk.close)
        timer.start()
        with pytest.raises(ConfigError, match="is closed"):
            write_for_ever(xsk)
        timer.join()


def test_an_interrupt_ends_a_read_that_waits_and_the_socket_goes_on(xsk, wire):
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        xsk.read()
    timer.join()
    (sent,) = wire.send(1)
    assert xsk.read() == sent


def test_signals_do_not_make_a_wait_longer(xsk):
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
    try:
        assert len(xsk.read_batch(timeout=0.2)) == 0  # or the test's own time is up
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# The link


def read_for_ever(xsk):
    while True:
        xsk.read()


def write_for_ever(xsk):
    while True:
        xsk.write_batch([bytes(60)] * 64)


def poll_for_ever(xsk):
    while True:
        xsk.read_batch(timeout=0)


@pytest.mark.parametrize("use", [read_for_ever, write_for_ever, poll_for_ever])
def test_a_link_that_vanishes_ends_whatever_waits_for_it(inside, use):
    with XdpSocket("f0", **SMALL) as xsk:
        timer = threading.Timer(0.2, delete, (inside.fwd, "f0"))
        timer.start()
        with pytest.raises(KernelError, match="the link is gone") as caught:
            use(xsk)
        assert caught.value.errno in (errno.ENETDOWN, errno.ENXIO)
        with pytest.raises(KernelError, match="the link is gone"):
            use(xsk)  # told again, though the kernel tells it once
        timer.join()


def test_a_link_that_vanishes_ends_a_wait_on_all_queues(inside):
    with MultiQueueSocket("f0", **SMALL) as many:
        timer = threading.Timer(0.2, delete, (inside.fwd, "f0"))
        timer.start()
        with pytest.raises(KernelError, match="the link is gone"):
            many.read_batch()
        timer.join()


def delete(netns, ifname):
    with link.in_netns(netns):
        link.delete_link(ifname)


def test_another_program_on_the_link_stays(inside, put_foreign_program):
    put_foreign_program(inside, "f1")
    before = link.find_link("f1").xdp_mode
    with pytest.raises(KernelError, match="another XDP program is attached") as caught:
        XdpSocket("f1", **SMALL)
    assert caught.value.errno == errno.EBUSY
    assert link.find_link("f1").xdp_mode == before != "none"
    subprocess.run(["ip", "-n", inside.fwd, "link", "set", "f1", "xdp", "off"], check=True)


# Settings that do not fit one another


# Programs and maps
