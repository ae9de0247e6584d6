"""Frames a second through every data path, along every dimension.

Question: what does each data path carry, and at what cost, by attach mode, bind mode, frame size,
          queues, batch, rules, flows, one way and both ways?
Method:   the beds of ``bed.py``: the generator offers more than the engine carries, what is
          delivered is counted at the far end.  The first value of each dimension is the base; from
          there one dimension is varied at a time, for each path; with --full all are, together.
          Those of a path and a bed go by turns.
          Paths: ``afxdp`` is a pair of links, ``afxdp-rules`` the same with rules; ``redirect`` is
          a pair in the kernel, ``redirect-rule`` the same with rules; ``hybrid`` has learned.  The
          rule that packets hit matches protocol, address and port, and sets a MAC; of more rules
          the others match other addresses.  Flows are IPv4 sources (and MACs), which a rule more
          looks at where there are several.
          Sizes are on the wire, with the check sequence, as RFC 2544 has them: 1518 are 1514
          ``bytes`` in memory.  imix is 7:4:1 of 64, 574 and 1518; its ``bytes`` are the mean.
          Frames are made by the kernel, but jumbo frames, and those for several queues of a veth,
          by AF_XDP sockets (``generator``), which may be the limit of a path in the kernel.
          CPU time is that of the engine; on veths also of the kernel's threads that forward for a
          path in the kernel, which run on the engine's CPU.  A NIC's are not told apart: there is
          no such figure there.
          NICs have all their queues in use, unless --queues names what ethtool -L has set, and as
          many addresses as it takes to reach each of them.
Prints:   by case frames/s delivered (higher is better) and offered, CPU ns/frame (lower is better);
          ``mode`` and ``bind`` are what was obtained.

    python -m bench forward [--paths afxdp,hybrid] [--sizes 64,1518,imix,9000] [--json]
    pytest -p benchmark bench/bench_forward.py
"""

import argparse
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from bench import preflight
from bench.choices import listed, number_in, one_of, read_size
from bench.figures import Figure
from bench.options import Rounds, is_patient, links_of, wanted
from bench.record import Record
from bench.settings import (
    BINDS,
    IMIX_SIZE,
    MODES,
    PATHS,
    Measured,
    Setting,
    Sweep,
    needs_of_four,
    queues_of,
)
from l2fwd.rule_maps import MAX_ENTRIES

ROUNDS: Final[Rounds] = {
    "tiny": (1, 0.1),
    "quick": (1, 0.3),
    "normal": (1, 0.6),
    "full": (5, 2.0),
}
SIZES: Final = ("64", "128", "256", "512", "1024", "1280", "1518", IMIX_SIZE, "9000")
_MAX_QUEUES: Final = 64
_MAX_BATCH: Final = 2048  # the ring size
_MAX_FLOWS: Final = 1 << 20  # beyond, they meet the source that is no flow
# Option -> dimension, and its values by level where none are given; the first is the base.
DIMENSIONS: Final[dict[str, tuple[str, Mapping[str, tuple[Any, ...]]]]] = {
    "modes": ("mode", {"tiny": MODES[:1], "quick": MODES[:1], "normal": MODES}),
    "binds": ("bind", dict.fromkeys(("tiny", "quick", "normal"), BINDS)),
    "sizes": ("size", {"tiny": ("64", "9000"), "quick": ("64", "1518"), "normal": SIZES}),
    "queues": ("queues", {"tiny": (1,), "quick": (1,), "normal": (1, 2)}),
    "batches": ("batch", {"tiny": (64,), "quick": (64,), "normal": (64, 1, 16, 256)}),
    "rules": ("rules", {"tiny": (1,), "quick": (1,), "normal": (1, 100, 10_000)}),
    "flows": ("flows", {"tiny": (1,), "quick": (1,), "normal": (1, 256, 65_536)}),
    "ways": ("ways", dict.fromkeys(("tiny", "quick", "normal"), (1, 2))),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    def add(name: str, read: Callable[[str], Any], text: str) -> None:
        parser.add_argument(f"--{name}", type=lambda given: listed(given, read), help=text)

    add("paths", one_of("path", PATHS), f"of {', '.join(PATHS)}: comma-separated, as all these")
    add("modes", one_of("mode", MODES), "attach modes: native, skb")
    add("binds", one_of("bind", BINDS), "bind modes: copy, zero-copy")
    add("sizes", read_size, "bytes on the wire, with the check sequence, or imix")
    add("queues", number_in("queues", 1, _MAX_QUEUES), "numbers of queues in use")
    add("batches", number_in("batch", 1, _MAX_BATCH), "packets per burst")
    add("rules", number_in("rules", 1, MAX_ENTRIES - 2), "rules in the table")
    add("flows", number_in("flows", 1, _MAX_FLOWS), "flows")
    add("ways", number_in("ways", 1, 2), "1, from IN to OUT; 2, also back")


def needs(options: argparse.Namespace) -> preflight.Needs:
    """Return what the links must have, and that they must be four."""
    return needs_of_four("forward", options)


def run(options: argparse.Namespace, record: Record) -> None:
    """Measure every case that the options leave."""
    links = links_of(options)
    with tempfile.TemporaryDirectory() as folder:
        sweep = Sweep(
            record, links, options.rounds, options.seconds, Path(folder),
            quiet=is_patient(options),
        )  # fmt: skip
        settings = cases(options)
        record.note(
            f"{len(settings)} cases, {options.rounds} rounds of {options.seconds:g} s each, and "
            "two seconds around each"
        )
        for some in _sharing_a_bed(settings, sweep.is_veth):
            for setting, measured in sweep.measure(some).items():
                for figure in figures_of(setting, measured, sweep.is_veth):
                    record.take(figure)


def cases(options: argparse.Namespace) -> list[Setting]:
    """Return the settings to measure, those of a path together, each once."""
    paths = options.paths or list(PATHS)
    values = _values(options)
    found: list[Setting] = []
    for path in paths:
        base = Setting(path=path, **{name: each[0] for name, each in values.items()})
        if options.level == "full":
            found += _product(base, values)
        elif options.level == "tiny" and path != paths[0]:
            found.append(base)
        else:
            found += _one_at_a_time(base, values)
    ready = dict.fromkeys(_by_source(setting.normal()) for setting in found)
    return [setting for setting in ready if wanted(options, setting.name)]


def _values(options: argparse.Namespace) -> dict[str, list[Any]]:
    level = "normal" if options.level == "full" else options.level
    values = {
        name: getattr(options, option) or list(defaults[level])
        for option, (name, defaults) in DIMENSIONS.items()
    }
    if options.in_link and not options.queues:
        values["queues"] = [queues_of(options.in_link)]
    return values


def _one_at_a_time(base: Setting, values: Mapping[str, list[Any]]) -> Iterator[Setting]:
    yield base
    for name, others in values.items():
        for value in others[1:]:
            yield replace(base, **{name: value})


def _product(base: Setting, values: Mapping[str, list[Any]]) -> Iterator[Setting]:
    for chosen in itertools.product(*values.values()):
        yield replace(base, **dict(zip(values, chosen, strict=True)))


def _by_source(setting: Setting) -> Setting:
    """Make several flows ones that ``hybrid`` tells apart."""
    return replace(setting, by_source=setting.path == "hybrid" and setting.flows > 1)


def _sharing_a_bed(settings: Iterable[Setting], is_veth: bool) -> Iterator[list[Setting]]:
    """Yield those of a path that one bed serves."""
    found: dict[Any, list[Setting]] = {}
    for setting in settings:
        found.setdefault((setting.path, setting.needs(is_veth)), []).append(setting)
    yield from found.values()


def figures_of(setting: Setting, measured: Measured, is_veth: bool) -> Iterator[Figure]:
    """Yield what was delivered and offered, and the CPU time where it is known."""
    samples = measured.samples
    for what, unit, better, values in (
        ("delivered", "frames/s", "higher", [each.delivered for each in samples]),
        ("offered", "frames/s", "neither", [each.offered for each in samples]),
        ("cpu", "ns/frame", "lower", [each.cpu_ns for each in samples]),
    ):
        if what == "cpu" and not setting.has_cpu_time(is_veth):
            continue
        yield Figure(
            name=f"{setting.name}: {what}", unit=unit, samples=tuple(values), better=better,
            case={**measured.case, "what": what},
        )  # fmt: skip


# Under pytest


@pytest.mark.parametrize("path", PATHS)
def test_frames_per_second(benchmark: Any, path: str) -> None:
    """pytest-benchmark's table is per run; the figures are in extra_info."""
    from bench.pytest_run import figures_by_name

    found = benchmark.pedantic(figures_by_name, args=("forward", "--paths", path), rounds=1)
    benchmark.extra_info.update(found)
    assert any(name.endswith("delivered") and rate > 0 for name, rate in found.items())
