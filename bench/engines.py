"""Ours on a bed: any verb of the command line, or none at all for a baseline in the kernel."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, Any, Final

from bench.bed import ENGINE_CPU, BenchBed, Engine, Running, confine, prefer
from l2fwd import link
from l2fwd.bpf import Program
from l2fwd.config import AttachMode
from l2fwd.errors import RunError
from l2fwd.lab import Forwarder

START_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 0.3
_U32: Final = struct.Struct("=I")


def forwarder(*options: str, workers: int = 1) -> Engine:
    """Return ours as ``forward`` runs it, its workers on the engine's CPU and those behind it.

    Where these are too few, the workers share them as the scheduler likes.
    """
    spare = range(ENGINE_CPU, os.cpu_count() or 1)
    are_pinned = workers <= len(spare)
    has_workers = "redirect" not in options and "--cpus" not in options

    @contextmanager
    def run(bed: BenchBed) -> Iterator[Running]:
        own = ",".join(map(str, spare[:workers]))
        cpus = ["--cpus", own] if has_workers and are_pinned else []
        arguments = [bed.entry.ifname, bed.exit.ifname, *cpus, *options, "--interval", "0"]
        with Forwarder(bed.entry.netns, arguments) as engine:
            prefer(engine.pid)
            ready = list(engine.wait_for("ready", START_SECONDS))[-1]
            if not are_pinned:
                confine(engine.pid, spare)
            running = Running(engine.pid, obtained=ready)
            yield running
            with suppress(RunError):  # a busy machine may take longer; it is killed then
                running.summary.update(engine.stop()[-1])

    return run


def tool(verb: str, *options: str) -> Engine:
    """Return one of ours that works on one link: ``macswap``, ``rxdrop``, ``txonly``."""

    @contextmanager
    def run(bed: BenchBed) -> Iterator[Running]:
        command = [sys.executable, "-m", "l2fwd", verb, bed.entry.ifname, *options, "--json"]
        with process(bed.entry.netns, command, cpu=ENGINE_CPU, output=subprocess.PIPE) as running:
            assert running.stdout is not None
            if not running.stdout.readline():  # the first line: ready
                raise RunError(f"{verb} ended: {failure_of(running)}")
            found = Running(running.pid)
            yield found
            found.summary.update(_last_object(running))

    return run


def _last_object(running: "subprocess.Popen[bytes]") -> dict[str, Any]:
    """Interrupt a tool; return the last line it said, its summary."""
    running.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired, ValueError, IndexError):
        output, _ = running.communicate(timeout=_STOP_SECONDS)
        found: dict[str, Any] = json.loads(output.splitlines()[-1])
        return found
    return {}


@contextmanager
def plain(bed: BenchBed) -> Iterator[Running]:
    """Redirect by the plainest program there is."""
    with ExitStack() as undo, link.in_netns(bed.entry.netns):
        program = Program("lab_redirect")
        undo.callback(program.close)
        program.load()
        links = [link.find_link(place.ifname) for place in (bed.entry, bed.exit)]
        keys = [_U32.pack(each.ifindex) for each in links]
        program.update("links", dict(zip(keys, reversed(keys), strict=True)))
        for each in links:
            attachment = program.attach(each.ifindex, each.ifname, AttachMode.NATIVE)
            undo.callback(attachment.detach)
        yield Running()


@contextmanager
def process(
    netns: str,
    command: Sequence[str],
    *,
    output: IO[bytes] | int = subprocess.DEVNULL,
    folder: str | None = None,
    cpu: int | None = None,
    environment: dict[str, str] | None = None,
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a command in a namespace while the context lasts, before whatever else wants a CPU.

    Raises
    ------
    RunError
        If it has ended when the context begins, with the last it said.
    """
    pinned = [] if cpu is None else ["taskset", "-c", str(cpu)]
    with link.in_netns(netns):
        running = subprocess.Popen(
            [*pinned, *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.PIPE,
            cwd=folder,
            env=os.environ | (environment or {}),
            start_new_session=True,  # an autogroup of its own, as the Forwarder has
        )
    with running:
        try:
            prefer(running.pid)
            yield running
        finally:
            _end(running)


def _end(running: "subprocess.Popen[bytes]") -> None:
    running.send_signal(signal.SIGINT)  # a killed tool may leave its program on the link
    for wait in (_STOP_SECONDS, _STOP_SECONDS):
        try:
            running.communicate(timeout=wait)
        except subprocess.TimeoutExpired:
            running.terminate()
        else:
            return
    running.kill()
    running.communicate()


def failure_of(running: "subprocess.Popen[bytes]") -> str:
    """Return the last line that an ended process wrote to stderr, or its exit code."""
    with suppress(subprocess.TimeoutExpired):
        running.wait(_LOOK_SECONDS)
    assert running.stderr is not None
    lines = running.stderr.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"exit code {running.returncode}"


def require_running(running: "subprocess.Popen[bytes]", name: str) -> None:
    """Look shortly after its start whether a process lives.

    Raises
    ------
    RunError
        With what it said.
    """
    time.sleep(_LOOK_SECONDS)
    if running.poll() is not None:
        raise RunError(f"{name} ended: {failure_of(running)}")
