"""A test bed of veth pairs in network namespaces, and a demo that needs no NIC.

::

    NAME-gen [g0] <-> [f0] NAME-fwd [f1] <-> [s0] NAME-sink

Frames sent on ``g0`` reach ``s0`` only through a forwarder between ``f0`` and ``f1``.
"""

import ctypes
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from l2fwd import ethtool, link
from l2fwd.config import DATA_PATHS, AttachMode
from l2fwd.datapath import Event, Notify
from l2fwd.errors import (
    EXIT_UNSUPPORTED,
    EXIT_USAGE,
    ConfigError,
    KernelError,
    RunError,
    UnsupportedError,
)
from l2fwd.lab_traffic import Stream, Tally, exchange, settle

DEFAULT_NAME: Final = "l2fwd"
MAX_QUEUES: Final = 64
GENERATOR_MAC: Final = "02:00:00:00:00:01"
SINK_MAC: Final = "02:00:00:00:00:02"
GENERATOR_IP: Final = "10.77.0.1"
SINK_IP: Final = "10.77.0.2"

_DEMO_NAME: Final = re.compile(r"l2fwd-demo(\d+)")
_ROLES: Final = ("gen", "fwd", "sink")
_VETHS: Final = (("gen", "g0", "fwd", "f0"), ("fwd", "f1", "sink", "s0"))
# What a sender would leave to a NIC, and a veth passes on undone.
_OFFLOADS: Final = (
    "rx-checksumming",
    "tx-checksumming",
    "tcp-segmentation-offload",
    "generic-segmentation-offload",
    "tx-vlan-offload",
)
_MAX_DURATION_SECONDS: Final = 86400.0
_FLOWS_PER_QUEUE: Final = 16  # so that the hash leaves no queue idle
_READY_SECONDS: Final = 60.0  # a busy machine, or an emulated one
_STOP_SECONDS: Final = 5.0
_STRAGGLER_SECONDS: Final = 2.0
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_libc: Final = ctypes.CDLL(None, use_errno=True)


class Bed:
    """Three namespaces and two veth pairs; a context manager that takes them down.

    Parameters
    ----------
    name : str
        Prefix of the namespaces.
    queues : int
        RX and TX queues of every link.

    Raises
    ------
    ConfigError
        If the name cannot be one, or the queue count is out of range.
    """

    gen_link, in_link, out_link, sink_link = "g0", "f0", "f1", "s0"

    def __init__(self, name: str = DEFAULT_NAME, *, queues: int = 1) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}", name):
            raise ConfigError(
                f"name must be 1 to 32 letters, digits, '.', '_' or '-', got {name!r}"
            )
        if not 1 <= queues <= MAX_QUEUES:
            raise ConfigError(f"queues must be in [1, {MAX_QUEUES}], got {queues}")
        self.name = name
        self.queues = queues
        self.gen, self.fwd, self.sink = (f"{name}-{role}" for role in _ROLES)
        self._ends = [
            (f"{name}-{role}", ifname)
            for left, left_ifname, right, right_ifname in _VETHS
            for role, ifname in ((left, left_ifname), (right, right_ifname))
        ]

    def __enter__(self) -> "Bed":
        self.up()
        return self

    def __exit__(self, *exception: object) -> None:
        self.down()

    def up(self) -> None:
        """Make the whole bed, or nothing.

        Raises
        ------
        ConfigError
            If a bed of this name is there.
        KernelError
            EPERM without CAP_SYS_ADMIN and CAP_NET_ADMIN.
        """
        found = self.leftovers()
        if found:
            raise ConfigError(
                f"lab {self.name} is up already ({', '.join(found)}); remove it with "
                f"l2fwd lab down --name {self.name}"
            )
        with ExitStack() as undo:
            for netns in (self.gen, self.fwd, self.sink):
                link.create_netns(netns)
                undo.callback(link.remove_netns, netns)
            for left, left_ifname, right, right_ifname in _VETHS:
                ends = (
                    (f"{self.name}-{left}", left_ifname),
                    (f"{self.name}-{right}", right_ifname),
                )
                link.create_veth(*ends, queues=self.queues)
                # Not left to the namespace, which dies later, in a kernel thread.
                undo.callback(_delete_link, *ends[0])
            self._configure()
            undo.pop_all()

    def _configure(self) -> None:
        for netns, ifname in self._ends:
            with link.in_netns(netns):
                link.disable_ipv6(ifname)
                ethtool.set_features(ifname, dict.fromkeys(_OFFLOADS, False))
                link.set_promiscuous(ifname, True)
                if ifname == "g0":
                    link.set_address(ifname, GENERATOR_MAC)
                    link.add_address(ifname, f"{GENERATOR_IP}/24")
                elif ifname == "s0":
                    link.set_address(ifname, SINK_MAC)
                    link.add_address(ifname, f"{SINK_IP}/24")
                link.set_up(ifname)
        # GRO gives a veth NAPI, and its peer NDO_XMIT: without it native redirect delivers
        # nothing.  veth_set_features does that only when GRO changes on a link that is up.
        for is_on in (False, True):
            for netns, ifname in self._ends:
                with link.in_netns(netns):
                    ethtool.set_features(ifname, {"generic-receive-offload": is_on})

    def down(self) -> None:
        """Remove all of it, also what a killed run left; nothing to do if there is none."""
        for netns, ifname in self._ends:
            if link.netns_exists(netns):
                _delete_link(netns, ifname)
        for netns in (self.gen, self.fwd, self.sink):
            link.remove_netns(netns)

    def leftovers(self) -> list[str]:
        """Return the namespaces of this bed that exist."""
        return [name for name in (self.gen, self.fwd, self.sink) if link.netns_exists(name)]


class NicBed(Bed):
    """The same over four NICs, a cable from GEN to IN, and one from OUT to SINK; or over two.

    Two, IN and OUT, are cabled to each other: what is sent on OUT comes in at IN, and comes back
    to OUT if it is sent back.  The links keep their names, and return to the namespace they were
    in; when this process is killed, to the initial one.

    Parameters
    ----------
    name : str
    links : sequence of str
        GEN, IN, OUT and SINK, or IN and OUT, without IP addresses: they would lose them.
    queues : int
        That they have.

    Raises
    ------
    ConfigError
    """

    def __init__(self, name: str, links: Sequence[str], *, queues: int = 1) -> None:
        super().__init__(name, queues=queues)
        if len(set(links)) != len(links) or len(links) not in (2, 4):
            raise ConfigError(
                f"links must be four, GEN IN OUT SINK, or two, IN OUT, got {' '.join(links)}"
            )
        for ifname in links:
            addresses = link.addresses(ifname)
            if addresses:
                raise ConfigError(
                    f"{ifname} has address {addresses[0]}, which it would lose; name a link that "
                    "nothing uses"
                )
        if len(links) == 2:
            self.sink = self.gen
            links = (links[1], links[0], links[0], links[1])
        self.gen_link, self.in_link, self.out_link, self.sink_link = links
        roles = (self.gen, self.fwd, self.fwd, self.sink)
        # Of two, each once; the far end is in the generator's namespace.
        self._ends = [(roles[links.index(ifname)], ifname) for ifname in dict.fromkeys(links)]
        self._undo = ExitStack()

    def up(self) -> None:
        """Move the links to three namespaces and set them up; all or nothing."""
        with ExitStack() as undo:
            home = undo.enter_context(open("/proc/thread-self/ns/net", "rb"))
            for netns in dict.fromkeys((self.gen, self.fwd, self.sink)):
                link.create_netns(netns)
                undo.callback(link.remove_netns, netns)
            for netns, ifname in self._ends:
                link.move(ifname, netns)
                undo.callback(_bring_back, netns, ifname, f"/proc/self/fd/{home.fileno()}")
                with link.in_netns(netns):
                    link.disable_ipv6(ifname)
                    link.set_promiscuous(ifname, True)
                    link.set_up(ifname)
            self._undo = undo.pop_all()

    def down(self) -> None:
        """Bring the links back, and remove the namespaces."""
        self._undo.close()


def _bring_back(netns: str, ifname: str, home: str) -> None:
    with link.in_netns(netns):
        link.set_promiscuous(ifname, False)
        link.move(ifname, home)
    link.set_up(ifname)


def _delete_link(netns: str, ifname: str) -> None:
    """Remove a link, if it is there; a name without a namespace behind it has none."""
    try:
        with link.in_netns(netns):
            link.delete_link(ifname)
    except (ConfigError, KernelError):
        return


def remove_dead_demos() -> list[str]:
    """Remove the beds of demos that were killed; return their names."""
    prefixes = {netns.rsplit("-", 1)[0] for netns in link.list_netns()}
    names = []
    for match in filter(None, map(_DEMO_NAME.fullmatch, sorted(prefixes))):
        if not Path("/proc", match[1]).exists():
            Bed(match[0]).down()
            names.append(match[0])
    return names


class Forwarder:
    """A real ``python -m l2fwd forward`` in a child process; a context manager that ends it.

    Parameters
    ----------
    netns : str
        Where it runs.
    arguments : sequence of str
        Of the verb; ``--json`` is added.
    """

    def __init__(self, netns: str, arguments: Sequence[str]) -> None:
        command = [sys.executable, "-m", "l2fwd", "forward", *arguments, "--json"]
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by __exit__
        # A child is born in the namespace of the thread that makes it.  Not `ip netns exec`,
        # which mounts a new /sys and with that hides the BPF file system.
        with link.in_netns(netns):
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                text=True,
                start_new_session=True,  # Ctrl-C is for us to handle
                preexec_fn=_end_with_parent,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> "Forwarder":
        return self

    def __exit__(self, *exception: object) -> None:
        self._child.kill()
        self._child.wait()
        self._reader.join()
        assert self._child.stdout is not None
        self._child.stdout.close()
        self._stderr.close()

    @property
    def pid(self) -> int:
        return self._child.pid

    def _read(self) -> None:
        assert self._child.stdout is not None
        with suppress(ValueError):  # cut off in mid-line when killed
            for line in self._child.stdout:
                self._events.put(json.loads(line))
        self._events.put(None)

    def events(self) -> Iterator[Event]:
        """Yield what it has said since the last call.

        Raises
        ------
        L2fwdError
            If it has ended, with what it wrote to its standard error.
        """
        while True:
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                return
            yield self._require(event)

    def wait_for(self, kind: str, seconds: float) -> Iterator[Event]:
        """Yield events up to the first of that kind.

        Raises
        ------
        RunError
            If none comes in time.
        L2fwdError
            If it ends first.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                event = self._require(self._events.get(timeout=max(0, deadline - time.monotonic())))
            except queue.Empty:
                raise RunError(f"no {kind} event from the forwarder in {seconds:g} s") from None
            yield event
            if event["event"] == kind:
                return

    def stop(self) -> list[Event]:
        """Interrupt it; return its last events, the ``summary`` at the end."""
        self._child.send_signal(signal.SIGINT)
        return list(self.wait_for("summary", _STOP_SECONDS))

    def _require(self, event: Event | None) -> Event:
        if event is not None:
            return event
        code = self._child.wait()
        self._stderr.seek(0)
        said = self._stderr.read().strip().splitlines() or [f"exit code {code}"]
        kinds = {EXIT_USAGE: ConfigError, EXIT_UNSUPPORTED: UnsupportedError}
        raise kinds.get(code, RunError)(f"the forwarder ended: {said[-1]}")


def _end_with_parent() -> None:
    """Have the kernel stop this child when the lab is killed."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Demo:
    """Forwards numbered frames through a bed of its own and accounts for each.

    Parameters
    ----------
    notify : callable
        Gets the events of the forwarder, then the ``summary``.
    duration : float
        Seconds to send.
    data_path : str
    mode : AttachMode
    queues : int
        Of each link.  With one, the frames are one flow, and the order of all of them counts.
    both_ways : bool
        Also from sink to generator.
    links : sequence of str, optional
        Four NICs in place of veths, as ``NicBed`` takes them; ``queues`` says how many they have.
    options : sequence of str
        More options of ``forward``.

    Raises
    ------
    ConfigError, UnsupportedError
        If a setting is wrong, or the data path is not there.
    """

    def __init__(
        self,
        notify: Notify,
        *,
        duration: float = 5.0,
        data_path: str = "afxdp",
        mode: AttachMode = AttachMode.AUTO,
        queues: int = 1,
        both_ways: bool = False,
        links: Sequence[str] = (),
        options: Sequence[str] = (),
    ) -> None:
        if not 0 < duration <= _MAX_DURATION_SECONDS:
            raise ConfigError(
                f"duration must be in (0, {_MAX_DURATION_SECONDS:g}] seconds, got {duration:g}"
            )
        if data_path not in DATA_PATHS:
            raise UnsupportedError(
                f"data path {data_path!r} does not exist; choose from: {', '.join(DATA_PATHS)}"
            )
        if len(links) not in (0, 4):
            raise ConfigError(f"links must be four, GEN IN OUT SINK, got {' '.join(links)}")
        name = f"l2fwd-demo{os.getpid()}"
        self.bed = NicBed(name, links, queues=queues) if links else Bed(name, queues=queues)
        self._notify = notify
        self._duration = duration
        self._arguments = [self.bed.in_link, self.bed.out_link]
        self._arguments += ["--data-path", data_path, "--mode", mode.value, *options]
        self._both_ways = both_ways
        self._stopping = False

    def stop(self) -> None:
        """Ask ``run`` to end early.  Callable from any thread and from a signal handler."""
        self._stopping = True

    def run(self) -> Event:
        """Make the bed, forward, take it down; return the ``summary`` event.

        Raises
        ------
        L2fwdError
            If the forwarder fails; nothing is left behind.
        """
        with self.bed, Forwarder(self.bed.fwd, self._arguments) as forwarder:
            with ExitStack() as undo:
                streams = self._open_streams(undo)
                for event in forwarder.wait_for("ready", _READY_SECONDS):
                    self._notify(event)
                elapsed = exchange(streams, self._duration, lambda: self._go_on(forwarder))
                settle(streams, _STRAGGLER_SECONDS)
                *events, engine = forwarder.stop()
                for event in events:
                    self._notify(event)
                summary = _summarize(streams, elapsed, engine)
        self._notify(summary)
        return summary

    def _open_streams(self, undo: ExitStack) -> list[Stream]:
        left = (self.bed.gen, self.bed.gen_link)
        right = (self.bed.sink, self.bed.sink_link)
        flows = 1 if self.bed.queues == 1 else self.bed.queues * _FLOWS_PER_QUEUE
        streams = [Stream(left, right, station=1, flows=flows)]
        undo.callback(streams[0].close)
        if self._both_ways:
            streams.append(Stream(right, left, station=2, flows=flows))
            undo.callback(streams[1].close)
        return streams

    def _go_on(self, forwarder: Forwarder) -> bool:
        for event in forwarder.events():
            self._notify(event)
        return not self._stopping


def _summarize(streams: Sequence[Stream], elapsed: float, engine: Event) -> Event:
    """Hold what was sent against what came and what the forwarder says it dropped."""
    tally = sum((stream.tally for stream in streams), Tally())
    drops = dict(engine["drops"])
    socket_drops = sum(stream.socket_drops() for stream in streams)
    if socket_drops:
        drops["sink_socket_drops"] = socket_drops
    return {
        "event": "summary",
        "elapsed": round(elapsed, 6),
        "sent": tally.sent,
        "forwarded": tally.received,
        "lost": tally.lost,
        "duplicated": tally.duplicated,
        "reordered": tally.reordered,
        "corrupted": tally.corrupted,
        "drops": drops,
        "unaccounted": tally.lost - sum(drops.values()),
        "pps": round(tally.received / elapsed, 1),
        "engine": engine,
    }


def passed(summary: Event) -> bool:
    """Tell whether frames were forwarded, and every one arrived intact, once and in order."""
    faults = ("lost", "unaccounted", "duplicated", "reordered", "corrupted")
    return bool(summary["forwarded"]) and not any(summary[name] for name in faults)
