"""What changed between two result files of one suite, beyond the noise.

A figure has changed if its medians are further apart than half the quartile range of the one and
half that of the other together, and, where there are samples enough to tell, ranks as far apart
as theirs come by chance with p < 0.01 (Mann-Whitney, two-sided).  Five samples each are enough.
"""

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.figures import Figure
from bench.rank_test import least_p_value, p_value
from bench.record import shown
from bench.result import Result, differences, load
from l2fwd.errors import EXIT_FAILED, ConfigError

SIGNIFICANT: Final = 0.01
_COMPARABLE: Final = ("level", "rounds", "seconds")  # options that should be the same


@dataclass(frozen=True, slots=True)
class Change:
    """A figure in both files.

    Attributes
    ----------
    verdict : str
        ``better``, ``worse``, ``changed`` where neither is better, or ``same``.
    p : float or None
        None with too few samples to tell.
    """

    before: Figure
    after: Figure
    verdict: str
    p: float | None

    def __str__(self) -> str:
        old, new, unit = self.before.median, self.after.median, self.before.unit
        share = f"{100 * (new / old - 1):+.1f} %, " if old else ""
        certainty = "few samples" if self.p is None else f"p {self.p:.2g}"
        return (
            f"{self.verdict:<7} {self.after.name}: {shown(old, unit)} -> {shown(new, unit)} "
            f"({share}{certainty})"
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.add_argument("before", type=Path, metavar="A.json")
    parser.add_argument("after", type=Path, metavar="B.json")
    parser.add_argument("--strict", action="store_true", help="exit 1 if something got worse")


def run(options: argparse.Namespace) -> int:
    """Print what changed; return the exit code."""
    before, after = load(options.before), load(options.after)
    if before.suite != after.suite:
        raise ConfigError(
            f"{before.path} is of suite {before.suite}, {after.path} of {after.suite}; "
            "name two of one suite"
        )
    changes = list(compare(_by_name(before), _by_name(after)))
    for line in (*_doubts(before, after), *_listing(changes), *_alone(before, after)):
        print(line)
    worse = sum(change.verdict == "worse" for change in changes)
    better = sum(change.verdict == "better" for change in changes)
    print(f"{len(changes)} figures in both: {better} better, {worse} worse")
    return EXIT_FAILED if options.strict and worse else 0


def compare(before: dict[str, Figure], after: dict[str, Figure]) -> Iterator[Change]:
    """Yield what became of each figure that both have, in the order of the second.

    Raises
    ------
    ConfigError
        If a figure has another unit than it had.
    """
    for name, new in after.items():
        old = before.get(name)
        if old is None:
            continue
        if old.unit != new.unit:
            raise ConfigError(
                f"{name} is in {old.unit} in one file and in {new.unit} in the other; "
                "measure both with one revision of the bench"
            )
        p = _p_value(old, new)
        has_changed = _is_apart(old, new) and (p is None or p < SIGNIFICANT)
        yield Change(old, new, _verdict(old, new) if has_changed else "same", p)


def _is_apart(old: Figure, new: Figure) -> bool:
    half_ranges = sum((high - low) / 2 for low, high in (old.spread, new.spread))
    return abs(new.median - old.median) > half_ranges


def _p_value(old: Figure, new: Figure) -> float | None:
    if least_p_value(len(old.samples), len(new.samples)) >= SIGNIFICANT:
        return None
    return p_value(old.samples, new.samples)


def _verdict(old: Figure, new: Figure) -> str:
    if new.better == "neither":
        return "changed"
    return "better" if (new.median > old.median) == (new.better == "higher") else "worse"


def _listing(changes: Iterable[Change]) -> Iterator[str]:
    """Yield what changed, the worst kind first."""
    for verdict in ("worse", "better", "changed"):
        yield from (str(change) for change in changes if change.verdict == verdict)


def _doubts(before: Result, after: Result) -> Iterator[str]:
    """Yield why the two might not be compared at all."""
    yield from differences((before, after))
    for name in _COMPARABLE:
        old, new = before.options.get(name), after.options.get(name)
        if old != new:
            yield f"The option {name} was {old} and is {new}."
    for result in (before, after):
        if not result.is_complete:
            yield f"{result.path} was cut short."


def _alone(before: Result, after: Result) -> Iterator[str]:
    for result, other in ((before, after), (after, before)):
        names = {figure.name for figure in other.figures}
        for figure in result.figures:
            if figure.name not in names:
                yield f"only in {result.path}: {figure.name}"


def _by_name(result: Result) -> dict[str, Figure]:
    found: dict[str, Figure] = {}
    for figure in result.figures:
        if figure.name in found:
            raise ConfigError(f"{result.path}: two figures are named {figure.name}; rename one")
        found[figure.name] = figure
    return found
