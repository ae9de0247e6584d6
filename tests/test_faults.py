"""What dies or stalls under a running engine is noticed, counted and brought back."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from l2fwd import link
from l2fwd.bpf import Program, describe_attached
from l2fwd.config import ForwardConfig
from l2fwd.datapath.afxdp import AfxdpPath
from l2fwd.errors import kernel_error

pytestmark = pytest.mark.privileged


def drain(wire):
    while wire.receive(1000, seconds=0.2):
        pass


@pytest.mark.parametrize("ifname", ["f0", "f1"])
def test_forwarding_goes_on_after_a_link_was_down(bed, forward, open_wire, ifname):
    """X1"""
    forwarder = forward(bed)
    wire = open_wire(bed)
    assert wire.carries()
    with link.in_netns(bed.fwd):
        program = link.find_link(ifname).xdp_program_id
        link.set_down(ifname)
        for number in range(100):
            try:
                wire.send(1, first=number)
            except OSError:  # the outer end has lost its carrier
                break
        link.set_up(ifname)
        assert wire.carries()
        assert link.find_link(ifname).xdp_program_id == program
    assert forwarder.stop()["unaccounted"] == 0


def test_frames_wait_for_their_own_link_and_the_overflow_is_counted(bed, forward, open_wire):
    """X1, O3: ENETDOWN"""
    forwarder = forward(bed, "--ring-size", "64", "--batch-size", "32")
    wire = open_wire(bed)
    assert wire.carries()
    drain(wire)
    with link.in_netns(bed.fwd):
        link.set_down("f1")
        for turn in range(20):  # in step with the engine: its fill ring never runs empty
            wire.send(10, first=turn * 10)
            time.sleep(0.05)
        link.set_up("f1")
    assert wire.carries()
    drain(wire)
    summary = forwarder.stop()
    drops = summary["drops"]
    assert drops["tx_full_drops"] + drops.get("tx_busy_drops", 0) >= 200 - 64
    assert summary["unaccounted"] == 0
    assert summary["frames"]["pool"] + summary["frames"]["fill"] == summary["frame_count"]


def test_a_frame_completed_unsent_is_a_drop(bed, forward, open_wire):
    """X2: the peer's carrier is lost; sendto says EBUSY and completes the frame."""
    forwarder = forward(bed)
    wire = open_wire(bed)
    assert wire.carries()
    drain(wire)
    with link.in_netns(bed.sink):
        link.set_down("s0")
    wire.send(50)
    time.sleep(0.5)
    with link.in_netns(bed.sink):
        link.set_up("s0")
    assert wire.carries()
    summary = forwarder.stop()
    assert summary["drops"]["tx_busy_drops"] == 50
    assert summary["unaccounted"] == 0


def recreate(bed, ifname, before_up=lambda: None):
    """Delete one of the middle links and make it again, as Bed does."""
    outer = {"f0": (bed.gen, "g0"), "f1": (bed.sink, "s0")}[ifname]
    with link.in_netns(bed.fwd):
        link.delete_link(ifname)
    yield
    link.create_veth(outer, (bed.fwd, ifname))
    before_up()
    for netns, name in (outer, (bed.fwd, ifname)):
        with link.in_netns(netns):
            link.disable_ipv6(name)
            link.set_promiscuous(name, True)
            link.set_up(name)


@pytest.mark.parametrize("ifname", ["f0", "f1"])
def test_a_link_deleted_and_made_again_is_picked_up(bed, forward, open_wire, ifname):
    """X3, X4"""
    forwarder = forward(bed)
    assert open_wire(bed).carries()
    steps = recreate(bed, ifname)
    next(steps)
    assert forwarder.wait_for("port_down", 2)["queue"] == 0
    time.sleep(0.5)
    assert forwarder.process.poll() is None
    next(steps, None)
    forwarder.wait_for("port_up", 3)
    assert open_wire(bed).carries()
    assert forwarder.stop()["unaccounted"] == 0


def test_what_hinders_the_mending_is_said_and_the_mending_goes_on(
    bed, forward, open_wire, put_foreign_program
):
    """X4: the link comes back with somebody else's program, goes again, and comes back clean."""
    forwarder = forward(bed)
    steps = recreate(bed, "f0", before_up=lambda: put_foreign_program(bed, "f0"))
    next(steps)
    forwarder.wait_for("port_down", 2)
    next(steps, None)
    while "XDP program foreign" not in forwarder.wait_for("warning", 3)["message"]:
        pass
    steps = recreate(bed, "f0")
    next(steps)
    time.sleep(0.3)
    next(steps, None)
    forwarder.wait_for("port_up", 4)
    assert open_wire(bed).carries()
    assert forwarder.stop()["unaccounted"] == 0


def test_a_pair_that_cannot_be_opened_again_is_tried_again(bed, forward, monkeypatch):
    """The socket map refuses once while mending: the pair is closed, not left half open."""
    events = []
    with link.in_netns(bed.fwd):
        path = AfxdpPath(ForwardConfig(in_link="f0", out_link="f1"), events.append)
        path.start()
        path._down(path.workers, "by the test")
        real, calls = Program.set_socket, []

        def fail_once(self, *arguments):
            calls.append(arguments)
            if len(calls) == 1:
                raise kernel_error(errno.ENOMEM, "update map", "sockets[0]")
            real(self, *arguments)

        monkeypatch.setattr(Program, "set_socket", fail_once)
        open_after = []
        for _ in range(40):
            path.watch()
            if len(calls) > len(open_after):
                open_after.append(path.workers[0].is_open)
            if any(event["event"] == "port_up" for event in events):
                break
            time.sleep(0.1)
        path.stop()
    assert open_after == [False, True]
    assert events[-1] == {"event": "port_up", "queue": 0, "links": ["f0", "f1"]}


def test_a_pair_that_dies_at_once_is_not_opened_without_pause(bed, forward, shim):
    forwarder = forward(bed, environment={"LD_PRELOAD": shim, "SENDTO_ERRNO": "6", "EVERY": "1"})
    ends = time.monotonic() + 3
    with link.in_netns(bed.gen):
        while time.monotonic() < ends:
            subprocess.run(["ping", "-c", "1", "-W", "0.1", "10.77.0.2"], timeout=10, check=False)
    forwarder.stop()
    downs = [event for event in forwarder.events if event["event"] == "port_down"]
    assert 1 <= len(downs) <= 8


def test_a_link_moved_to_another_namespace_is_noticed(bed, forward, open_wire):
    """X5"""
    forwarder = forward(bed)
    subprocess.run(
        ["ip", "-n", bed.fwd, "link", "set", "f1", "netns", bed.sink], check=True, timeout=10
    )
    forwarder.wait_for("port_down", 2)
    with link.in_netns(bed.sink):
        assert link.find_link("f1").xdp_mode == "none"
        link.delete_link("f1")
    forwarder.stop()


def test_a_program_detached_by_force_is_attached_again(bed, forward, open_wire):
    """X6"""
    forwarder = forward(bed)
    with link.in_netns(bed.fwd):
        link_id = describe_attached(link.find_link("f0").ifindex).link_id
    subprocess.run(["bpftool", "link", "detach", "id", str(link_id)], check=True, timeout=10)
    assert forwarder.wait_for("program_lost", 5)["link"] == "f0"
    forwarder.wait_for("program_attached", 5)
    assert open_wire(bed).carries()
    forwarder.stop()


def test_an_engine_that_was_suspended_goes_on_and_its_books_balance(bed, forward, open_wire):
    """O1, O6: the fill ring runs empty while the worker is stopped."""
    forwarder = forward(bed, "--ring-size", "256")
    wire = open_wire(bed)
    assert wire.carries()
    drain(wire)
    before = forwarder_counters(forwarder)
    os.kill(forwarder.pid, signal.SIGSTOP)
    time.sleep(0.2)
    wire.send(2000)
    os.kill(forwarder.pid, signal.SIGCONT)
    received = wire.receive(2000)
    summary = forwarder.stop()
    assert summary["forwarded"] - before["forwarded"] == len(received)
    lost = summary["drops"]["rx_fill_empty_drops"]
    assert lost + len(received) == 2000
    # What is lent fits the rx ring, so that ring never overflows (O2).
    assert "rx_ring_full_drops" not in summary["drops"]
    assert summary["unaccounted"] == 0


def forwarder_counters(forwarder):
    """Return the next two stats' later one: traffic up to now is in it."""
    forwarder.wait_for("stats")
    return forwarder.wait_for("stats")


def test_a_packet_longer_than_a_frame_is_counted(bed, forward, open_wire):
    """O4"""
    forwarder = forward(bed)
    for netns, ifname in ((bed.gen, "g0"), (bed.fwd, "f0")):
        with link.in_netns(netns):
            link.set_mtu(ifname, 3000)
    wire = open_wire(bed)
    for number in range(50):
        wire.send(1, first=number, length=2500)
        wire.send(1, first=number, length=1000)
    assert len(wire.receive(50)) == 50
    summary = forwarder.stop()
    assert summary["drops"] == {"rx_oversize_drops": 50}
    assert summary["forwarded"] == 50


def test_a_packet_over_the_other_links_mtu_is_counted(bed, forward, open_wire):
    """F8"""
    for netns, ifname in ((bed.fwd, "f1"), (bed.sink, "s0")):
        with link.in_netns(netns):
            link.set_mtu(ifname, 1000)
    forwarder = forward(bed)
    wire = open_wire(bed)
    wire.send(10, length=1400)
    sent = wire.send(10, length=900)
    assert wire.receive(10) == sent
    assert forwarder.stop()["drops"] == {"tx_busy_drops": 10}


# Faults injected into system calls

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>

ssize_t sendto(int fd, const void *data, size_t length, int flags,
           const struct sockaddr *to, socklen_t size)
{
    static ssize_t (*real)(int, const void *, size_t, int, const struct sockaddr *, socklen_t);
    static int calls;
    const char *fault = getenv("SENDTO_ERRNO");

    if (!real)
        real = dlsym(RTLD_NEXT, "sendto");
    if (fault && !length && (getenv("EVERY") || ++calls % 3)) {
        errno = atoi(fault);
        return -1;
    }
    return real(fd, data, length, flags, to, size);
}

int socket(int family, int type, int protocol)
{
    static int (*real)(int, int, int);

    if (!real)
        real = dlsym(RTLD_NEXT, "socket");
    if (family == 44 && getenv("NO_AF_XDP")) {
        errno = EAFNOSUPPORT;
        return -1;
    }
    return real(family, type, protocol);
}
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    """A library that makes system calls fail, for LD_PRELOAD."""
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(SHIM)
    library = folder / "shim.so"
    command = ["cc", "-shared", "-fPIC", "-o", library, folder / "shim.c", "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    return str(library)


@pytest.mark.parametrize("number", [11, 4, 105, 12], ids=["EAGAIN", "EINTR", "ENOBUFS", "ENOMEM"])
def test_a_failing_sendto_is_tried_again_and_loses_nothing(bed, forward, open_wire, shim, number):
    """X14, P26"""
    environment = {"LD_PRELOAD": shim, "SENDTO_ERRNO": str(number)}
    forwarder = forward(bed, environment=environment)
    wire = open_wire(bed)
    sent = wire.send(300)
    assert wire.receive(300) == sent
    summary = forwarder.stop()
    assert summary["drops"] == {}
    assert summary["unaccounted"] == 0


def test_no_af_xdp_is_said_in_one_line(bed, forward, shim):
    """X12"""
    forwarder = forward(bed, ready=False, environment={"LD_PRELOAD": shim, "NO_AF_XDP": "1"})
    assert forwarder.wait() == 4
    assert "EAFNOSUPPORT" in forwarder.stderr
    assert "CONFIG_XDP_SOCKETS" in forwarder.stderr
    assert "Traceback" not in forwarder.stderr


def test_no_bpffs_is_no_obstacle(bed):
    """X12: ip netns exec hides it."""
    command = ["ip", "netns", "exec", bed.fwd, sys.executable, "-m", "l2fwd", "forward"]
    arguments = ["f0", "f1", "--json", "--duration", "0.2"]
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=30, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1])["unaccounted"] == 0


def test_a_socket_that_dies_for_good_reports_its_reason(bed, forward, shim):
    """X14: an errno that no retry can mend."""
    forwarder = forward(bed, environment={"LD_PRELOAD": shim, "SENDTO_ERRNO": "6"})
    with link.in_netns(bed.gen):
        subprocess.run(["ping", "-c", "1", "-W", "1", "10.77.0.2"], timeout=10, check=False)
    assert "ENXIO" in forwarder.wait_for("port_down", 3)["reason"]
    forwarder.wait_for("port_up", 3)
    forwarder.stop()


@pytest.fixture
def memory_cgroup():
    """A memory control group of 48 MiB."""
    for root, limit in (
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        ("/sys/fs/cgroup", "memory.max"),
    ):
        folder = Path(root) / f"l2fwd-test-{os.getpid()}"
        try:
            folder.mkdir()
            (folder / limit).write_text(str(48 << 20))
        except OSError:
            continue
        yield folder
        folder.rmdir()
        return
    pytest.skip("no writable memory control group here")


def test_out_of_memory_leaves_nothing_attached(bed, forward, memory_cgroup):
    """X11"""
    join = ["sh", "-c", f'echo $$ > {memory_cgroup}/cgroup.procs; exec "$@"', "sh"]
    forwarder = forward(bed, "--frames", 65536, prefix=join, ready=False)
    assert forwarder.wait(30) != 0
    assert "Traceback" not in forwarder.stderr
    with link.in_netns(bed.fwd):
        assert link.find_link("f0").xdp_mode == link.find_link("f1").xdp_mode == "none"
