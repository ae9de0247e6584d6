"""What a suite measures: named samples with a unit, and the ratio of two contenders."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

RATIO: Final = "x"
_FEW: Final = 4  # with fewer samples quartiles say less than the extremes


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """Samples of one quantity.

    Attributes
    ----------
    name : str
        Tells it from all others of its suite, and stays the same from run to run.
    unit : str
        ``frames/s``, ``ns/frame``, ``us``, ``%`` ...; ``x`` is a ratio, ours to ``against``.
    samples : tuple of float
        In the order taken, at least one.
    better : str
        ``higher``, ``lower``, or ``neither`` for what only describes the run.
    goal : float or None
        To be reached by the median.
    against : str
        The peer of a ratio.
    case : dict
        What it was measured at, for tables and curves: ``{"bytes": 64, "path": "afxdp"}``.
    """

    name: str
    unit: str
    samples: tuple[float, ...]
    better: str = "higher"
    goal: float | None = None
    against: str = ""
    case: Mapping[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def spread(self) -> tuple[float, float]:
        """The quartiles; of few samples the least and the greatest."""
        if len(self.samples) < _FEW:
            return min(self.samples), max(self.samples)
        low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return low, high

    @property
    def is_met(self) -> bool | None:
        """Whether the median reaches the goal; None without one."""
        if self.goal is None:
            return None
        return self.median <= self.goal if self.better == "lower" else self.median >= self.goal

    def as_dict(self) -> dict[str, Any]:
        """Return it as the result files have it."""
        return {
            "name": self.name,
            "unit": self.unit,
            "better": self.better,
            "median": _short(self.median),
            "spread": [_short(each) for each in self.spread],
            "goal": self.goal,
            "against": self.against,
            "case": dict(self.case),
            "samples": [_short(each) for each in self.samples],
        }


def from_dict(fields: Mapping[str, Any]) -> Figure:
    """Return what ``as_dict`` made a dict of."""
    return Figure(
        name=fields["name"],
        unit=fields["unit"],
        samples=tuple(fields["samples"]),
        better=fields["better"],
        goal=fields["goal"],
        against=fields["against"],
        case=fields["case"],
    )


def ratio(
    name: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    *,
    against: str,
    goal: float | None = None,
    better: str = "higher",
    case: Mapping[str, Any] | None = None,
) -> Figure:
    """Return ours / theirs, round by round: samples of one round are of the same minute."""
    samples = tuple(own / peer for own, peer in zip(ours, theirs, strict=True) if peer)
    return Figure(
        name=name, unit=RATIO, samples=samples or (float("inf"),), better=better, goal=goal,
        against=against, case=case or {},
    )  # fmt: skip


def _short(value: float) -> float:
    """Five digits are more than any bench here is good for."""
    return float(f"{value:.5g}")
