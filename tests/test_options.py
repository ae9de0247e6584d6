"""Every option reaches the kernel, the worker or the printed line it is about."""

import argparse
import contextlib
import errno
import os
import re
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from l2fwd import link, xsk
from l2fwd.abi import XDP_COPY, XDP_USE_NEED_WAKEUP, XDP_ZEROCOPY
from l2fwd.cli.forward import add_arguments, config_from
from l2fwd.config import AttachMode, BindMode
from l2fwd.datapath.afxdp import AfxdpPath
from l2fwd.errors import KernelError, kernel_error

pytestmark = pytest.mark.privileged

SMALL = ("--ring-size", "64", "--frames", "256")


def configure(*options):
    """Turn command-line options into a configuration, as the verb does."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return config_from(parser.parse_args(["f0", "f1", *SMALL, *options]))


def kinds(forwarder):
    return [e["event"] for e in forwarder.events if e["event"] != "warning"]


def run_plain(bed, *options):
    """Run ``forward`` to its end without ``--json``."""
    command = ["nsenter", f"--net=/run/netns/{bed.fwd}", sys.executable, "-m", "l2fwd", "forward"]
    return subprocess.run(
        [*command, "f0", "f1", "--duration", "0.3", *options],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )


# Letters, and what they print


def test_the_letters_of_the_tools_are_known_to_forward():
    config = configure("-S", "-c", "-p", "-Q", "-x", "-a", "--force")
    assert config.mode is AttachMode.SKB
    assert config.socket.bind_mode is BindMode.COPY
    assert config.force
    assert not config.busy_poll


@pytest.mark.parametrize("data_path", ["afxdp", "hybrid", "redirect"])
def test_what_is_asked_for_by_socket_is_in_the_summary_of_a_quiet_run(bed, data_path):
    out = run_plain(bed, "-Qxa", "--data-path", data_path).stdout
    after = out.partition("unaccounted 0")[2]
    assert ("f0 queue 0: worker_turns" in after) is (data_path != "redirect")
    assert ("f0 in the kernel drops: -" in after) is (data_path != "afxdp")
    assert "queue -1" not in out


@pytest.mark.parametrize("verb", ["macswap", "l3fwd"])
def test_links_may_stand_between_options(bed, verb):
    done = subprocess.run(
        ["nsenter", f"--net=/run/netns/{bed.fwd}", sys.executable, "-m", "l2fwd", verb,
         "f0", "--duration", "0.1", "nosuch", "-Q"],
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "unrecognized" not in done.stderr


def test_force_removes_another_program(bed, put_foreign_program):
    put_foreign_program(bed, "f0")
    assert "removed XDP program foreign" in run_plain(bed, "--force").stderr


# The links


def promiscuous():
    return [link.find_link(name).is_promiscuous for name in ("f0", "f1")]


@pytest.fixture
def choosy_bed(bed, in_fwd):
    """A bed whose middle links take in only what is addressed to them."""
    for name in ("f0", "f1"):
        in_fwd(bed, link.set_promiscuous, name, False)
    assert in_fwd(bed, promiscuous) == [False, False]
    return bed


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_the_links_are_promiscuous_while_it_runs_and_not_after(choosy_bed, forward, in_fwd, end):
    forwarder = forward(choosy_bed)
    assert in_fwd(choosy_bed, promiscuous) == [True, True]
    getattr(forwarder, end)()
    assert in_fwd(choosy_bed, promiscuous) == [False, False]


def test_a_stopped_path_leaves_no_link_promiscuous(choosy_bed):
    """Its process may live on."""
    with link.in_netns(choosy_bed.fwd):
        path = AfxdpPath(configure(), lambda event: None)
        path.start()
        assert promiscuous() == [True, True]
        path.stop()
        assert promiscuous() == [False, False]


@pytest.fixture
def lose_carrier(monkeypatch):
    """Make links look as if they had no carrier for some seconds; return when that ends."""
    real = link.find_link

    def lose(seconds):
        end = time.monotonic() + seconds

        def find_link(ifname):
            found = real(ifname)
            return found if time.monotonic() >= end else replace(found, has_carrier=False)

        monkeypatch.setattr(link, "find_link", find_link)
        return end

    return lose


def start_and_stop(path):
    """Return when it was ready."""
    try:
        path.start()
        return time.monotonic()
    finally:
        path.stop()


def carrier_warnings(events):
    return [e["message"] for e in events if "carrier" in e.get("message", "")]


def test_it_waits_for_a_carrier_that_attaching_took_away(bed, lose_carrier):
    events = []
    with link.in_netns(bed.fwd):
        path = AfxdpPath(configure(), events.append)
        carrier_back = lose_carrier(0.4)
        assert start_and_stop(path) >= carrier_back
    assert carrier_warnings(events) == []


def test_it_goes_on_aloud_when_the_carrier_does_not_come_back(bed, lose_carrier):
    events = []
    with link.in_netns(bed.fwd):
        path = AfxdpPath(replace(configure(), carrier_timeout=0.3), events.append)
        began = time.monotonic()
        lose_carrier(60)
        assert 0.3 <= start_and_stop(path) - began < 3
    assert sorted(message.split(":")[0] for message in carrier_warnings(events)) == ["f0", "f1"]


def test_a_carrier_that_was_never_there_is_told_and_not_waited_for(bed, forward):
    """Waiting would cost the five seconds of ``carrier_timeout``."""
    with link.in_netns(bed.gen):
        link.set_down("g0")
    forwarder = forward(bed, ready=False)
    forwarder.wait_for("ready", 3)
    forwarder.stop()
    (warning,) = carrier_warnings(forwarder.events)
    assert warning.startswith("f0: no carrier; ")


# The worker


def tasks_pinned_to_one_cpu(pid):
    found = []
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        with contextlib.suppress(FileNotFoundError):  # it ended meanwhile
            allowed = re.search(r"^Cpus_allowed_list:\t(.+)$", status.read_text(), re.MULTILINE)[1]
            found += [int(allowed)] if allowed.isdigit() else []
    return found


def test_a_worker_runs_on_the_cpu_it_was_given(bed, forward):
    usable = os.sched_getaffinity(0)
    if len(usable) < 2:
        pytest.skip("needs two CPUs: on one, every thread is pinned")
    cpu = max(usable)
    forwarder = forward(bed, "--cpus", cpu)
    assert [s["cpu"] for s in forwarder.events[-1]["sockets"]] == [cpu, cpu]
    deadline = time.monotonic() + 2
    while not tasks_pinned_to_one_cpu(forwarder.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert tasks_pinned_to_one_cpu(forwarder.pid) == [cpu]  # the worker, and no other thread
    forwarder.stop()


def busy_share(pid, seconds=1.0):
    """Measure the CPU share of a process over a while."""

    def used():
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before, began = used(), time.monotonic()
    time.sleep(seconds)
    return (used() - before) / (time.monotonic() - began)


def test_busy_poll_takes_a_whole_cpu_and_the_default_does_not(bed, forward):
    sleeper = forward(bed)
    assert busy_share(sleeper.pid) < 0.2
    sleeper.stop()
    poller = forward(bed, "--busy-poll")
    # A neighbour may take the CPU away for a while.
    assert any(busy_share(poller.pid, 0.5) > 0.5 for _ in range(6))
    poller.stop()


def wakeups_of_a_backlog(forwarder, wire, count=200):
    """Queue packets while the engine is suspended; return its calls to send them all."""
    os.kill(forwarder.pid, signal.SIGSTOP)
    time.sleep(0.1)
    sent = wire.send(count)
    os.kill(forwarder.pid, signal.SIGCONT)
    assert wire.receive(count) == sent
    (sender,) = (port for port in forwarder.stop()["ports"] if port["link"] == "f1")
    assert sender["tx_packets"] == count
    return sender["tx_wakeups"]


def test_one_system_call_sends_a_whole_batch(bed, forward, open_wire):
    """P24: the kernel's own budget is 32 packets a call, 7 calls for these 200."""
    forwarder = forward(bed, "--batch-size", "256", "--ring-size", "2048")
    budgets = {s["tx_budget"] for s in forwarder.events[-1]["sockets"]}
    if budgets == {0}:
        pytest.skip("this kernel has no XDP_MAX_TX_SKB_BUDGET")
    assert budgets == {256}
    assert wakeups_of_a_backlog(forwarder, open_wire(bed)) <= 3


def test_the_batch_size_bounds_a_burst(bed, forward, open_wire):
    """Each burst is sent by a call of its own: 200 packets in bursts of 8 are 25 calls."""
    forwarder = forward(bed, "--batch-size", "8")
    assert wakeups_of_a_backlog(forwarder, open_wire(bed)) >= 25


# The sockets


@pytest.fixture
def binds(monkeypatch):
    """Record the flags of every bind, in order."""
    seen = []
    real = xsk.SocketHandle

    def bind(umem, ifname, queue_id, flags):
        seen.append(flags)
        return real(umem, ifname, queue_id, flags)

    monkeypatch.setattr(xsk, "SocketHandle", bind)
    return seen


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ([], XDP_USE_NEED_WAKEUP),
        (["--need-wakeup"], XDP_USE_NEED_WAKEUP),
        (["--no-need-wakeup"], 0),
        (["--bind", "auto", "--no-need-wakeup"], 0),
        (["--bind", "copy"], XDP_COPY | XDP_USE_NEED_WAKEUP),
        (["--bind", "copy", "--no-need-wakeup"], XDP_COPY),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bind_mode_and_need_wakeup_reach_bind(bed, binds, options, flags):
    with link.in_netns(bed.fwd):
        start_and_stop(AfxdpPath(configure(*options), lambda event: None))
    assert binds == [flags, flags]


def test_zero_copy_asked_for_never_becomes_copy(bed, binds):
    with link.in_netns(bed.fwd):
        path = AfxdpPath(configure("--bind", "zero-copy"), lambda event: None)
        with pytest.raises(KernelError, match="EOPNOTSUPP"):
            start_and_stop(path)
    assert binds == [XDP_ZEROCOPY | XDP_USE_NEED_WAKEUP]


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL])
def test_both_sockets_fall_back_to_copy_when_only_the_first_has_zero_copy(
    bed, binds, monkeypatch, number
):
    record = xsk.SocketHandle

    def bind(umem, ifname, queue_id, flags):
        handle = record(umem, ifname, queue_id, flags)
        if ifname == "f1" and not flags & XDP_COPY:
            handle.close()
            raise kernel_error(number, "bind", f"{ifname} queue {queue_id}")
        return handle

    monkeypatch.setattr(xsk, "SocketHandle", bind)
    before = os.listdir("/proc/self/fd")
    with link.in_netns(bed.fwd):
        path = AfxdpPath(configure(), lambda event: None)
        sockets = path.start()["sockets"]
        path.stop()
    assert [s["bind_mode"] for s in sockets] == ["copy", "copy"]
    assert [bool(flags & XDP_COPY) for flags in binds[-2:]] == [True, True]
    assert not any(flags & XDP_COPY for flags in binds[:2])
    assert len(os.listdir("/proc/self/fd")) <= len(before)


def test_sizes_reach_the_sockets(bed, forward, open_wire):
    sizes = {"ring_size": 128, "frames": 1024, "frame_size": 4096}
    options = ("--ring-size", "128", "--frames", "1024", "--frame-size", "4096")
    forwarder = forward(bed, *options, "--batch-size", "48")
    for s in forwarder.events[-1]["sockets"]:
        assert {name: s[name] for name in sizes} == sizes
        assert s["tx_budget"] in (48, 0)  # 0: this kernel has no such option
    assert open_wire(bed).carries()
    assert forwarder.stop()["frame_count"] == 1024


def test_no_descriptor_survives_into_a_child(bed, forward):
    """X9: an inherited socket would keep its queue bound after the engine."""
    forwarder = forward(bed)
    inherited, sockets = [], 0
    for fd in Path(f"/proc/{forwarder.pid}/fd").iterdir():
        target = os.readlink(fd)
        sockets += target.startswith("socket:")
        text = Path(f"/proc/{forwarder.pid}/fdinfo/{fd.name}").read_text()
        flags = int(re.search(r"^flags:\s+(\d+)", text, re.MULTILINE)[1], 8)
        if int(fd.name) > 2 and not flags & os.O_CLOEXEC:
            inherited.append(target)
    assert sockets >= 2
    assert inherited == []
    forwarder.stop()


def test_all_of_the_memlock_limit_is_used(bed, forward):
    """P4: UMEM pages are charged to it where CAP_IPC_LOCK is not ours."""
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    without = ("prlimit", f"--memlock={64 << 10}:", "setpriv", "--bounding-set", "-ipc_lock")
    forwarder = forward(bed, *SMALL, prefix=without)
    assert resource.prlimit(forwarder.pid, resource.RLIMIT_MEMLOCK) == (hard, hard)
    forwarder.stop()


# What is printed, and when


def test_quiet_leaves_out_the_reports_only(bed, forward):
    forwarder = forward(bed, "--quiet", "--interval", "0.05", "--duration", "0.5")
    forwarder.wait_for("summary")
    assert forwarder.wait() == 0
    assert kinds(forwarder) == ["ready", "summary"]


def test_reports_come_once_an_interval(bed, forward):
    forwarder = forward(bed, "--interval", "0.2", "--duration", "1.1")
    forwarder.wait_for("summary")
    assert forwarder.wait() == 0
    assert 4 <= kinds(forwarder).count("stats") <= 5  # a busy machine may delay the last


def test_interval_zero_gives_no_reports(bed, forward):
    """Longer than the default interval, which would show otherwise."""
    forwarder = forward(bed, "--interval", "0", "--duration", "1.2")
    forwarder.wait_for("summary")
    assert forwarder.wait() == 0
    assert kinds(forwarder) == ["ready", "summary"]


def test_duration_zero_starts_and_ends(bed, forward):
    forwarder = forward(bed, "--duration", "0")
    assert forwarder.wait_for("summary")["forwarded"] == 0
    assert forwarder.wait() == 0
    assert kinds(forwarder) == ["ready", "summary"]


@pytest.mark.parametrize("mode", ["native", "skb"])
def test_the_first_lines_say_what_was_obtained(bed, mode):
    cpu = min(os.sched_getaffinity(0))
    options = ("--mode", mode, "--cpus", str(cpu), "--ring-size", "256", "--frame-size", "4096")
    lines = run_plain(bed, *options, "--one-way").stdout.splitlines()
    for line, name in zip(lines, ("f0", "f1"), strict=False):
        assert line.startswith(f"{name} queue 0: {mode} XDP, copy, ")
        assert "rings of 256," in line
        assert "1024 frames of 4096 bytes" in line
        assert f"cpu {cpu}" in line
    assert ["send only" in line for line in lines[:2]] == [False, True]
    unpinned = run_plain(bed, *SMALL).stdout.splitlines()
    assert all("cpu any" in line for line in unpinned[:2])


def test_plain_reports_are_a_table_that_quiet_leaves_out(bed):
    options = (*SMALL, "--interval", "0.1")
    loud, quiet = (run_plain(bed, *options, *more).stdout for more in ([], ["--quiet"]))
    assert re.search(r"^ +rx/s +tx/s .*drops$", loud, re.MULTILINE)
    assert len(re.findall(r"^total +0 ", loud, re.MULTILINE)) >= 2
    assert "rx/s" not in quiet
    assert [line.split()[0] for line in quiet.splitlines()] == ["f0", "f1", "forwarded", "frames:"]
    assert quiet.splitlines()[-2].endswith("unaccounted 0")


def test_verbose_shows_what_libbpf_says(bed):
    silent = run_plain(bed, *SMALL)
    verbose = run_plain(bed, *SMALL, "-v")
    assert "libbpf" not in silent.stderr
    assert len(re.findall(r"^l2fwd\.libbpf: libbpf: ", verbose.stderr, re.MULTILINE)) >= 3
    assert "libbpf" not in verbose.stdout
