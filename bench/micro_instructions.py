"""Instructions to forward one packet between two ports, without a kernel: ours against plain C.

Question: what does the loop cost where no clock can be trusted?
Method:   the loops of ``micro_rings.py`` at default sizes under callgrind, which counts every
          instruction of the loop and of what it calls, but not those of the kernel that stands in
          for the real one.  The count is the same every time, so it is taken once; it
          knows nothing of caches.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

from bench.environment import ROOT
from bench.figures import Figure, ratio
from bench.micro_rings import GOALS, LOOPS, SIZES, library
from l2fwd.errors import RunError

_SIZES: Final = SIZES["default sizes"]
_BATCHES: Final = 32  # that the kernel delivers; the first is not counted
_HEADER: Final = Path("/usr/include/valgrind/callgrind.h")
_TOTAL: Final = re.compile(r"^totals: (\d+)$", re.M)
ACTIONS: Final = {"tiny": ("pass-through",)}  # by level; all where none are named


def name_of(action: str) -> str:
    """Return what the names of an action's figures begin with."""
    return f"ring loop, {action}, instructions"


def missing() -> str:
    """Tell what is missing to count instructions; empty if nothing is."""
    if shutil.which("valgrind") and _HEADER.exists():
        return ""
    return "no valgrind: apt-get install valgrind"


def measure(level: str, is_wanted: Callable[[str], bool]) -> Iterator[Figure]:
    """Yield the count per packet of each loop, and their ratio, for each action."""
    for action in ACTIONS.get(level, tuple(GOALS)):
        name = name_of(action)
        if not is_wanted(name):
            continue
        with ThreadPoolExecutor(len(LOOPS)) as threads:
            counts = dict(zip(LOOPS, threads.map(partial(_count, action), LOOPS), strict=True))
        for who, count in counts.items():
            yield Figure(
                name=f"{name}, {who}", unit="instructions/frame", samples=(count,), better="lower"
            )
        yield ratio(
            f"{name}, ours to C", [counts["ours"]], [counts["C"]], against="C", better="lower"
        )


def _count(action: str, who: str) -> float:
    """Run a loop in a process of its own; return its instructions per packet."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "callgrind.out"
        done = subprocess.run(
            ["valgrind", "--tool=callgrind", "--instr-atstart=no",
             f"--callgrind-out-file={output}", sys.executable, "-m", __name__, who, action],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RunError(f"callgrind of {who} failed: {done.stderr.strip().splitlines()[-1]}")
        (total,) = _TOTAL.findall(output.read_text())
    return int(total) / ((_BATCHES - 1) * 2 * _SIZES.packets_per_visit)


def main(who: str, action: str) -> None:
    """Forward once: what callgrind runs."""
    with library() as loaded:
        loop = LOOPS[who](loaded, _SIZES, action == "macswap")
        loop.run(_BATCHES * 2 * _SIZES.packets_per_visit)


if __name__ == "__main__":
    main(*sys.argv[1:])
