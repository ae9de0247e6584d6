"""Time to forward one packet between two ports, without a kernel: ours against plain C.

Question: does the Cython loop cost no more than the same loop in C over libxdp's xsk.h?
Method:   both loops do the same work (reclaim completions to a stack of frames, peek rx,
          bound every descriptor, hand it to tx, submit, release, refill, count, kick; both
          directions, 64 packets a burst; ours moves addresses in runs, where xsk.h has an
          accessor for one slot) on the same kind of ring memory against the same
          kernel, written in C (ring_reference.c).  It stands where ``sendto`` is called, does
          nothing in most kicks, and in every 32nd completes and delivers 1024 packets on each
          queue; the time of that is measured and taken off.  Ours is the product as it is:
          one ``Worker.run()`` a measurement, so neither loop pays for Python.  The reference
          is compiled by cc with the flags setuptools gives the extensions.
          Measurements are interleaved, who goes first alternates, and each pair gets memory of
          its own, so that luck of placement shows in the spread.
Prints:   with --json one object last; ``ratio`` is ours / reference, median of the pairs,
          lower is better, goal 1.0; ``spread`` its quartiles; ns are per packet.

    python bench/bench_rings.py [--json] [--tiny]
    pytest -p benchmark bench/bench_rings.py
"""

import argparse
import ctypes
import json
import os
import shlex
import statistics
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from l2fwd import _rings
from l2fwd._rings import Memory, Pool
from l2fwd._worker import Worker
from l2fwd.testing import RING_DTYPES, FakeQueue, FakeRing

NAME: Final = "forward_ns_per_packet"
GOAL: Final = 1.0
BATCH_SIZE: Final = 64
RING_SIZE: Final = 2048
FRAME_COUNT: Final = 4096
FRAME_SIZE: Final = 2048
FILL_TARGET: Final = 1024
PACKETS_PER_VISIT: Final = 1024  # of the kernel, on each queue
KICKS_PER_VISIT: Final = 2 * PACKETS_PER_VISIT // BATCH_SIZE
PAIRS: Final = 31
PACKETS: Final = 2000 * 2 * PACKETS_PER_VISIT  # per measurement, both directions together
WARM_UP_PACKETS: Final = 20 * 2 * PACKETS_PER_VISIT

_FINISHED: Final = ctypes.CFUNCTYPE(None)


@dataclass(frozen=True)
class Result:
    """Pairs of ns per packet, ours and the reference's."""

    pairs: list[tuple[float, float]]

    def summary(self) -> dict[str, Any]:
        """Return medians, and the quartiles and extremes of the ratio."""
        ratios = sorted(ours / reference for ours, reference in self.pairs)
        quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        return {
            "ratio": round(statistics.median(ratios), 4),
            "spread": [round(quartiles[0], 4), round(quartiles[2], 4)],
            "ratio_min_max": [round(ratios[0], 4), round(ratios[-1], 4)],
            "ours_ns": round(statistics.median(ours for ours, _ in self.pairs), 3),
            "reference_ns": round(statistics.median(ref for _, ref in self.pairs), 3),
            "pairs": len(ratios),
        }


def compile_reference(folder: str) -> ctypes.CDLL:
    """Build ring_reference.c as setuptools builds the extensions, and load it."""
    target = f"{folder}/ring_reference.so"
    flags = shlex.split(sysconfig.get_config_var("CFLAGS") or "")
    subprocess.run(
        [os.environ.get("CC", "cc"), *flags, "-O3", "-DNDEBUG", "-Wall", "-Wextra", "-fPIC",
         "-shared", str(Path(__file__).with_name("ring_reference.c")), "-o", target],
        check=True,
    )  # fmt: skip
    library = ctypes.CDLL(target)
    library.reference_open.restype = ctypes.c_void_p
    library.reference_open.argtypes = (
        [ctypes.c_void_p] * 2 + [ctypes.c_uint32] * 4 + [ctypes.c_bool]
    )
    library.reference_run.argtypes = [ctypes.c_void_p]
    library.reference_close.argtypes = [ctypes.c_void_p]
    library.reference_forwarded.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    library.reference_forwarded.restype = ctypes.c_uint64
    library.kernel_begin.argtypes = [
        ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p
    ]  # fmt: skip
    library.kernel_busy_ns.restype = ctypes.c_uint64
    return library


@contextmanager
def reference_library() -> Iterator[ctypes.CDLL]:
    with tempfile.TemporaryDirectory() as folder:
        yield compile_reference(folder)


def address_of(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def queue_memory(queues: list[dict[str, FakeRing]]) -> ctypes.Array[ctypes.c_uint64]:
    """Lay out ``struct queue_memory[2]``."""
    words = [word for rings in queues for ring in RING_DTYPES for word in rings[ring].memory]
    return (ctypes.c_uint64 * len(words))(*words)


class Ours:
    """The product: two ports and ``Worker.run``."""

    def __init__(self, library: ctypes.CDLL, swap_mac: bool) -> None:
        self.library = library
        self.swap_mac = swap_mac
        self.pool = Pool(Memory(FRAME_COUNT, FRAME_SIZE))
        kick = address_of(library.kernel_kick)
        self.queues = [FakeQueue(self.pool, size=RING_SIZE, kick_tx=kick) for _ in range(2)]
        self.memory = queue_memory([queue.rings for queue in self.queues])
        for queue in self.queues:
            queue.port.refill(FILL_TARGET)

    def run(self, packets: int) -> float:
        """Forward ``packets``; return ns per packet."""
        worker = Worker(
            *(queue.port for queue in self.queues), batch_size=BATCH_SIZE, swap_mac=self.swap_mac
        )
        before = self.forwarded()
        finished = _FINISHED(worker.stop)
        spent = time_run(self.library, self.memory, packets, address_of(finished), worker.run)
        forwarded = self.forwarded() - before
        assert forwarded == packets, f"forwarded {forwarded} of {packets}: the result means nothing"
        assert sum(worker.frames().values()) == FRAME_COUNT
        return spent

    def forwarded(self) -> int:
        return sum(queue.port.counters()["tx_packets"] for queue in self.queues)


class Reference:
    """The same in C."""

    def __init__(self, library: ctypes.CDLL, swap_mac: bool) -> None:
        self.library = library
        self.umem = Memory(FRAME_COUNT, FRAME_SIZE)
        self.rings = [
            {name: FakeRing(RING_SIZE, dtype) for name, dtype in RING_DTYPES.items()}
            for _ in range(2)
        ]
        for rings in self.rings:
            rings["tx"].needs_wakeup = True
        self.memory = queue_memory(self.rings)
        self.loop = library.reference_open(
            self.memory,
            self.umem.address,
            FRAME_COUNT,
            FRAME_SIZE,
            FILL_TARGET,
            BATCH_SIZE,
            swap_mac,
        )

    def run(self, packets: int) -> float:
        """Forward ``packets``; return ns per packet."""
        library, before = self.library, self.forwarded()
        stop = address_of(library.reference_stop)
        spent = time_run(
            library, self.memory, packets, stop, lambda: library.reference_run(self.loop)
        )
        forwarded = self.forwarded() - before
        assert forwarded == packets, f"forwarded {forwarded} of {packets}: the result means nothing"
        return spent

    def forwarded(self) -> int:
        return int(self.library.reference_forwarded(self.loop, FRAME_COUNT))

    def __del__(self) -> None:
        self.library.reference_close(self.loop)


def time_run(
    library: ctypes.CDLL, memory: Any, packets: int, finished: int, run: Callable[[], None]
) -> float:
    """Return ns per packet of ``run``, less what the kernel took."""
    library.kernel_begin(memory, packets, PACKETS_PER_VISIT, KICKS_PER_VISIT, finished)
    began = time.perf_counter_ns()
    run()
    spent = time.perf_counter_ns() - began - int(library.kernel_busy_ns())
    return spent / packets


def measure(library: ctypes.CDLL, *, swap_mac: bool, pairs: int, packets: int) -> Result:
    """Time both, by turns."""
    found: list[tuple[float, float]] = []
    for i in range(pairs):
        loops: tuple[Ours, Reference] = (Ours(library, swap_mac), Reference(library, swap_mac))
        for loop in loops:
            loop.run(WARM_UP_PACKETS)
        order = (0, 1) if i % 2 else (1, 0)
        spent = {which: loops[which].run(packets) for which in order}
        found.append((spent[0], spent[1]))
    return Result(found)


def report(pairs: int, packets: int) -> dict[str, Any]:
    """Measure both variants; the plain one is the result."""
    with reference_library() as library:
        plain, swapped = (
            measure(library, swap_mac=swap_mac, pairs=pairs, packets=packets).summary()
            for swap_mac in (False, True)
        )
    return {"name": NAME, "goal": GOAL, **plain, "batch": BATCH_SIZE, "packets": packets,
            "debug_build": _rings.DEBUG, "swap_mac": swapped}  # fmt: skip


@pytest.mark.parametrize("swap_mac", [False, True], ids=["plain", "swap_mac"])
def test_forward(benchmark: Any, swap_mac: bool) -> None:
    """pytest-benchmark's table is per measurement; per packet and ratio are in extra_info."""
    packets = 20 * 2 * PACKETS_PER_VISIT
    with reference_library() as library:
        ours = Ours(library, swap_mac)
        benchmark.extra_info["packets"] = packets
        benchmark.extra_info.update(
            measure(library, swap_mac=swap_mac, pairs=5, packets=packets).summary()
        )
        benchmark.pedantic(ours.run, args=(packets,), rounds=20, warmup_rounds=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--tiny", action="store_true", help="run once, without a meaning")
    arguments = parser.parse_args()
    result = report(1, WARM_UP_PACKETS) if arguments.tiny else report(PAIRS, PACKETS)
    if arguments.json:
        print(json.dumps(result))
        return
    for variant, figures in (("plain forward", result), ("swap_mac", result["swap_mac"])):
        low, high = figures["spread"]
        print(
            f"{variant:14} ours {figures['ours_ns']:.2f} ns, C {figures['reference_ns']:.2f} ns, "
            f"ratio {figures['ratio']:.3f} (quartiles {low:.3f} to {high:.3f})"
        )


if __name__ == "__main__":
    main()
