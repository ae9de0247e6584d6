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


NO_BUFFERS = [
    (bytes(100), BufferError),
    (None, TypeError),
    ("x" * 100, TypeError),
    (np.zeros(100, np.int16), ValueError),
    (np.zeros((10, 10), np.uint8), ValueError),
    (np.zeros(200, np.uint8)[::2], ValueError),
    (bytearray(), ConfigError),
]


def test_a_buffer_that_cannot_take_the_packet_leaves_it_the_next_one(xsk, wire):
    (sent,) = wire.send(1)
    time.sleep(0.05)
    for buffer, error in NO_BUFFERS:
        with pytest.raises(error):
            xsk.read_into(buffer)
    assert xsk.read() == sent


def test_a_batch_has_one_packet_at_least_and_all_of_the_umem_at_most(xsk, wire):
    for most in (0, -1):
        with pytest.raises(ConfigError, match=f"at least 1 packet, got {most}"):
            xsk.read_batch(most)
    wire.send(3)
    time.sleep(0.1)
    assert len(xsk.read_batch(1 << 60, copy=True)) == 3


def test_a_packet_too_short_or_too_long_is_refused(xsk):
    for length in (0, 1, 13, 2049, 65536):
        packet = bytes(length)
        rows = np.zeros((1, length), np.uint8)
        for write, what in (
            (xsk.write, packet),
            (xsk.write_batch, [packet]),
            (xsk.write_batch, rows),
        ):
            with pytest.raises(ConfigError, match=f"has {length} bytes; it must have 14 to 2048"):
                write(what)


NO_PACKETS = [
    (None, TypeError),
    (bytes(60), TypeError),
    (["x" * 60], TypeError),
    ([None], TypeError),
    ((bytes(60) for _ in range(2)), TypeError),
    ([np.zeros(120, np.uint8)[::2]], ValueError),
    (np.zeros((2, 60)), ConfigError),
    (np.zeros((2, 60), np.uint16), ConfigError),
    (np.zeros((2, 3, 60), np.uint8), ConfigError),
    (np.zeros(60, np.uint8), ConfigError),
]


def test_what_is_no_packets_is_refused(xsk):
    for packets, error in NO_PACKETS:
        with pytest.raises(error):
            xsk.write_batch(packets)
    assert xsk.stats().tx_packets == 0


NO_LENGTHS = [
    np.array([60.7, 60.2]),
    np.array([60, 60 - 2**32]),
    np.array([60, 60 + 2**32]),
    np.array([[60, 60]]),
    ["60", "60"],
    [60, 61],
    [60, -60],
]


@pytest.mark.parametrize("what", ["close", "send"])
def test_packets_that_use_the_socket_while_they_are_taken_out_break_nothing(xsk, what):
    class Packets:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            xsk.close() if what == "close" else xsk.write(bytes(60))
            return bytes(60)

    if what == "close":
        with pytest.raises(ConfigError, match="closed"):
            xsk.write_batch(Packets())
        return
    assert xsk.write_batch(Packets()) == 3
    assert xsk.flush(timeout=5)
    assert xsk.stats().tx_completed == 6
    assert sum(xsk.stats().frames.values()) == 128


def test_lengths_that_are_none_are_refused_and_never_wrap(xsk):
    for lengths in NO_LENGTHS:
        with pytest.raises(ConfigError):
            xsk.write_batch(np.zeros((2, 60), np.uint8), lengths)
    assert xsk.stats().tx_bytes % 60 == 0  # of those before the wrong one


@pytest.mark.parametrize("kind", ["every second column", "fortran", "backwards", "one for all"])
def test_rows_that_are_not_contiguous_are_sent_as_they_are(inside, wire, kind):
    rows = np.stack([np.frombuffer(wire.frame(i, 64), np.uint8) for i in range(8)])
    rows = {
        "every second column": np.repeat(rows, 2, axis=1)[:, ::2],
        "fortran": np.asfortranarray(rows),
        "backwards": np.ascontiguousarray(rows[::-1, ::-1])[::-1, ::-1],
        "one for all": np.broadcast_to(rows[0], rows.shape),
    }[kind]
    with XdpSocket("f1", **SMALL) as xsk:
        assert xsk.write_batch(rows) == 8
        assert wire.receive(8) == [row.tobytes() for row in rows]


# Batches


USES = {
    "len": len,
    "bool": bool,
    "index": lambda batch: batch[0],
    "iterate": list,
    "enter": lambda batch: batch.__enter__(),
    **{
        name: lambda batch, name=name: getattr(batch, name)
        for name in ("addr", "length", "timestamp_ns", "window", "row", "column")
    },
    "tolist": Batch.tolist,
    "copy": Batch.copy,
}


def test_a_released_batch_is_refused_whatever_is_asked(xsk, wire):
    """Z8: never another packet's bytes"""
    batch = received(xsk, wire, 2)
    batch.release()
    batch.release()
    for use in (*USES.values(), lambda batch: batch.send_on(xsk)):
        with pytest.raises(ConfigError, match="was released"):
            use(batch)


def test_a_copied_batch_is_refused_after_its_release_too():
    batch = Batch.of([bytes(60)])
    batch.release()
    for use in USES.values():
        with pytest.raises(ConfigError, match="was released"):
            use(batch)


def test_a_kept_view_never_shows_another_packet(xsk, wire):
    """Z8: views of every kind hold the frames, however they were made, until the last is gone."""
    makers = {
        "packet": lambda batch: batch[0],
        "part": lambda batch: batch[0][4:8],
        "row of the window": lambda batch: batch.window[batch.row[0]],
        "memoryview": lambda batch: memoryview(batch[0]),
        "reshaped": lambda batch: batch[1].reshape(6, 10).T,
    }
    for name, make in makers.items():
        batch = received(xsk, wire, 2)
        view = make(batch)
        before = bytes(view.tobytes())
        with pytest.raises(BufferError, match="views of the batch are alive"):
            batch.release()
        for use in (lambda batch=batch: batch.send_on(xsk), batch.release):
            with pytest.raises(BufferError):
                use()
        for turn in range(10):
            wire.send(20, first=1000 + 20 * turn)
            time.sleep(0.005)
            while xsk.read_batch(copy=True, timeout=0.01):
                pass
        assert view.tobytes() == before, name
        del view
        batch.release()
        assert held(xsk) == 0


def test_what_is_written_to_a_view_is_in_this_packet_only(xsk, wire):
    """Z8"""
    with received(xsk, wire, 3) as batch:
        batch[1][:] = 0xEE
        packets = batch.tolist()
    assert packets == [wire.frame(0), b"\xee" * 60, wire.frame(2)]


def test_views_that_outlive_their_batch_hold_its_frames_until_they_are_gone(xsk, wire):
    views = list(received(xsk, wire, 3))
    gc.collect()
    assert [view.tobytes() for view in views] == [wire.frame(i) for i in range(3)]
    assert held(xsk) == 3
    del views[:2]
    assert held(xsk) == 3
    del views
    assert held(xsk) == 0


def test_a_loop_over_a_batch_that_has_no_name_loses_nothing(xsk, wire):
    wire.send(3)
    time.sleep(0.1)
    for packet in xsk.read_batch():  # noqa: B007
        pass
    assert held(xsk) == 3
    packet = None  # noqa: F841
    assert held(xsk) == 0


def test_views_alive_at_close_stay_what_they_are(inside, wire):
    """Z8"""
    xsk = XdpSocket("f0", **SMALL)
    batch = received(xsk, wire, 2)
    view, window = batch[1], batch.window
    xsk.close()
    wire.send(50, first=9)
    assert view.tobytes() == wire.frame(1)
    assert window[batch.row[0], batch.column[0] + 17] == 0
    with pytest.raises(BufferError):
        batch.release()
    del view, window
    batch.release()


def test_a_batch_released_in_another_thread_stays_with_its_owner(xsk, wire):
    batch = received(xsk, wire, 2)
    for use in (batch.release, lambda: batch.send_on(xsk)):
        assert "is used by another thread" in str(in_thread(use))
    assert held(xsk) == 2
    assert batch.tolist() == [wire.frame(0), wire.frame(1)]
    batch.release()


def test_a_batch_dropped_in_another_thread_gives_its_frames_back_at_the_next_wait(xsk, wire):
    box = [received(xsk, wire, 2)]
    assert in_thread(box.clear) is None
    xsk.read_batch(timeout=0)
    assert held(xsk) == 0


def test_a_batch_with_a_wrong_length_is_sent_on_up_to_there(xsk, wire):
    """No frame is in two places: what was sent is the kernel's, the rest goes back."""
    batch = received(xsk, wire, 4)
    batch.length[2] = 3000
    with pytest.raises(ConfigError, match="packet 2 has 3000 bytes"):
        batch.send_on(xsk)
    assert wire.receive(2, end=wire.gen) == [wire.frame(0), wire.frame(1)]
    xsk.flush()
    assert xsk.stats().tx_completed == 2
    with pytest.raises(ConfigError, match="was released"):
        len(batch)


def test_a_batch_is_not_sent_on_a_socket_that_is_closed(xsk, wire):
    other = XdpSocket("f1", umem=xsk.umem, frames=32)
    batch = received(xsk, wire, 2)
    other.close()
    with pytest.raises(ConfigError, match="is closed"):
        batch.send_on(other)
    # Its fill ring's frames went with it, and are told.
    assert xsk.stats().frames["lost"] == 32
    assert xsk.stats().frames["user"] == 0
    xsk.close()


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


def test_a_child_has_no_socket_and_takes_none_from_its_parent(xsk, wire):
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        said = b"?"
        try:
            try:
                xsk.read(timeout=0)
            except ConfigError as error:
                said = str(error).encode()
            xsk.close()
            ours = [
                os.readlink(f"/proc/self/fd/{fd}")
                for fd in os.listdir("/proc/self/fd")
                if int(fd) > 2 and os.path.lexists(f"/proc/self/fd/{fd}")
            ]
            said += b"; bpf" if any("bpf" in name for name in ours) else b""
        finally:
            os.write(write_end, said)
            os._exit(0)
    os.close(write_end)
    os.waitpid(child, 0)
    with os.fdopen(read_end, "rb") as told:
        assert told.read() == b"f0 queue 0 is closed"
    (sent,) = wire.send(1)
    assert xsk.read(timeout=1) == sent


def test_a_socket_that_nobody_holds_is_closed_and_it_is_told(inside):
    xsk = XdpSocket("f0", **SMALL)
    del xsk
    with pytest.warns(ResourceWarning, match="f0 queue 0 was not closed"):
        gc.collect()


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


def test_a_second_socket_takes_the_ring_size_of_the_umem(inside, wire):
    with (
        XdpSocket("f0", frames=256, ring_size=64) as left,
        XdpSocket("f1", frames=64, umem=left.umem) as right,
    ):
        assert right.stats().frames["fill"] == 64
        assert right.write_batch([wire.frame(i) for i in range(200)]) == 200


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"frames": 64}, "frames must be below 64, what is left of the UMEM"),
        ({"frames": 8, "frame_size": 4096}, "frame_size and headroom are the UMEM's, 2048 and 0"),
        ({"frames": 8, "headroom": 64}, "frame_size and headroom are the UMEM's, 2048 and 0"),
        ({"frames": 8, "queue": 1}, r"queue must be in \[0, 1\)"),
    ],
)
def test_a_second_socket_that_does_not_fit_the_umem_is_refused(xsk, settings, said):
    with pytest.raises(ConfigError, match=said):
        XdpSocket("f1", umem=xsk.umem, **settings)
    assert held(xsk) == 0


def test_a_second_link_whose_packets_do_not_fit_the_umem_is_refused(xsk):
    link.set_mtu("f1", 3000)
    with pytest.raises(ConfigError, match="f1: MTU 3000 needs 3018 bytes"):
        XdpSocket("f1", umem=xsk.umem, frames=8)


def test_the_first_socket_of_a_umem_may_be_closed_first(inside, wire):
    left = XdpSocket("f0", **SMALL)
    right = XdpSocket("f1", umem=left.umem, frames=32)
    left.close()
    right.write(wire.frame(7))
    assert wire.receive(1) == [wire.frame(7)]
    right.close()


NO_SETTINGS = [
    ({"frames": 1.5}, TypeError),
    ({"frames": 1 << 40}, ConfigError),
    ({"frames": -1}, ConfigError),
    ({"queue": "0"}, TypeError),
    ({"queue": -1}, ConfigError),
    ({"headroom": -1}, ConfigError),
    ({"headroom": 1000}, ConfigError),
    ({"headroom": 2000}, ConfigError),
    ({"poll_timeout": float("nan")}, ConfigError),
    ({"poll_timeout": float("inf")}, ConfigError),
    ({"link": ""}, ConfigError),
    ({"link": "a" * 16}, ConfigError),
    ({"mode": None}, ConfigError),
    ({"bind": ""}, ConfigError),
    ({"mode": "offload"}, (KernelError, UnsupportedError)),
    ({"bind": "zero-copy"}, KernelError),
]


def test_a_setting_that_cannot_be_leaves_nothing(inside):
    for settings, error in NO_SETTINGS:
        with pytest.raises(error):
            XdpSocket(**{"link": "f0", **SMALL} | settings)
        assert link.find_link("f0").xdp_mode == "none"


# Programs and maps


def test_a_program_without_the_map_is_named(inside):
    path = os.path.join(os.path.dirname(bpf_module.__file__), "bpf_objects", "lab_drop.o")
    with pytest.raises(KernelError, match="has an XSKMAP of that name") as caught:
        XdpSocket("f0", program=path, **SMALL)
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(KernelError, match="find program nobody"):
        XdpSocket("f0", program=f"{path}:nobody", **SMALL)


def test_a_file_that_is_no_program_is_named(inside, tmp_path):
    path = tmp_path / "program.o"
    for content in (b"", b"hello", b"\x7fELF" + bytes(100)):
        path.write_bytes(content)
        with pytest.raises((ConfigError, KernelError), match=str(path)):
            XdpSocket("f0", program=str(path), **SMALL)


@pytest.fixture
def pin_map():
    """Pin maps of bpftool's making; they are gone after the test."""
    made = []

    def pin(kind, entries=4):
        path = f"/sys/fs/bpf/l2fwd-test-{uuid4().hex[:8]}"
        subprocess.run(
            ["bpftool", "map", "create", path, "type", kind, "key", "4", "value", "4",
             "entries", str(entries), "name", "test"],
            check=True,
        )  # fmt: skip
        made.append(path)
        return path

    yield pin
    for path in made:
        os.unlink(path)


def test_a_pinned_map_takes_the_socket_if_it_is_an_xskmap(inside, pin_map):
    with XdpSocket("f0", xsks_map=pin_map("xskmap"), **SMALL) as xsk:
        assert xsk.attach_mode == "pinned"
    for kind in ("array", "hash", "devmap"):
        with pytest.raises(ConfigError, match="is no XSKMAP"):
            XdpSocket("f0", xsks_map=pin_map(kind), **SMALL)


def test_a_pinned_map_that_is_too_small_or_not_there_is_named(make_bed, pin_map):
    with link.in_netns(make_bed(queues=2).fwd):
        with pytest.raises(KernelError, match="raise its max_entries") as caught:
            XdpSocket("f0", 1, xsks_map=pin_map("xskmap", 1), **SMALL)
        assert caught.value.errno == errno.E2BIG
        with pytest.raises(KernelError, match="nothing is pinned there") as caught:
            XdpSocket("f0", xsks_map="/sys/fs/bpf/nobody", **SMALL)
        assert caught.value.errno == errno.ENOENT
