"""Time to put one flow into the kernel's table: a burst a system call against one flow a call.

Question: what does the worker's insert, one BPF_MAP_UPDATE_BATCH a burst, save?
Method:   the flow table of the program hybrid, with room for many times what is inserted.  4096
          flows, with keys that are new every time, go in: by the function that the worker calls,
          in bursts of its default size, and by BPF_MAP_UPDATE_ELEM one after the other, both
          from a loop in C (flow_reference.c).  Then they are counted, and deleted, off the clock.
"""

import ctypes
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Final

import numpy as np

from bench.case import Case
from bench.reference import compiled, declare
from bench.rounds import Work
from l2fwd._bpf import INSERT_FLOWS
from l2fwd.bpf import Program
from l2fwd.config import DEFAULT_BATCH_SIZE
from l2fwd.records import FLOW
from l2fwd.rule_maps import map_sizes

GOAL: Final = 1.0
FLOW_COUNT: Final = 4096
_TABLE_SIZE: Final = 1 << 16
_SEEDS: Final = itertools.count()

Insert = Callable[[int, int, int], int]  # addresses of keys and flows, count; how many were


def inserting(program: Program, insert: Insert) -> Work:
    """Return work: insert flows that are not in the table."""
    rng, flows = np.random.default_rng(next(_SEEDS)), np.zeros(FLOW_COUNT, FLOW)

    def work() -> tuple[float, int]:
        keys = rng.integers(2**63, size=FLOW_COUNT, dtype=np.uint64)
        began = time.perf_counter_ns()
        inserted = insert(keys.ctypes.data, flows.ctypes.data, FLOW_COUNT)
        spent = time.perf_counter_ns() - began
        there = program.items("flows")[0]
        assert inserted == len(there) // keys.itemsize == FLOW_COUNT, (
            f"inserted {inserted} of {FLOW_COUNT}: the result means nothing"
        )
        program.delete("flows", [there])
        return spent, FLOW_COUNT

    return work


@contextmanager
def cases(level: str) -> Iterator[list[Case]]:
    """One case, at any level."""
    with ExitStack() as undo:
        library = undo.enter_context(compiled("flow_reference"))
        pointer, number = ctypes.c_void_p, ctypes.c_uint32
        declare(
            library, "reference_one_by_one", number, ctypes.c_int, *[pointer] * 2, *[number] * 2
        )
        declare(
            library, "reference_in_bursts",
            number, pointer, ctypes.c_int, *[pointer] * 2, *[number] * 3,
        )  # fmt: skip
        program = Program("hybrid", {**map_sizes(1), "flows": _TABLE_SIZE})
        undo.callback(program.close)
        program.load()
        table = program.map_fd("flows")

        def one_by_one(keys: int, flows: int, count: int) -> int:
            return int(library.reference_one_by_one(table, keys, flows, FLOW.itemsize, count))

        def in_bursts(keys: int, flows: int, count: int) -> int:
            return int(
                library.reference_in_bursts(
                    INSERT_FLOWS, table, keys, flows, FLOW.itemsize, count, DEFAULT_BATCH_SIZE
                )
            )

        yield [
            Case(
                name="flow insert",
                contenders={
                    "ours": partial(inserting, program, in_bursts),
                    "one by one": partial(inserting, program, one_by_one),
                },
                reference="one by one",
                goals={"ours": GOAL},
                of="flow",
                values={"burst": DEFAULT_BATCH_SIZE},
            )
        ]
