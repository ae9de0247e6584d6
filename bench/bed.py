"""The bed: a generator, the engine under test, and a sink, on veths or on NICs.

The generator has CPU 0 and offers several times what an engine carries, so the engine, on
CPU 1, is the limit.  What is offered and what is delivered is read at the wire's ends, from the
links' own counters, never from an engine.

=========  ================================  ==================================
hairpin    generator and sink are one link   engine sends back where it receives
two ports  generator - IN                    OUT - sink
=========  ================================  ==================================

Two NICs cabled to each other make a hairpin: the engine is on IN, the far end is OUT.
Both ways, there is a generator and a sink at either end, and what they count is added up.
"""

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench.socket_traffic import SocketGenerator
from bench.traffic import GENERATOR_CPU, Generator, Load, Sink
from l2fwd import ethtool, link
from l2fwd.errors import ConfigError, RunError
from l2fwd.lab import Bed, NicBed

ENGINE_CPU: Final = min(1, (os.cpu_count() or 1) - 1)
WARM_UP_SECONDS: Final = 0.3
_IDLE_SECONDS: Final = 20.0  # a million flows are learned in five
_IDLE: Final = 0.1  # of a CPU
_FLOW_SECONDS: Final = 20.0  # testpmd takes a few to start
_PRIORITY: Final = -20  # the highest of nice(1)
_LOOK_SECONDS: Final = 0.5
_QUIET_CPUS: Final = 0.1
_DISTURBED: Final = 0.03  # of the time that a pinned thread wanted its CPU and did not get it
_CARRIER_SECONDS: Final = 10.0


class Place(NamedTuple):
    """A link, and the namespace it is in."""

    netns: str
    ifname: str


@dataclass(frozen=True, slots=True)
class Running:
    """An engine at work.

    Attributes
    ----------
    pid : int
        Of its process; 0: it is in the kernel.
    threads : tuple of int
        Of the kernel, that do its work: their CPU time is its own.
    obtained : mapping
        Its event ``ready``, if it has one.
    summary : dict
        What it said at its end, if it says anything.
    """

    pid: int = 0
    threads: tuple[int, ...] = ()
    obtained: Mapping[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)


Engine = Callable[["BenchBed"], AbstractContextManager[Running]]


@dataclass(slots=True)
class BenchBed:
    """Where frames are made, go into the engine, come out of it, and are counted.

    Attributes
    ----------
    source, entry, exit, target : Place
        In a hairpin ``exit`` is ``entry``, and ``target`` is ``source``.
    generator : Generator
        On ``source``.
    sink : Sink or None
        On ``target``, if that is a program; else its host stack forgets what comes.
    queues : int
    is_veth : bool
    back : Generator or None
        On ``target``, where frames go both ways.
    back_sink : Sink or None
        On ``source``, likewise.
    """

    source: Place
    entry: Place
    exit: Place
    target: Place
    generator: Generator
    sink: Sink | None
    queues: int
    is_veth: bool
    back: Generator | None = None
    back_sink: Sink | None = None

    @property
    def is_hairpin(self) -> bool:
        return self.entry == self.exit

    @property
    def generators(self) -> tuple[Generator, ...]:
        return (self.generator, self.back) if self.back else (self.generator,)

    @property
    def sinks(self) -> tuple[Sink, ...]:
        return tuple(sink for sink in (self.sink, self.back_sink) if sink)

    def offered(self) -> int:
        """Return the frames put on the engine's wires so far."""
        if self.is_veth:  # its sender counts nothing that came as an XDP frame
            return received(*self.entry) + (received(*self.exit) if self.back else 0)
        return sent(*self.source) + (sent(*self.target) if self.back else 0)

    def delivered(self) -> int:
        """Return the frames that came out at the far ends so far."""
        there = _arrived(self.target, self.sink)
        return there + _arrived(self.source, self.back_sink) if self.back else there


def _arrived(place: Place, sink: Sink | None) -> int:
    return sink.seen().packets if sink else received(*place)


@contextmanager
def bench_bed(
    *,
    links: tuple[str, ...] = (),
    hairpin: bool = False,
    xdp_sink: bool = True,
    queues: int = 1,
    mtu: int = 1500,
    both_ways: bool = False,
    by_socket: bool = False,
) -> Iterator[BenchBed]:
    """Make a bed; take it down at the end, and give NICs back.

    Parameters
    ----------
    links : tuple of str
        None: veths; four NICs GEN IN OUT SINK; two, IN OUT, cabled to each other.
    hairpin : bool
        Two NICs are nothing else.
    xdp_sink : bool
        False: the host stack of the target, GRO off, forgets the frames.  That costs the engine
        less where it sends over AF_XDP: a veth copies such a frame for a program
        (veth_convert_skb_to_xdp_buff).  What a program redirects into a veth needs one.
    queues, mtu : int
    both_ways : bool
    by_socket : bool
        Frames are made by ``SocketGenerator``: any size, and on a veth on all queues, as what
        the kernel makes on one CPU gets into one queue only.

    Raises
    ------
    ConfigError
        If a hairpin is to go both ways.
    """
    if both_ways and (hairpin or len(links) == 2):
        raise ConfigError("frames go both ways between two ports: give four links, or none")
    name = f"l2fwd-bench{os.getpid()}"
    with ExitStack() as undo:
        lab = NicBed(name, links, queues=queues) if links else Bed(name, queues=queues)
        undo.enter_context(lab)
        places = _places(lab, hairpin or len(links) == 2)
        if mtu != 1500:
            for place in (*places, Place(lab.gen, lab.gen_link), Place(lab.sink, lab.sink_link)):
                with link.in_netns(place.netns):
                    undo.callback(_set_mtu, place, link.find_link(place.ifname).mtu)
                    link.set_mtu(place.ifname, mtu)
        is_hairpin = places[0] == places[3]
        # Where a socket sends, its own program is.
        by_program = (xdp_sink or bool(links)) and not (by_socket and (both_ways or is_hairpin))
        sink = _sink(undo, places[3], by_program)
        back_sink = None
        if not is_hairpin and (both_ways or (links and not by_socket)):
            back_sink = _sink(undo, places[0], by_program)
        ends = (places[0], places[3])[: 1 + both_ways]
        generators = [_generator(undo, place, by_socket) for place in ends]
        for place in places:
            with link.in_netns(place.netns):
                link.wait_for_carrier(place.ifname, _CARRIER_SECONDS, lambda: None)
        yield BenchBed(
            *places, generators[0], sink, queues, not links,
            back=generators[1] if both_ways else None, back_sink=back_sink if both_ways else None,
        )  # fmt: skip


def _generator(undo: ExitStack, place: Place, by_socket: bool) -> Generator:
    generator = undo.enter_context((SocketGenerator if by_socket else Generator)(*place))
    prefer(generator.pid)
    return generator


def _places(lab: Bed, hairpin: bool) -> tuple[Place, Place, Place, Place]:
    source, entry = Place(lab.gen, lab.gen_link), Place(lab.fwd, lab.in_link)
    if hairpin:
        return source, entry, entry, source
    return source, entry, Place(lab.fwd, lab.out_link), Place(lab.sink, lab.sink_link)


def _set_mtu(place: Place, mtu: int) -> None:
    with suppress(Exception), link.in_netns(place.netns):  # a veth may be gone by now
        link.set_mtu(place.ifname, mtu)


def _sink(undo: ExitStack, place: Place, by_program: bool) -> Sink | None:
    """Have frames counted; a NIC sends live frames only under a program."""
    if by_program:
        sink = Sink(*place)
        undo.callback(sink.close)
        return sink
    with link.in_netns(place.netns):
        ethtool.set_features(place.ifname, {"generic-receive-offload": False})
    return None


@dataclass(frozen=True, slots=True)
class Sample:
    """What went through an engine.

    Attributes
    ----------
    offered, delivered : float
        Frames a second, at the wire's ends.
    cpu_ns : float
        CPU time of the engine's process and threads per frame delivered; 0 for one in the
        kernel without threads of its own (``place_napi``).
    core : float
        That CPU time, of one CPU's.
    is_disturbed : bool
        Something else used the CPUs of generator or engine meanwhile.
    """

    offered: float
    delivered: float
    cpu_ns: float
    core: float
    is_disturbed: bool


def sample(bed: BenchBed, engine: Engine, load: Load, seconds: float) -> Sample:
    """Start an engine, offer it a load, and watch for so many seconds."""
    with engine(bed) as running:
        return offer(bed, running, load, seconds)


def offer(
    bed: BenchBed, running: Running, load: Load, seconds: float, *, until_idle: bool = False
) -> Sample:
    """Offer a load to an engine that runs, and watch for so many seconds.

    ``until_idle``: not before its process has nothing to do, as all flows are the kernel's;
    after 20 s watch all the same.
    """
    for sink in bed.sinks:
        sink.look(stamped=load.stamped)
    with ExitStack() as undo:
        for generator in bed.generators:
            undo.callback(generator.stop)
            generator.start(load)
        wait_for_flow(bed)
        time.sleep(min(WARM_UP_SECONDS, seconds))
        if until_idle:
            _wait_until_idle(running.pid)
        return watch(bed, running, seconds)


def _wait_until_idle(pid: int) -> None:
    deadline = time.monotonic() + _IDLE_SECONDS
    while time.monotonic() < deadline:
        before = _used_ns(pid)
        time.sleep(WARM_UP_SECONDS)
        if _used_ns(pid) - before < _IDLE * WARM_UP_SECONDS * 1e9:
            return


def taken(bed: BenchBed, engine: Engine, load: Load, seconds: float) -> Sample:
    """``sample``, for an engine that keeps what it receives: what its program took counts."""
    look = partial(redirected, *bed.entry)
    with engine(bed) as running:
        bed.generator.start(load)
        try:
            time.sleep(WARM_UP_SECONDS)
            return watch(bed, running, seconds, look)
        finally:
            bed.generator.stop()


def watch(
    bed: BenchBed, running: Running, seconds: float, look: Callable[[], int] | None = None
) -> Sample:
    """Read all counters, twice; ``look`` stands for what is delivered."""
    look = look or bed.delivered
    engine = [pid for pid in (running.pid, *running.threads) if pid]
    used, waited = sum(map(_used_ns, engine)), waited_ns(bed, running)
    began, offered, delivered = time.monotonic(), bed.offered(), look()
    time.sleep(seconds)
    offered, delivered = bed.offered() - offered, look() - delivered
    elapsed = time.monotonic() - began
    used = sum(map(_used_ns, engine)) - used
    waited = waited_ns(bed, running) - waited
    return Sample(
        offered / elapsed, delivered / elapsed, used / max(1, delivered), used / elapsed / 1e9,
        waited > _DISTURBED * elapsed * 1e9,
    )  # fmt: skip


def _undisturbed(bed: BenchBed, running: Running) -> list[int]:
    """Return the processes that have a CPU to themselves, if nothing else uses it."""
    alone = [running.pid, *running.threads, bed.generator.pid]
    if bed.queues > 1:  # workers may share one
        alone = []
    elif bed.back:  # generators do
        alone = [running.pid, *running.threads]
    return [pid for pid in alone if pid]


def wait_for_flow(bed: BenchBed) -> None:
    """Wait until frames come out.

    Raises
    ------
    RunError
        If none does.
    """
    deadline = time.monotonic() + _FLOW_SECONDS
    before = bed.delivered()
    while bed.delivered() == before:
        if time.monotonic() > deadline:
            raise RunError(f"no frame reached the sink in {_FLOW_SECONDS:g} s")
        time.sleep(0.01)


def _used_ns(pid: int) -> int:
    """CPU time of all threads of a process; 0 of none."""
    return sum(fields[0] for fields in _schedstats(pid))


def waited_ns(bed: BenchBed, running: Running) -> int:
    """Return how long generator and engine were ready to run, so far, and had no CPU."""
    return sum(map(_waited_ns, _undisturbed(bed, running)))


def _waited_ns(pid: int) -> int:
    """Time that the threads of a process were ready and had no CPU."""
    return sum(fields[1] for fields in _schedstats(pid))


def _schedstats(pid: int) -> Iterator[tuple[int, int]]:
    if pid:
        for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with suppress(OSError):  # a thread may end meanwhile
                used, waited, _ = path.read_text().split()
                yield int(used), int(waited)


def place_napi(*places: Place) -> tuple[int, ...]:
    """Have the kernel's side of links run on the engine's CPU, in threads; return their ids."""
    threads = []
    for netns, ifname in places:
        command = f"echo 1 > /sys/class/net/{ifname}/threaded"
        subprocess.run(["ip", "netns", "exec", netns, "sh", "-c", command], check=True)
        for comm in Path("/proc").glob("[0-9]*/comm"):
            with suppress(OSError):
                if comm.read_text().startswith(f"napi/{ifname}-"):
                    thread = int(comm.parent.name)
                    os.sched_setaffinity(thread, {ENGINE_CPU})
                    os.setpriority(os.PRIO_PROCESS, thread, _PRIORITY)
                    threads.append(thread)
    return tuple(threads)


def prefer(pid: int) -> None:
    """Let a process and its threads to come run before whatever else uses the machine."""
    os.setpriority(os.PRIO_PROCESS, pid, _PRIORITY)
    # With autogroups, a priority counts only among the processes of one session.
    with suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(_PRIORITY))


def confine(pid: int, cpus: Iterable[int]) -> None:
    """Keep all threads of a process on some CPUs."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # a thread may end meanwhile
            os.sched_setaffinity(int(task.name), cpus)


def wait_until_quiet(seconds: float) -> bool:
    """Wait for at most so long until nothing else keeps a CPU busy; tell whether it came."""
    deadline = time.monotonic() + seconds
    while True:
        before = _idle_seconds()
        time.sleep(_LOOK_SECONDS)
        cpus = os.cpu_count() or 1
        busy = cpus - (_idle_seconds() - before) / _LOOK_SECONDS
        if busy < _QUIET_CPUS:
            return True
        if time.monotonic() > deadline:
            return False


def _idle_seconds() -> float:
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")  # idle, iowait


def received(netns: str, ifname: str) -> int:
    """Return the packets a link has received, from the kernel's own counters."""
    return _counter(netns, ifname, 1)


def sent(netns: str, ifname: str) -> int:
    """Return the packets a link has sent, from the kernel's own counters."""
    return _counter(netns, ifname, 9)


def dropped_on_send(netns: str, ifname: str) -> int:
    """Return the packets that a link was to send and dropped: a veth's end is full at 256."""
    return _counter(netns, ifname, 11)


def redirected(netns: str, ifname: str) -> int:
    """Return the packets that a link's XDP program has redirected, to a socket or a link.

    Raises
    ------
    RunError
        If the driver does not count them.
    """
    with link.in_netns(netns):
        done = subprocess.run(
            ["ethtool", "-S", ifname], capture_output=True, text=True, check=False
        )
    found = re.findall(r"^ *rx_queue_\d+_xdp_redirect: (\d+)$", done.stdout, re.MULTILINE)
    if not found:
        raise RunError(f"{ifname}: its driver does not count what XDP redirects")
    return sum(map(int, found))


def _counter(netns: str, ifname: str, column: int) -> int:
    with link.in_netns(netns):
        lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
    (line,) = (line for line in lines if line.strip().startswith(f"{ifname}:"))
    return int(line.split(":")[1].split()[column])


__all__ = [
    "ENGINE_CPU",
    "GENERATOR_CPU",
    "BenchBed",
    "Engine",
    "Load",
    "Place",
    "Running",
    "Sample",
]
