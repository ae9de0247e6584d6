"""Contenders by turns: each once a round, whoever begins is another every round."""

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from bench import bed
from bench.record import Record

_QUIET_SECONDS: Final = 0.5  # to wait for other processes to leave the CPUs alone
_MOST_WAITING: Final = 5.0  # of a sample's time: work may prepare itself, untimed

Sample = TypeVar("Sample")
Work = Callable[[], tuple[float, int]]  # does some; returns the ns it took, and how often it did it


class Rounds:
    """How many rounds, how long a sample; and how many were taken while others were busy.

    Parameters
    ----------
    count : int
    seconds : float
        Of a sample.
    is_patient : bool
        Wait a moment before each round until nothing else uses the CPUs.
    """

    def __init__(self, count: int, seconds: float, *, is_patient: bool) -> None:
        self.count, self.seconds = count, seconds
        self._is_patient = is_patient
        self._taken = self._noisy = 0

    def measure(self, contenders: Mapping[str, Callable[[], Sample]]) -> dict[str, list[Sample]]:
        """Return the samples of each contender, in the order of the rounds."""
        names = list(contenders)
        samples: dict[str, list[Sample]] = {name: [] for name in names}
        for i in range(self.count):
            self._taken += 1
            self._noisy += self._is_patient and not bed.wait_until_quiet(_QUIET_SECONDS)
            shift = i % len(names)
            for name in names[shift:] + names[:shift]:
                samples[name].append(contenders[name]())
        return samples

    def note(self, record: Record) -> None:
        """Tell how many rounds were noisy."""
        if self._noisy:
            record.note(
                f"{self._noisy} of {self._taken} rounds: something else used the CPUs meanwhile"
            )


def rounds_of(options: argparse.Namespace) -> Rounds:
    """Return what the options ask for; at tiny nothing has a meaning, so nothing is waited for."""
    return Rounds(options.rounds, options.seconds, is_patient=options.level != "tiny")


def ns_each(work: Work, seconds: float) -> float:
    """Repeat ``work`` for so long, by its own account; return ns for one of what it does."""
    spent, done = work()
    deadline = time.monotonic() + _MOST_WAITING * seconds
    while spent < seconds * 1e9 and time.monotonic() < deadline:
        more_spent, more_done = work()
        spent, done = spent + more_spent, done + more_done
    return spent / done
