"""What the parts of RFC 2544 share: how long they take, and how their figures are called."""

import argparse
from dataclasses import dataclass
from typing import Any, Final

from bench.bed import BenchBed, Running
from bench.figures import Figure
from bench.traffic import IMIX, Load
from bench.trials import Trials


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is done.

    Attributes
    ----------
    rounds : int
        Searches, bursts, recoveries, restarts.
    repeats : int
        Latency trials at each load.
    seconds, settle_seconds : float
        Of a trial, and of the silence after it.
    resolution : float
        Of a search, in (0, 1).
    tries : int
        Of a disturbed trial.
    soak_seconds : float
        Of the long trial at 90 % of the no-drop rate.
    quiet_seconds : float
        To wait at most for a quiet machine before a disturbed trial is taken again.
    """

    rounds: int
    repeats: int
    seconds: float
    settle_seconds: float
    resolution: float
    tries: int
    soak_seconds: float
    quiet_seconds: float

    def trials(self, bed: BenchBed, running: Running) -> Trials:
        return Trials(
            bed, running, self.seconds, self.settle_seconds, self.tries, self.quiet_seconds
        )


_QUIET_SECONDS: Final = {"tiny": 0.0, "quick": 0.5, "normal": 3.0, "full": 10.0}


def plan_of(options: argparse.Namespace) -> Plan:
    return Plan(
        rounds=options.rounds, repeats=options.repeats, seconds=options.seconds,
        settle_seconds=options.settle, resolution=options.resolution, tries=options.tries,
        soak_seconds=options.soak_seconds, quiet_seconds=_QUIET_SECONDS[options.level],
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """An engine at a frame size.

    Attributes
    ----------
    engine : str
    size : int or str
        Bytes in memory, without check sequence; or ``imix``.  0: figures without a size.
    """

    engine: str
    size: int | str = 0

    @property
    def name(self) -> str:
        return f"{self.engine} {self.size}" if self.size else self.engine

    def load(self, packet: str) -> Load:
        if isinstance(self.size, str):
            return Load(size=max(IMIX), imix=True, packet=packet)
        return Load(size=self.size or Load().size, packet=packet)

    def figure(
        self,
        what: str,
        unit: str,
        samples: list[float],
        *,
        better: str = "higher",
        goal: float | None = None,
        **case: Any,
    ) -> Figure:
        own = {"engine": self.engine} | ({"bytes": self.size} if self.size else {})
        return Figure(
            name=f"{self.name}: {what}", unit=unit, samples=tuple(samples), better=better,
            goal=goal, case=own | case,
        )  # fmt: skip
