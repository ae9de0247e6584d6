"""Time to forward one packet between two ports, without a kernel: ours against plain C.

Question: does the Cython loop cost no more than the same loop in C over libxdp's xsk.h?
Method:   both loops do the same work (reclaim completions to a stack of frames, peek rx,
          bound every descriptor, hand it to tx, submit, release, refill, count, kick; both
          directions, 64 packets a burst; ours moves addresses in runs, where xsk.h has an
          accessor for one slot) on the same kind of ring memory against the same
          kernel, written in C (ring_reference.c).  It stands where ``sendto`` is called, does
          nothing in most kicks, and once in a while completes and delivers packets on each
          queue; the time of that is measured and taken off.  Ours is the product as it is:
          one ``Worker.run()`` a measurement, so neither loop pays for Python.
          At default sizes the frames do not fit the caches next to the core; few hot frames do.
"""

import ctypes
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from bench.case import Case
from bench.reference import address_of, compiled, declare
from l2fwd._rings import Memory, Pool
from l2fwd._worker import Worker
from l2fwd.testing import RING_DTYPES, FakeQueue, FakeRing

GOALS: Final = {"pass-through": 1.0, "macswap": 0.7}
BATCH_SIZE: Final = 64
FRAME_SIZE: Final = 2048
_PACKETS: Final = 1 << 20  # of a run, both directions together
_FINISHED: Final = ctypes.CFUNCTYPE(None)


@dataclass(frozen=True)
class Sizes:
    """Of the rings, and how full they are."""

    frame_count: int
    ring_size: int
    fill_target: int
    packets_per_visit: int  # of the kernel, on each queue

    @property
    def kicks_per_visit(self) -> int:
        return 2 * self.packets_per_visit // BATCH_SIZE


SIZES: Final = {
    "default sizes": Sizes(4096, 2048, 1024, 1024),
    "few hot frames": Sizes(512, 256, 128, 128),
}


@contextmanager
def library() -> Iterator[ctypes.CDLL]:
    """Compile and load the reference, and the kernel that is in the same file."""
    with compiled("ring_reference") as loaded:
        pointer, number = ctypes.c_void_p, ctypes.c_uint32
        declare(loaded, "reference_open", pointer, *[pointer] * 2, *[number] * 4, ctypes.c_bool)
        declare(loaded, "reference_run", None, pointer)
        declare(loaded, "reference_close", None, pointer)
        declare(loaded, "reference_forwarded", ctypes.c_uint64, pointer, number)
        declare(
            loaded, "kernel_begin", None, pointer, ctypes.c_uint64, number, number, pointer
        )  # fmt: skip
        declare(loaded, "kernel_busy_ns", ctypes.c_uint64)
        yield loaded


def queue_memory(queues: list[dict[str, FakeRing]]) -> ctypes.Array[ctypes.c_uint64]:
    """Lay out ``struct queue_memory[2]``."""
    words = [word for rings in queues for ring in RING_DTYPES for word in rings[ring].memory]
    return (ctypes.c_uint64 * len(words))(*words)


class Ours:
    """The product: two ports and ``Worker.run``."""

    def __init__(self, loaded: ctypes.CDLL, sizes: Sizes, swap_mac: bool) -> None:
        self._library, self._sizes, self._swap_mac = loaded, sizes, swap_mac
        pool = Pool(Memory(sizes.frame_count, FRAME_SIZE))
        kick = address_of(loaded.kernel_kick)
        self._queues = [FakeQueue(pool, size=sizes.ring_size, kick_tx=kick) for _ in range(2)]
        self._memory = queue_memory([queue.rings for queue in self._queues])
        for queue in self._queues:
            queue.port.refill(sizes.fill_target)

    def run(self, packets: int = _PACKETS) -> tuple[float, int]:
        """Forward ``packets``; return the ns it took, and how many they were."""
        ports = (queue.port for queue in self._queues)
        worker = Worker(*ports, batch_size=BATCH_SIZE, swap_mac=self._swap_mac)
        before = self._forwarded()
        stop = _FINISHED(worker.stop)
        spent = _time_run(
            self._library, self._memory, packets, self._sizes, address_of(stop), worker.run
        )
        _check(self._forwarded() - before, packets)
        assert sum(worker.frames().values()) == self._sizes.frame_count
        return spent, packets

    def _forwarded(self) -> int:
        return sum(queue.port.counters()["tx_packets"] for queue in self._queues)


class Reference:
    """The same in C."""

    def __init__(self, loaded: ctypes.CDLL, sizes: Sizes, swap_mac: bool) -> None:
        self._library, self._sizes = loaded, sizes
        self._umem = Memory(sizes.frame_count, FRAME_SIZE)
        self._rings = [
            {name: FakeRing(sizes.ring_size, dtype) for name, dtype in RING_DTYPES.items()}
            for _ in range(2)
        ]
        for rings in self._rings:
            rings["tx"].needs_wakeup = True
        self._memory = queue_memory(self._rings)
        self._loop = loaded.reference_open(
            self._memory, self._umem.address, sizes.frame_count, FRAME_SIZE,
            sizes.fill_target, BATCH_SIZE, swap_mac,
        )  # fmt: skip

    def run(self, packets: int = _PACKETS) -> tuple[float, int]:
        """Forward ``packets``; return the ns it took, and how many they were."""
        before = self._forwarded()
        stop = address_of(self._library.reference_stop)
        run = partial(self._library.reference_run, self._loop)
        spent = _time_run(self._library, self._memory, packets, self._sizes, stop, run)
        _check(self._forwarded() - before, packets)
        return spent, packets

    def _forwarded(self) -> int:
        return int(self._library.reference_forwarded(self._loop, self._sizes.frame_count))

    def __del__(self) -> None:
        self._library.reference_close(self._loop)


Loop = type[Ours] | type[Reference]
LOOPS: Final[dict[str, Loop]] = {"ours": Ours, "C": Reference}


def _time_run(
    loaded: ctypes.CDLL,
    memory: Any,
    packets: int,
    sizes: Sizes,
    finished: int,
    run: Callable[[], None],
) -> float:
    """Return the ns of ``run``, less what the kernel took."""
    loaded.kernel_begin(memory, packets, sizes.packets_per_visit, sizes.kicks_per_visit, finished)
    began = time.perf_counter_ns()
    run()
    return time.perf_counter_ns() - began - int(loaded.kernel_busy_ns())


def _check(forwarded: int, packets: int) -> None:
    assert forwarded == packets, f"forwarded {forwarded} of {packets}: the result means nothing"


@contextmanager
def cases(level: str) -> Iterator[list[Case]]:
    """Both ways to forward, over both sizes, at any level."""
    with library() as loaded:
        yield [
            Case(
                name=f"ring loop, {action}, {name}",
                contenders={
                    who: partial(_make, loop, loaded, sizes, action) for who, loop in LOOPS.items()
                },
                reference="C",
                goals={"ours": goal},
                values={"action": action, "sizes": name, "frames": sizes.frame_count},
            )
            for name, sizes in SIZES.items()
            for action, goal in GOALS.items()
        ]


def _make(
    loop: Loop, loaded: ctypes.CDLL, sizes: Sizes, action: str
) -> Callable[[], tuple[float, int]]:
    return loop(loaded, sizes, action == "macswap").run
