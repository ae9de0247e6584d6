"""``forward --pin``: the kernel goes on without the process, until ``unload``, and for us alone."""

import ctypes
import errno
import os
import stat
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from l2fwd import _bpf, bpf, link, pins
from l2fwd.bpf import describe_attached
from l2fwd.config import AttachMode, ForwardConfig
from l2fwd.datapath import Stopped
from l2fwd.datapath.redirect import RedirectPath
from l2fwd.errors import ConfigError, KernelError
from tests.conftest import foreign_program
from tests.test_faults import recreate

NOBODY = 65534
PINNED = ("--data-path", "redirect", "--pin")

privileged = pytest.mark.privileged


@pytest.fixture
def bpf_fs():
    """A BPF file system of its own, open to all as the one at /sys/fs/bpf is."""
    place = Path(tempfile.mkdtemp(prefix="l2fwd test "))  # mountinfo writes the space in octal
    place.chmod(0o755)
    subprocess.run(["mount", "-t", "bpf", "-o", "mode=1777", "bpf", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)
    place.rmdir()


@pytest.fixture
def folder(bpf_fs):
    return bpf_fs / "job"


def make_path(folder):
    config = ForwardConfig(in_link="f0", out_link="f1", data_path="redirect", pin=str(folder))
    return RedirectPath(config, lambda event: None)


def attached(bed, ifname):
    with link.in_netns(bed.fwd):
        return describe_attached(link.find_link(ifname).ifindex)


def unload(forward, bed, *links):
    """Run ``unload``; return its exit code and what it said."""
    done = forward(bed, verb="unload", links=links or ("f0", "f1"), ready=False)
    return done.wait(), done.stderr


def assert_gone(bed, folder):
    assert attached(bed, "f0").program_id == attached(bed, "f1").program_id == 0
    assert not folder.exists()


def modes(folder):
    return [stat.S_IMODE(path.stat().st_mode) for path in (folder, *sorted(folder.iterdir()))]


# Going on


@privileged
@pytest.mark.parametrize("mode", ["native", "skb"])
@pytest.mark.parametrize("end", ["stop", "kill"])
def test_forwarding_goes_on_without_the_process_until_unload(
    bed, folder, forward, open_wire, mode, end
):
    wire = open_wire(bed)
    forwarder = forward(bed, *PINNED, folder, "--mode", mode)
    assert {each["pin"] for each in forwarder.events[-1]["links"]} == {str(folder)}
    assert wire.carries()
    getattr(forwarder, end)()
    assert attached(bed, "f0").pids == attached(bed, "f1").pids == ()
    assert attached(bed, "f0").mode == mode
    assert attached(bed, "f0").pin == str(folder / "l2fwd_link_f0")
    sent = wire.send(20, first=1000)
    back = wire.send(20, first=2000, source=wire.sink)
    assert [frame for frame in wire.receive(64, seconds=0.5) if frame in sent] == sent
    assert [f for f in wire.receive(64, end=wire.gen, seconds=0.5) if f in back] == back
    assert unload(forward, bed) == (0, "")
    assert_gone(bed, folder)
    assert not wire.carries(0.2)


@privileged
def test_the_rules_stay_in_force(bed, folder, forward, open_wire):
    rule = f"in f0 ethertype {0x88B5:#x} -> out f1 set_dst_mac 00:00:11:22:33:44"
    forward(bed, *PINNED, folder, "--rule", rule, "--duration", "0").wait()
    wire = open_wire(bed)
    (frame,) = wire.send(1)
    assert wire.receive(1) == [bytes.fromhex("000011223344") + frame[6:]]
    assert unload(forward, bed) == (0, "")


@privileged
def test_the_end_says_that_it_goes_on_and_what_ends_it(bed, folder, forward):
    forwarder = forward(bed, *PINNED, folder)
    assert forwarder.stop()["unaccounted"] == 0
    (pinned,) = [event for event in forwarder.events if event["event"] == "pinned"]
    assert pinned["pin"] == str(folder)
    assert "l2fwd unload f0 f1" in pinned["message"]
    assert forwarder.events[-1]["event"] == "summary"
    unload(forward, bed)
    command = ["nsenter", f"--net=/run/netns/{bed.fwd}", sys.executable, "-m", "l2fwd"]
    options = [*PINNED, folder, "--duration", "0"]
    plain = subprocess.run(
        [*command, "forward", "f0", "f1", *options], capture_output=True, text=True, check=True
    )
    assert f"all to the other link, pinned in {folder}" in plain.stdout
    assert "l2fwd unload f0 f1 ends it" in plain.stdout
    assert "forwarded 0 of 0 packets" in plain.stdout
    unloaded = subprocess.run(
        [*command, "unload", "f0", "f1"], capture_output=True, text=True, check=True
    )
    assert f"pinned as {folder}/l2fwd_link_f1" in unloaded.stdout


@privileged
def test_unloading_one_link_leaves_the_other(bed, folder, forward):
    forward(bed, *PINNED, folder).stop()
    assert unload(forward, bed, "f0") == (0, "")
    assert [path.name for path in folder.iterdir()] == ["l2fwd_link_f1"]
    assert attached(bed, "f1").program_id
    assert unload(forward, bed, "f1") == (0, "")
    assert_gone(bed, folder)


@privileged
def test_unload_leaves_a_pinned_engine_that_is_running(bed, folder, forward, open_wire):
    forwarder = forward(bed, *PINNED, folder)
    code, said = unload(forward, bed)
    assert (code, f"held by pid {forwarder.pid}" in said) == (1, True)
    assert open_wire(bed).carries()
    forwarder.stop()
    assert unload(forward, bed) == (0, "")


@privileged
def test_unload_leaves_the_pins_of_others(bed, bpf_fs, folder, forward):
    """Another program's, another job's, and a second pin of the same link."""
    other = bpf_fs / "other"
    other.mkdir(mode=0o700)
    fd = foreign_program()
    _bpf.pin(fd, str(other / "l2fwd_link_f0"), "other")
    os.close(fd)
    forward(bed, *PINNED, folder).stop()
    fd = foreign_program()
    _bpf.pin(fd, str(folder / "kept"), "kept")
    os.close(fd)
    assert unload(forward, bed) == (0, "")
    assert [path.name for path in folder.iterdir()] == ["kept"]
    assert [path.name for path in other.iterdir()] == ["l2fwd_link_f0"]


@privileged
def test_a_pin_out_of_sight_is_neither_unloaded_nor_taken_for_stale(bed, folder, forward):
    """In a mount namespace without that file system, as ip netns exec makes."""
    forward(bed, *PINNED, folder).stop()
    hide = ["unshare", "--mount", "bash", "-c", f'umount "{folder.parent}"; exec "$0" "$@"']
    for verb in ("unload", "forward"):
        blind = forward(bed, verb=verb, ready=False, prefix=hide)
        assert blind.wait() == 1
        assert "pinned where this user or mount namespace does not see it" in blind.stderr
    assert attached(bed, "f0").pin
    assert unload(forward, bed) == (0, "")


@privileged
def test_pins_of_links_that_are_gone_go_with_the_last_that_is_unloaded(bed, folder, forward):
    forward(bed, *PINNED, folder).stop()
    with link.in_netns(bed.fwd):
        link.delete_link("f0")
    assert unload(forward, bed, "f1") == (0, "")
    assert not folder.exists()


@privileged
def test_a_link_made_again_while_it_runs_is_pinned_again(bed, folder, forward, open_wire):
    forwarder = forward(bed, *PINNED, folder)
    steps = recreate(bed, "f0")
    next(steps)
    next(steps, None)
    forwarder.wait_for("program_attached", 3)
    wire = open_wire(bed)
    assert wire.carries()
    forwarder.stop()
    assert wire.carries()
    assert unload(forward, bed) == (0, "")
    assert_gone(bed, folder)


@privileged
def test_a_link_with_a_dot_in_its_name_can_be_pinned(bed, folder, forward):
    """bpf_lookup refuses dots."""
    with link.in_netns(bed.fwd):
        subprocess.run(["ip", "link", "set", "f0", "down", "name", "f0.100"], check=True)
        link.set_up("f0.100")
    forward(bed, *PINNED, folder, links=("f0.100", "f1")).stop()
    assert sorted(path.name for path in folder.iterdir()) == [
        "l2fwd_link_f0%2E100",
        "l2fwd_link_f1",
    ]
    again = forward(bed, *PINNED, folder, links=("f0.100", "f1"), ready=False)
    assert again.wait() == 2
    assert "l2fwd unload f0.100 f1" in again.stderr
    assert unload(forward, bed, "f0.100", "f1") == (0, "")
    assert not folder.exists()


# Promiscuity


@privileged
@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_pinned_link_stays_promiscuous_and_unload_takes_back_only_what_was_lent(
    bed, folder, forward, end
):
    with link.in_netns(bed.fwd):
        link.set_promiscuous("f0", False)  # the bed has set both
    getattr(forward(bed, *PINNED, folder), end)()
    with link.in_netns(bed.fwd):
        assert link.is_set_promiscuous("f0")
        assert link.is_set_promiscuous("f1")
    assert unload(forward, bed) == (0, "")
    with link.in_netns(bed.fwd):
        assert not link.find_link("f0").is_promiscuous
        assert link.is_set_promiscuous("f1")


@privileged
def test_a_program_that_was_lost_is_pinned_again_until_that_works(
    bed, folder, forward, monkeypatch
):
    with link.in_netns(bed.fwd):
        link.set_promiscuous("f0", False)
        path = make_path(folder)
        path.start()
        real, tries = _bpf.pin, []

        def fail_at_first(*arguments):
            tries.append(arguments)
            if len(tries) == 1:
                raise KernelError(errno.ENOSPC, "pin", "f0")
            real(*arguments)

        monkeypatch.setattr(_bpf, "pin", fail_at_first)
        _bpf.detach_link(describe_attached(link.find_link("f0").ifindex).link_id)
        deadline = time.monotonic() + 5
        while len(tries) < 2 and time.monotonic() < deadline:
            path.watch()
            time.sleep(0.05)
        path.stop()
    assert unload(forward, bed) == (0, "")
    assert_gone(bed, folder)
    with link.in_netns(bed.fwd):
        assert not link.is_set_promiscuous("f0")


# Whose it is


@privileged
@pytest.mark.parametrize("umask", ["000", "022", "277", "777"])
def test_the_folder_is_0700_and_the_pins_0600_whatever_the_umask(bed, folder, forward, umask):
    """Z3"""
    prefix = ["bash", "-c", f'umask {umask}; exec "$0" "$@"']
    forward(bed, *PINNED, folder, prefix=prefix).kill()
    assert modes(folder) == [0o700, 0o600, 0o600]
    assert folder.stat().st_uid == os.geteuid()
    assert unload(forward, bed) == (0, "")


def open_pin_as_nobody(path):
    """Return the errno of BPF_OBJ_GET for a user without rights; 0 if it is allowed."""
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        libc = ctypes.CDLL(None, use_errno=True)
        name = ctypes.create_string_buffer(os.fsencode(path))
        attr = ctypes.create_string_buffer(struct.pack("QII", ctypes.addressof(name), 0, 0), 128)
        os._exit(0 if libc.syscall(321, 7, attr, 128) >= 0 else ctypes.get_errno())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@privileged
def test_another_user_cannot_open_the_pins(bed, folder, forward):
    """Z4: neither through the folder, nor if that were open."""
    forward(bed, *PINNED, folder).stop()
    names = sorted(folder.iterdir())
    assert [open_pin_as_nobody(path) for path in names] == [errno.EACCES, errno.EACCES]
    folder.chmod(0o755)
    assert [open_pin_as_nobody(path) for path in names] == [errno.EACCES, errno.EACCES]
    names[0].chmod(0o666)  # what is asked above can be answered otherwise
    assert open_pin_as_nobody(names[0]) != errno.EACCES
    folder.chmod(0o700)
    assert unload(forward, bed) == (0, "")


@privileged
def test_a_folder_open_to_others_is_not_looked_into(bed, folder, forward):
    """Whoever may write there could swap what unload removes."""
    forward(bed, *PINNED, folder).stop()
    folder.chmod(0o755)
    assert unload(forward, bed)[0] == 1
    folder.chmod(0o700)
    assert unload(forward, bed) == (0, "")


# All or nothing


def prepare(folder, kind):
    """Put something else where the folder is to be."""
    if kind == "not empty":
        folder.mkdir(mode=0o700)
        (folder / "held").mkdir()
    elif kind == "foreign owner":
        folder.mkdir(mode=0o700)
        os.chown(folder, NOBODY, NOBODY)
    elif kind == "open to others":
        folder.mkdir()
        folder.chmod(0o750)
    elif kind == "symbolic link":
        (folder.parent / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(folder.parent / "elsewhere")
    elif kind == "file":
        fd = foreign_program()
        _bpf.pin(fd, str(folder), "file")
        os.close(fd)


@privileged
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("not empty", "is not empty; choose another"),
        ("foreign owner", "not this user's alone"),
        ("open to others", "mode 0700"),
        ("symbolic link", "is not a folder"),
        ("file", "is not a folder"),
    ],
)
def test_a_folder_that_is_not_ours_alone_is_refused_and_left(bed, folder, forward, kind, said):
    prepare(folder, kind)
    before = modes(folder) if folder.is_dir() else []
    forwarder = forward(bed, *PINNED, folder, ready=False)
    assert forwarder.wait() == 2
    assert said in forwarder.stderr
    assert forwarder.stderr.count("\n") == 1
    assert attached(bed, "f0").program_id == 0
    assert (modes(folder) if folder.is_dir() else []) == before


@privileged
@pytest.mark.parametrize("name", ["job", "nosuch/job"])
def test_a_folder_on_another_file_system_is_refused_with_the_remedy(bed, forward, tmp_path, name):
    forwarder = forward(bed, *PINNED, tmp_path / name, ready=False)
    assert forwarder.wait() == 2
    assert "mount -t bpf bpf /sys/fs/bpf" in forwarder.stderr
    assert forwarder.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@privileged
def test_a_folder_with_a_dot_in_its_name_is_refused_with_the_reason(bed, bpf_fs, forward):
    forwarder = forward(bed, *PINNED, bpf_fs / "a.b", ready=False)
    assert forwarder.wait() == 2
    assert "no dot" in forwarder.stderr


@privileged
def test_a_folder_that_is_there_empty_and_ours_will_do(bed, folder, forward):
    folder.mkdir(mode=0o700)
    forward(bed, *PINNED, folder).stop()
    assert modes(folder) == [0o700, 0o600, 0o600]
    assert unload(forward, bed) == (0, "")
    assert_gone(bed, folder)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"data_path": "afxdp"}, "--data-path redirect"),
        ({"data_path": "afxdp", "chain": True}, "--data-path redirect"),
        ({"chain": True}, "chain"),
        ({"mode": AttachMode.OFFLOAD}, "--mode native"),
        ({"pin": "job"}, "absolute path"),
        ({"pin": ""}, "absolute path"),
    ],
)
def test_what_cannot_be_pinned_is_refused(settings, said):
    settings = {"data_path": "redirect", "pin": "/sys/fs/bpf/job"} | settings
    with pytest.raises(ConfigError, match=said):
        ForwardConfig(in_link="a", out_link="b", **settings)


@privileged
def test_a_second_start_is_refused_and_the_first_goes_on(bed, bpf_fs, folder, forward, open_wire):
    """With the same folder, with another, through sockets, and beside others."""
    forward(bed, *PINNED, folder).stop()
    for options, code in (
        ((*PINNED, folder), 2),
        ((*PINNED, bpf_fs / "other"), 1),
        (("--data-path", "redirect"), 1),
        ((), 1),
        (("--chain",), 1),
    ):
        again = forward(bed, *options, ready=False)
        assert again.wait() == code
        assert "l2fwd unload f0" in again.stderr
        assert str(folder) in again.stderr
        assert again.stderr.count("\n") <= 2
        assert not (bpf_fs / "other").exists()
    assert open_wire(bed).carries()
    assert unload(forward, bed) == (0, "")
    forward(bed, *PINNED, folder).stop()
    assert unload(forward, bed) == (0, "")


def start_pinned(bed, folder, is_stopping=lambda: False):
    with link.in_netns(bed.fwd):
        path = make_path(folder)
        try:
            path.start(is_stopping)
        finally:
            path.stop()


@privileged
@pytest.mark.parametrize("step", ["pin", "promiscuity"])
@pytest.mark.parametrize("is_made", [False, True])
def test_a_step_that_fails_removes_what_was_pinned(bed, folder, monkeypatch, step, is_made):
    if is_made:
        folder.mkdir(mode=0o700)
    with link.in_netns(bed.fwd):
        for name in ("f0", "f1"):
            link.set_promiscuous(name, False)
    owner, function = {"pin": (_bpf, "pin"), "promiscuity": (link, "set_promiscuous")}[step]
    real, calls = getattr(owner, function), []

    def fail_at_the_second(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KernelError(errno.ENOSPC, step, "f1")
        return real(*arguments)

    monkeypatch.setattr(owner, function, fail_at_the_second)
    with pytest.raises(KernelError, match="ENOSPC"):
        start_pinned(bed, folder)
    assert attached(bed, "f0").program_id == attached(bed, "f1").program_id == 0
    assert folder.exists() == is_made
    assert not is_made or not any(folder.iterdir())
    with link.in_netns(bed.fwd):
        assert not link.is_set_promiscuous("f0")
        assert not link.is_set_promiscuous("f1")


@privileged
def test_a_start_that_is_stopped_leaves_no_pin(bed, folder):
    with pytest.raises(Stopped):
        start_pinned(bed, folder, is_stopping=lambda: True)
    assert_gone(bed, folder)


@privileged
def test_a_start_that_cannot_attach_leaves_no_folder(bed, folder, forward, put_foreign_program):
    put_foreign_program(bed, "f1")
    forwarder = forward(bed, *PINNED, folder, ready=False)
    assert forwarder.wait() == 1
    assert "XDP program foreign" in forwarder.stderr
    assert not folder.exists()
    assert attached(bed, "f0").program_id == 0


@privileged
def test_hidden_and_absent_file_systems_are_not_searched(bpf_fs, tmp_path):
    assert str(bpf_fs) in pins._bpf_mounts()
    subprocess.run(["mount", "-t", "tmpfs", "none", bpf_fs], check=True)
    try:
        assert str(bpf_fs) not in pins._bpf_mounts()
    finally:
        subprocess.run(["umount", bpf_fs], check=True)
    assert pins.find_pin(0) is None


def test_a_program_that_goes_with_its_process_is_waited_for(monkeypatch):
    """Its files are closed one by one: for a moment it looks as if it were pinned out of sight."""
    dying = bpf.Attached("native", 7, "l2fwd_redirect", 8)
    seen = iter([dying, dying, bpf.Attached("none")])
    monkeypatch.setattr(bpf, "describe_attached", lambda ifindex: next(seen))
    assert bpf.describe_settled(1) == bpf.Attached("none")
