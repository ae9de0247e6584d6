"""The parts of forwarding one by one, each beside its C or bare-kernel reference.

Parts:    the ring loop against C over xsk.h (micro_rings.py), and its instructions where valgrind
          is installed (micro_instructions.py); the parser of headers (micro_parse.py) and the
          look-up of rules (micro_classify.py) against C; flows put into the kernel's table
          against one system call each (micro_flows.py); our XDP programs against the plainest
          redirect (micro_programs.py).  Each file says how it measures.
Prints:   ns of each contender and the ratios to the reference, lower is better; a ratio is of one
          round, its spread the quartiles over the rounds.
"""

import argparse
from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Any, Final

from bench import (
    micro_classify,
    micro_flows,
    micro_instructions,
    micro_parse,
    micro_programs,
    micro_rings,
)
from bench.figures import Figure
from bench.options import links_of, wanted
from bench.record import Record
from bench.rounds import Rounds, rounds_of
from l2fwd import _rings
from l2fwd.errors import ConfigError

ROUNDS: Final = {
    "tiny": (1, 0.0005),
    "quick": (3, 0.01),
    "normal": (11, 0.03),
    "full": (61, 0.2),
}
PARTS: Final[dict[str, ModuleType]] = {
    "rings": micro_rings,
    "parse": micro_parse,
    "classify": micro_classify,
    "flows": micro_flows,
    "programs": micro_programs,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Nothing beyond what all suites have."""


def run(options: argparse.Namespace, record: Record) -> None:
    """Measure all parts, one after the other."""
    if links_of(options):
        raise ConfigError("micro uses no NIC: leave out --in and --out")
    if _rings.DEBUG:
        record.note("a debug build: its times mean nothing")
    rounds = rounds_of(options)
    try:
        for part in PARTS.values():
            for figure in measure(part, options, rounds):
                record.take(figure)
        _count_instructions(options, record)
    finally:
        rounds.note(record)


def measure(part: ModuleType, options: argparse.Namespace, rounds: Rounds) -> Iterator[Figure]:
    """Yield the figures of the cases of a part that are wanted."""
    with part.cases(options.level) as cases:
        for case in cases:
            if wanted(options, case.name):
                yield from case.measure(rounds)


def _count_instructions(options: argparse.Namespace, record: Record) -> None:
    is_wanted = partial(wanted, options)
    if reason := micro_instructions.missing():
        for name in filter(is_wanted, map(micro_instructions.name_of, micro_rings.GOALS)):
            record.skip(name, reason)
        return
    for figure in micro_instructions.measure(options.level, is_wanted):
        record.take(figure)


# Under pytest


def test_part(benchmark: Any, part: str) -> None:
    """pytest-benchmark's table is of our own work, once; the figures are in extra_info."""
    rounds = Rounds(5, 0.002, is_patient=False)
    with PARTS[part].cases("tiny") as cases:
        for case in cases:
            for figure in case.measure(rounds):
                benchmark.extra_info[figure.name] = figure.as_dict()
        who = next(name for name in cases[-1].contenders if name != cases[-1].reference)
        spent, done = benchmark.pedantic(cases[-1].contenders[who](), rounds=20, warmup_rounds=2)
    assert spent > 0 < done


def pytest_generate_tests(metafunc: Any) -> None:
    if "part" in metafunc.fixturenames:
        metafunc.parametrize("part", PARTS)
