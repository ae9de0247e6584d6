"""How the cost of a frame grows with queues, rules, flows, batch, ring size and frame size.

Question: does forwarding stay as cheap as with one queue, one rule, one flow?
Method:   the beds of ``bed.py``.  A sweep varies one dimension of a data path; all its values take
          turns on one bed, so that a ratio is of one round.  All have a rule that packets hit, by
          protocol, address and port; ``hybrid`` has learned its flows before the clock runs.
          The cost of a frame is CPU time: that of the engine, and for a path in the kernel that of
          the kernel's threads that forward, on the engine's CPU.  Where these are not told apart,
          on NICs, it is the time from frame to frame.
          Queues: frames come from AF_XDP sockets on a veth, for all values; workers beyond the
          CPUs share them.  A NIC has one number of queues at a time, as ethtool -L sets it: one
          value of this sweep, and 1 for all others.
          Rules: the others match other addresses; 131,072 entries are the most.
          Masks: combinations of fields and prefix lengths, each tried before the rule that is hit;
          64 are the most.
          Flows: IPv4 sources and MACs.  A rule that does not look at them makes them one flow
          (ADR 0010); ``hybrid by source`` has one more that does, and as many flows as there are.
          Batch and ring: sockets only.  Bytes: jumbo frames apart (``jumbo``), as they and their
          base come from sockets.
Prints:   frames/s delivered and ns/frame by value, and growth: the cost at the base over that
          at the value (higher is better, 1 is no growth), with the goal 0.9 at 256 and 65,536
          flows.

    python -m bench scale [--sweeps flows,rules] [--paths hybrid] [--json]
    pytest -p benchmark bench/bench_scale.py
"""

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pytest

from bench import preflight
from bench.choices import listed, one_of
from bench.figures import Figure, ratio
from bench.options import Rounds, is_patient, links_of, wanted
from bench.record import Record
from bench.settings import FCS_BYTES, Measured, Needs, Setting, Sweep, needs_of_four
from l2fwd.rule_maps import MAX_ENTRIES

ROUNDS: Final[Rounds] = {
    "tiny": (1, 0.1),
    "quick": (1, 0.3),
    "normal": (2, 0.4),
    "full": (15, 2.0),
}
GOAL: Final = 0.9
GOAL_FLOWS: Final = (256, 65_536)
PATHS: Final = {"afxdp": "afxdp-rules", "redirect": "redirect-rule", "hybrid": "hybrid"}
_SIZES: Final = ("64", "128", "256", "512", "1024", "1280", "1518")
_FLOWS: Final = (1, 16, 256, 4096, 65_536, 1_000_000)
_NOT_TINY: Final = ("bytes",)  # jumbo goes through the same lines
_NOT_QUICK: Final = ("queues", "masks", "batch", "ring", "bytes", "jumbo")
_BY_SOURCE: Final = "hybrid by source"


@dataclass(frozen=True, slots=True)
class Dimension:
    """What a sweep varies.

    Attributes
    ----------
    field : str
        Of a setting.
    values : tuple
        The first is the base.
    few : tuple
        Those of the tiny and the quick form.
    some : tuple
        Those of the normal form; none: all.
    sockets_only : bool
        Paths in the kernel have no such thing.
    fixed : mapping
        Other fields of the setting.
    """

    field: str
    values: tuple[Any, ...]
    few: tuple[Any, ...]
    some: tuple[Any, ...] = ()
    sockets_only: bool = False
    fixed: Mapping[str, Any] | None = None

    def at(self, level: str) -> tuple[Any, ...]:
        """Return the values of a level."""
        if level in ("tiny", "quick"):
            return self.few
        return self.some if self.some and level == "normal" else self.values


SWEEPS: Final = {
    "queues": Dimension("queues", (1, 2, 3, 4), (1, 4), fixed={"by_socket": True}),
    "rules": Dimension(
        "rules",
        (1, 10, 100, 1000, 10_000, 100_000, MAX_ENTRIES, 1_000_000),
        (1, 1000),
        some=(1, 100, 10_000, MAX_ENTRIES, 1_000_000),
    ),
    "masks": Dimension("masks", (1, 2, 4, 8, 16, 32, 64, 65), (1, 64), some=(1, 8, 64, 65)),
    "flows": Dimension("flows", _FLOWS, (1, 4096), some=(1, 256, 65_536, 1_000_000)),
    "batch": Dimension(
        "batch", (64, 1, 4, 16, 32, 128, 256), (64, 1), some=(64, 1, 8, 256), sockets_only=True
    ),
    "ring": Dimension(
        "ring",
        (2048, 64, 128, 256, 512, 1024, 4096, 8192),
        (2048, 64),
        some=(2048, 64, 512, 8192),
        sockets_only=True,
    ),
    "bytes": Dimension("size", _SIZES, ("64", "1518"), some=("64", "512", "1518")),
    "jumbo": Dimension(
        "size", ("64", "1518", "4096", "9000"), ("64", "9000"), fixed={"by_socket": True}
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sweeps", type=lambda text: listed(text, one_of("sweep", SWEEPS)),
                        help=f"of {', '.join(SWEEPS)}")  # fmt: skip
    parser.add_argument("--paths", type=lambda text: listed(text, one_of("path", PATHS)),
                        help=f"of {', '.join(PATHS)}")  # fmt: skip


def needs(options: argparse.Namespace) -> preflight.Needs:
    """Return what the links must have, and that they must be four."""
    return needs_of_four("scale", options)


def run(options: argparse.Namespace, record: Record) -> None:
    """Measure every sweep that the options leave, for every path."""
    links = links_of(options)
    with tempfile.TemporaryDirectory() as folder:
        sweep = Sweep(
            record, links, options.rounds, options.seconds, Path(folder),
            quiet=is_patient(options),
        )  # fmt: skip
        for name, series, settings in sweeps(options):
            able = [each for each in settings if _fits(each, record)]
            measured = sweep.measure(able, _needs(able, sweep.is_veth)) if able else {}
            for figure in figures_of(name, series, measured, sweep.is_veth):
                record.take(figure)


def sweeps(options: argparse.Namespace) -> Iterator[tuple[str, str, list[Setting]]]:
    """Yield a sweep's name, its series, and the settings, the base first."""
    is_tiny = options.level == "tiny"
    left_out = {"tiny": _NOT_TINY, "quick": _NOT_QUICK}.get(options.level, ())
    names = options.sweeps or [name for name in SWEEPS if name not in left_out]
    for name in names:
        dimension = SWEEPS[name]
        for series, base in _bases(name, options.paths or list(PATHS)):
            if not wanted(options, f"{name} {series}"):
                continue
            values = dimension.at(options.level)
            yield name, series, [replace(base, **{dimension.field: each}) for each in values]
            if is_tiny and name != "flows":
                break


def _bases(name: str, paths: Sequence[str]) -> Iterator[tuple[str, Setting]]:
    dimension = SWEEPS[name]
    for path in paths:
        base = Setting(path=PATHS[path], **(dimension.fixed or {}))
        if dimension.sockets_only and base.is_in_kernel:
            continue
        yield path, base
        if name == "flows" and path == "hybrid":
            yield _BY_SOURCE, replace(base, by_source=True)


def _fits(setting: Setting, record: Record) -> bool:
    if setting.rules > MAX_ENTRIES:
        record.skip(setting.name, f"the engine's tables hold {MAX_ENTRIES} entries")
        return False
    return True


def _needs(settings: Sequence[Setting], is_veth: bool) -> Needs:
    """Return the needs of one bed for all."""
    needs = [each.needs(is_veth) for each in settings]
    most = settings[0].queues if not is_veth else max(each.queues for each in needs)
    return needs[0]._replace(queues=most, mtu=max(each.mtu for each in needs))


def figures_of(
    sweep: str, series: str, measured: Mapping[Setting, Measured], is_veth: bool
) -> Iterator[Figure]:
    """Yield the costs of a sweep, and the growth against its base, if that could be measured."""
    costs = {setting: _costs(setting, found, is_veth) for setting, found in measured.items()}
    base = SWEEPS[sweep].values[0]
    of_base: list[float] = []
    for setting, found in costs.items():
        value = getattr(setting, SWEEPS[sweep].field)
        case = {"sweep": sweep, "value": _number(value), "series": series}
        details = {key: measured[setting].case[key] for key in ("mode", "bind", "generator")}
        name = f"{series}: {sweep} {value}"
        yield Figure(
            name=f"{name}: rate", unit="frames/s", case=case | details,
            samples=tuple(each.delivered for each in measured[setting].samples),
        )  # fmt: skip
        yield Figure(
            name=f"{name}: cost", unit="ns/frame", samples=tuple(found), better="lower",
            case=case | details,
        )  # fmt: skip
        if value == base:
            of_base = found
        elif of_base:
            yield ratio(
                f"{name}: growth", of_base, found, against=f"{sweep} {base}", case=case | details,
                goal=GOAL if _has_goal(sweep, series, value) else None,
            )  # fmt: skip


def _has_goal(sweep: str, series: str, value: Any) -> bool:
    return sweep == "flows" and series != _BY_SOURCE and value in GOAL_FLOWS


def _number(value: Any) -> int:
    """Return a place on the axis; of sizes the bytes in memory."""
    return int(value) - FCS_BYTES if isinstance(value, str) else int(value)


def _costs(setting: Setting, measured: Measured, is_veth: bool) -> list[float]:
    """Return ns per frame, sample by sample."""
    if setting.has_cpu_time(is_veth):
        return [each.cpu_ns for each in measured.samples]
    return [1e9 / max(1.0, each.delivered) for each in measured.samples]


# Under pytest


@pytest.mark.parametrize("path", PATHS)
def test_growth(benchmark: Any, path: str) -> None:
    """pytest-benchmark's table is per run; the figures are in extra_info."""
    from bench.pytest_run import figures_by_name

    found = benchmark.pedantic(
        figures_by_name, args=("scale", "--paths", path, "--sweeps", "flows"), rounds=1
    )
    benchmark.extra_info.update(found)
    assert found[f"{path}: flows 4096: growth"] > 0
