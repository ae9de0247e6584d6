"""Start, stop, kill, restart; other programs and other engines on the same links."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from l2fwd import link
from l2fwd.bpf import Attachment, describe_attached
from l2fwd.config import ForwardConfig, SocketConfig, UmemConfig
from l2fwd.datapath.afxdp import AfxdpPath
from l2fwd.datapath.queue_worker import QueueWorker
from l2fwd.xsk import BoundSocket

pytestmark = pytest.mark.privileged

SMALL = {
    "umem": UmemConfig(frame_count=256),
    "socket": SocketConfig(ring_size=64),
}


def attached(bed, ifname):
    with link.in_netns(bed.fwd):
        return describe_attached(link.find_link(ifname).ifindex)


@pytest.fixture
def foreign(bed, put_foreign_program):
    """A program that is not ours on f0."""
    put_foreign_program(bed, "f0")
    return attached(bed, "f0")


def test_after_a_stop_the_links_have_no_program(bed, forward):
    """S1"""
    forwarder = forward(bed)
    assert attached(bed, "f0").name == attached(bed, "f1").name == "l2fwd_afxdp"
    assert attached(bed, "f0").pids == (forwarder.pid,)
    forwarder.stop()
    assert attached(bed, "f0").program_id == attached(bed, "f1").program_id == 0


def test_a_second_signal_neither_hangs_nor_kills(bed, forward):
    """S2"""
    forwarder = forward(bed)
    forwarder.process.send_signal(signal.SIGINT)
    forwarder.process.send_signal(signal.SIGINT)
    forwarder.wait_for("summary")
    assert forwarder.wait() == 0


def test_a_signal_while_starting_leaves_nothing(bed, forward):
    """S2"""
    delays = random.Random(7)
    for _ in range(8):
        forwarder = forward(bed, ready=False)
        time.sleep(delays.uniform(0.1, 0.8))
        forwarder.process.send_signal(signal.SIGTERM)
        assert forwarder.wait(5) in (0, -signal.SIGTERM)
        assert "Traceback" not in forwarder.stderr
        assert attached(bed, "f0").program_id == attached(bed, "f1").program_id == 0


def test_programs_are_detached_before_sockets_close(bed, monkeypatch):
    """S3"""
    order = []
    for kind, name in ((Attachment, "detach"), (BoundSocket, "close")):
        real = getattr(kind, name)
        monkeypatch.setattr(
            kind, name, lambda self, real=real, name=name: (order.append(name), real(self))
        )
    with link.in_netns(bed.fwd):
        path = AfxdpPath(ForwardConfig(in_link="f0", out_link="f1", **SMALL), lambda event: None)
        path.start()
        path.stop()
    assert order == ["detach", "detach", "close", "close"]


def test_all_workers_are_asked_to_stop_before_any_is_waited_for(make_bed, monkeypatch):
    """S1: each may sleep a while before it looks; in turn, many queues would take seconds."""
    order = []
    for name in ("ask_to_stop", "stop"):
        real = getattr(QueueWorker, name)
        monkeypatch.setattr(
            QueueWorker, name, lambda self, real=real, name=name: (order.append(name), real(self))
        )
    with link.in_netns(make_bed(queues=4).fwd):
        path = AfxdpPath(ForwardConfig(in_link="f0", out_link="f1", **SMALL), lambda event: None)
        path.start()
        path.stop()
    assert order[:4] == ["ask_to_stop"] * 4
    assert "stop" in order[4:]


def test_what_was_received_is_sent_before_the_programs_go(bed, open_wire):
    """P12: without a program some drivers send nothing."""
    config = ForwardConfig(in_link="f0", out_link="f1", **SMALL)
    with link.in_netns(bed.fwd):
        path = AfxdpPath(config, lambda event: None)
        path.start()
    wire = open_wire(bed)
    sent = wire.send(50)
    path.stop()
    assert wire.receive(50) == sent
    assert path.sample().in_flight == 0


def test_many_starts_and_stops_do_not_grow_the_process(bed):
    """S4"""
    config = ForwardConfig(in_link="f0", out_link="f1", **SMALL)

    def cycle():
        path = AfxdpPath(config, lambda event: None)
        path.start()
        path.stop()

    with link.in_netns(bed.fwd):
        for _ in range(5):
            cycle()
        before, fds = (
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            os.listdir("/proc/self/fd"),
        )
        for _ in range(20):
            cycle()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss <= before + 1024  # KiB
    assert len(os.listdir("/proc/self/fd")) <= len(fds)


def test_a_killed_engine_leaves_no_program_and_restarts_at_once(bed, forward, open_wire):
    """S5, X8"""
    wire = open_wire(bed)
    for _ in range(5):
        forwarder = forward(bed)
        assert wire.carries()
        wire.send(200)
        forwarder.kill()
        time.sleep(0.1)
        assert attached(bed, "f0").program_id == attached(bed, "f1").program_id == 0
    forward(bed)
    assert wire.carries()


def test_a_second_engine_is_refused_and_the_first_goes_on(bed, forward, open_wire):
    """S6"""
    first = forward(bed)
    second = forward(bed, ready=False)
    assert second.wait() == 1
    assert f"held by pid {first.pid}" in second.stderr
    assert second.stderr.count("\n") <= 3
    wire = open_wire(bed)
    assert wire.carries()
    first.stop()


def test_a_foreign_program_is_refused_and_left(bed, foreign, forward):
    """S7"""
    assert foreign.name == "foreign"
    forwarder = forward(bed, ready=False)
    assert forwarder.wait() == 1
    assert "XDP program foreign" in forwarder.stderr
    assert "Traceback" not in forwarder.stderr
    assert attached(bed, "f0") == foreign
    assert attached(bed, "f1").program_id == 0


def test_unload_leaves_foreign_programs_and_running_engines(bed, foreign, forward):
    unload = forward(bed, ready=False, verb="unload", links=("f0",))
    assert unload.wait() == 1
    assert "not ours" in unload.stderr
    assert attached(bed, "f0") == foreign


def test_unload_names_the_engine_that_is_running(bed, forward):
    engine = forward(bed)
    unload = forward(bed, ready=False, verb="unload", links=("f0", "f1"))
    assert unload.wait() == 1
    assert f"held by pid {engine.pid}" in unload.stderr
    engine.stop()


def test_a_chained_program_that_outlived_its_engine_is_unloaded(bed, forward):
    """S8"""
    forwarder = forward(bed, "--chain", "--mode", "native")
    left = attached(bed, "f0")
    if left.name == "l2fwd_afxdp":  # no dispatcher in this kernel: the fall-back is said
        assert "no dispatcher" in forwarder.wait_for("warning")["message"]
    forwarder.kill()
    assert attached(bed, "f0").program_id == left.program_id
    unload = forward(bed, ready=False, verb="unload", links=("f0", "f1"))
    assert unload.wait() == 0, unload.stderr
    assert attached(bed, "f0").program_id == attached(bed, "f1").program_id == 0


def test_a_stale_program_of_ours_is_removed_at_the_next_start(bed, forward, open_wire):
    """S8"""
    forward(bed, "--chain", "--mode", "native").kill()
    forwarder = forward(bed)
    assert "left by an engine that was killed" in forwarder.wait_for("warning")["message"]
    assert open_wire(bed).carries()
    forwarder.stop()


def test_chained_programs_go_with_a_clean_stop(bed, forward, open_wire):
    forwarder = forward(bed, "--chain")
    assert open_wire(bed).carries()
    forwarder.stop()
    assert attached(bed, "f0").program_id == attached(bed, "f1").program_id == 0


def test_a_chained_engine_takes_over_from_one_that_was_killed(bed, forward, open_wire):
    forward(bed, "--chain", "--mode", "native").kill()
    again = forward(bed, "--chain", "--mode", "native")
    assert open_wire(bed).carries()
    assert forward(bed, ready=False).wait() == 1  # and a live one is not taken for a stale one
    again.stop()


def test_chaining_to_a_program_that_libxdp_did_not_attach_is_refused(bed, foreign, forward):
    forwarder = forward(bed, "--chain", ready=False)
    assert forwarder.wait() == 1
    assert "was not attached through libxdp" in forwarder.stderr
    assert attached(bed, "f0") == foreign


def test_an_idle_engine_sleeps(bed, forward):
    """S9"""
    forwarder = forward(bed, "--interval", "0")

    def cpu_seconds():
        fields = Path(f"/proc/{forwarder.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    used, began = cpu_seconds(), time.monotonic()
    time.sleep(3)
    share = (cpu_seconds() - used) / (time.monotonic() - began)
    assert share < 0.05
    forwarder.stop()


@pytest.fixture
def bridge(bed):
    with link.in_netns(bed.fwd), IPRoute() as route:
        route.link("add", ifname="br0", kind="bridge")
        link.set_up("br0")
    return "br0"


def test_a_link_without_native_xdp_falls_back_aloud(bed, bridge, forward):
    """S10"""
    forwarder = forward(bed, links=(bridge, "f1"))
    modes = {s["link"]: s["attach_mode"] for s in forwarder.events[-1]["sockets"]}
    assert modes == {bridge: "skb", "f1": "native"}
    while "native XDP refused, fell back to skb" not in forwarder.wait_for("warning")["message"]:
        pass
    forwarder.stop()


@pytest.mark.parametrize(
    ("option", "code"), [(["--mode", "native"], 4), (["--strict"], 1), (["--mode", "offload"], 4)]
)
def test_what_must_be_native_is_refused_on_a_bridge(bed, bridge, forward, option, code):
    """S10"""
    forwarder = forward(bed, *option, links=(bridge, "f1"), ready=False)
    assert forwarder.wait() == code, forwarder.stderr
    assert "Traceback" not in forwarder.stderr
    assert attached(bed, "f1").program_id == 0


@pytest.mark.parametrize(
    "rest", ["--interval 0.05 | head -n 3", "--duration 0.3 --interval 0 | head -n 2", "-d 0.1 >&-"]
)
def test_it_ends_cleanly_when_nobody_reads_its_output_any_more(bed, rest):
    command = f"{sys.executable} -m l2fwd forward f0 f1 {rest}"
    done = subprocess.run(
        ["nsenter", f"--net=/run/netns/{bed.fwd}", "bash", "-c", f"set -o pipefail; {command}"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert attached(bed, "f0").program_id == 0


@pytest.mark.parametrize("verb", ["forward f0 f1", "check f0"])
def test_output_that_cannot_be_written_is_said_in_one_line(bed, verb):
    command = f"{sys.executable} -m l2fwd {verb} > /dev/full"
    done = subprocess.run(
        ["nsenter", f"--net=/run/netns/{bed.fwd}", "bash", "-c", command],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert done.stderr.count("\n") == 1
    assert attached(bed, "f0").program_id == 0


def test_help_needs_no_numpy_and_no_pyroute2():
    for verb in ("forward", "lab", "check", "unload"):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "l2fwd", verb, "--help"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert verb in done.stdout
        assert "numpy" not in done.stderr
        assert "pyroute2" not in done.stderr
