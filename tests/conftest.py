"""Fixtures: a veth bed, a forwarder as a child process, frames on the wire, leak probes."""

import ctypes
import fcntl
import json
import os
import queue
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from uuid import uuid4

import pytest
from pyroute2 import IPRoute

from bench.leaks import kernel_objects, left_for_good
from l2fwd import link
from l2fwd.lab import Bed

ETHERTYPE = 0x88B5  # IEEE 802 local experimental
READY_SECONDS = 60  # a busy machine, or an emulated one
LOCK_FLAGS = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC

if os.environ.get("CI"):
    from hypothesis import settings  # takes long, emulated

    # A change is judged by the same examples each time; new ones are looked for by hand.
    settings.register_profile("ci", derandomize=True)
    settings.load_profile("ci")


def pytest_configure(config):
    """Wait for another run to end: the probes count what is in the kernel, whoever put it there."""
    lock = os.open(Path(tempfile.gettempdir(), f"l2fwd-tests-{os.getuid()}.lock"), LOCK_FLAGS)
    config.add_cleanup(lambda: os.close(lock))
    fcntl.flock(lock, fcntl.LOCK_EX)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("privileged") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root: sudo make test"))


# Leak probes


@pytest.fixture(autouse=True)
def no_leaks(request):
    """Every privileged test leaves the kernel as it found it; freeing may take a moment."""
    if not request.node.get_closest_marker("privileged") or os.geteuid() != 0:
        yield
        return
    before = kernel_objects()
    yield
    assert left_for_good(before) == {}


# The bed


@pytest.fixture
def pair():
    """Two namespaces joined by a veth: ``left`` in the one, ``right`` in the other."""
    token = uuid4().hex[:8]
    names = f"l2fwd-test-{token}-l", f"l2fwd-test-{token}-r"
    try:
        for name in names:
            link.create_netns(name)
        link.create_veth((names[0], "left"), (names[1], "right"), queues=2, mtu=1400)
        yield names
    finally:
        for name in names:
            link.remove_netns(name)


@pytest.fixture
def make_bed(request):
    """Make beds of unique name; they go away with the test."""
    beds = []

    def make(**settings):
        bed = Bed(f"t{uuid4().hex[:8]}", **settings)
        bed.up()
        beds.append(bed)
        return bed

    yield make
    for bed in beds:
        bed.down()


@pytest.fixture
def bed(make_bed):
    """A bed with one queue per link."""
    return make_bed()


def start_process(netns, words, *, environment=None, prefix=()):
    """Start ``python -m l2fwd`` in a namespace."""
    enter = ("nsenter", f"--net=/run/netns/{netns}", *prefix)
    return subprocess.Popen(
        [*enter, sys.executable, "-m", "l2fwd", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | (environment or {}),
    )


@pytest.fixture
def start_l2fwd():
    """How ``forward`` starts a process."""
    return start_process


class Forwarder:
    """``python -m l2fwd forward`` in a bed's middle namespace, and the events it prints."""

    def __init__(self, netns, *arguments, verb="forward", start=start_process, **settings):
        self.process = start(netns, [verb, *map(str, arguments)], **settings)
        self.events = []
        self._queue = queue.Queue()
        self._stderr = []
        self._threads = [
            threading.Thread(target=self._read_events, daemon=True),
            threading.Thread(target=self._read_stderr, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _read_events(self):
        for line in self.process.stdout:
            self._queue.put(json.loads(line))
        self._queue.put(None)

    def _read_stderr(self):
        self._stderr.extend(self.process.stderr)

    @property
    def pid(self):
        return self.process.pid

    @property
    def stderr(self):
        return "".join(self._stderr)

    def wait_for(self, kind, seconds=READY_SECONDS):
        """Return the next event of ``kind``."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                event = self._queue.get(timeout=max(0.001, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(
                    f"no {kind!r} event within {seconds} s: {self.events}"
                ) from None
            assert event is not None, f"ended without a {kind!r} event: {self.stderr}"
            self.events.append(event)
            if event["event"] == kind:
                return event

    def stop(self, number=signal.SIGTERM):
        """Signal it, and return its summary; it must exit 0."""
        self.process.send_signal(number)
        summary = self.wait_for("summary")
        assert self.wait() == 0, self.stderr
        return summary

    def kill(self):
        self.process.kill()
        return self.wait()

    def wait(self, seconds=10):
        code = self.process.wait(seconds)
        for thread in self._threads:
            thread.join(seconds)
        for stream in (self.process.stdout, self.process.stderr):
            stream.close()
        return code


@pytest.fixture
def forward(start_l2fwd):
    """Start forwarders in a bed and wait until they are ready; none outlives the test."""
    running = []

    def start(bed, *arguments, links=None, ready=True, **settings):
        links = (bed.in_link, bed.out_link) if links is None else links
        forwarder = Forwarder(bed.fwd, *links, "--json", *arguments, start=start_l2fwd, **settings)
        running.append(forwarder)
        if ready:
            forwarder.ready = forwarder.wait_for("ready")
        return forwarder

    yield start
    for forwarder in running:
        if forwarder.process.poll() is None:
            forwarder.kill()


class Wire:
    """A raw socket at each outer end of a bed."""

    patience = 2.0  # seconds to wait for frames; more where all is emulated

    def __init__(self, bed):
        self.gen = self._open(bed.gen, bed.gen_link)
        self.sink = self._open(bed.sink, bed.sink_link)

    @staticmethod
    def _open(netns, ifname):
        with link.in_netns(netns):
            end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE))
            end.bind((ifname, ETHERTYPE))
        end.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
        end.settimeout(2)
        return end

    @staticmethod
    def frame(number, length=60):
        head = bytes.fromhex("020000000002") + bytes.fromhex("020000000001")
        head += struct.pack(">HI", ETHERTYPE, number)
        return (head + bytes((number + i) & 0xFF for i in range(length)))[:length]

    def send(self, count, *, first=0, length=60, source=None):
        """Send numbered frames; return them."""
        frames = [self.frame(first + i, length) for i in range(count)]
        for frame in frames:
            (source or self.gen).send(frame)
        return frames

    def receive(self, count, *, end=None, seconds=None):
        """Return up to ``count`` frames, as many as come within ``seconds``."""
        end = end or self.sink
        frames = []
        deadline = time.monotonic() + (self.patience if seconds is None else seconds)
        while len(frames) < count and time.monotonic() < deadline:
            end.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data, (_, _, kind, *_) = end.recvfrom(65536)
            except TimeoutError:
                break
            except OSError:  # said once, after the link was down
                continue
            if kind != socket.PACKET_OUTGOING:
                frames.append(data)
        return frames

    def carries(self, seconds=2.0):
        """Tell whether a fresh frame gets through within ``seconds``, trying every 10 ms."""
        deadline = time.monotonic() + seconds
        number = int(time.monotonic() * 1e6) & 0x7FFFFFFF
        while time.monotonic() < deadline:
            number += 1
            (frame,) = self.send(1, first=number)
            if frame in self.receive(64, seconds=0.01):
                return True
        return False

    def close(self):
        self.gen.close()
        self.sink.close()


@pytest.fixture
def open_wire():
    """Open the ends of a bed."""
    wires = []

    def open_it(bed):
        wires.append(Wire(bed))
        return wires[-1]

    yield open_it
    for wire in wires:
        wire.close()


@pytest.fixture
def in_fwd():
    """Run a function in a bed's middle namespace."""

    def run(bed, function, *arguments, **settings):
        with link.in_netns(bed.fwd):
            return function(*arguments, **settings)

    return run


# Other programs


def foreign_program():
    """Load an XDP program that passes everything; return its fd."""
    code = struct.pack("<BBhi", 0xB7, 0, 0, 2) + struct.pack("<BBhi", 0x95, 0, 0, 0)
    code, licence = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"GPL")
    attr = struct.pack(
        "IIQQIIQII", 6, 2, ctypes.addressof(code), ctypes.addressof(licence), 0, 0, 0, 0, 0
    )
    attr = ctypes.create_string_buffer(attr + b"foreign".ljust(16, b"\0"), 128)
    fd = ctypes.CDLL(None, use_errno=True).syscall(321, 5, attr, 128)
    assert fd >= 0, os.strerror(ctypes.get_errno())
    return fd


@pytest.fixture
def put_foreign_program():
    """Attach a program that is not ours, over netlink as ip-link(8) does."""

    def put(bed, ifname):
        fd = foreign_program()
        with link.in_netns(bed.fwd), IPRoute() as route:
            route.link("set", index=link.find_link(ifname).ifindex, xdp_fd=fd)
        os.close(fd)

    return put
