"""Contenders by turns, so that all of a round meet the same minute of the machine."""

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from bench.bed import Sample, wait_until_quiet
from bench.options import is_patient
from bench.record import Record
from l2fwd.errors import L2fwdError

_TRIES: Final = 3
_QUIET_SECONDS: Final = 3.0
_SHORT_WAIT_SECONDS: Final = 0.5  # where no bed is made that takes longer than that
_MOST_WAITING: Final = 5.0  # of a sample's time: work may prepare itself, untimed

AnySample = TypeVar("AnySample")
Samples = dict[str, list[Sample]]
Work = Callable[[], tuple[float, int]]  # does some; returns the ns it took, and how often it did it


def take_turns(
    contenders: Mapping[str, Callable[[], AnySample]],
    rounds: int,
    *,
    quiet: bool = True,
    failed: Callable[[str, Exception], None] | None = None,
    before: Callable[[], object] | None = None,
) -> dict[str, list[AnySample]]:
    """Sample every contender once a round; who goes first moves on by one each round.

    A sample that something else disturbed is taken again, twice at most; the least disturbed
    machine there is then has to do.

    Parameters
    ----------
    contenders : mapping of str to callable
    rounds : int
    quiet : bool
        Take disturbed samples again, and wait some seconds for a quiet machine before each round.
    failed : callable, optional
        Told of a contender that failed, which then is out; the others go on.  Without it the
        error is the caller's.
    before : callable, optional
        Called before each round in place of that wait.
    """
    found: dict[str, list[AnySample]] = {name: [] for name in contenders}
    wait = before or (lambda: quiet and wait_until_quiet(_QUIET_SECONDS))
    for turn in range(rounds):
        wait()
        names = list(found)
        shift = turn % max(1, len(names))
        for name in names[shift:] + names[:shift]:
            try:
                found[name].append(undisturbed(contenders[name], _TRIES if quiet else 1))
            except (L2fwdError, OSError) as error:
                if failed is None:
                    raise
                failed(name, error)
                del found[name]
    return found


def undisturbed(take: Callable[[], AnySample], tries: int) -> AnySample:
    """Take a sample; again if it was disturbed, ``tries`` in all."""
    sample = take()
    while getattr(sample, "is_disturbed", False) and tries > 1:
        tries -= 1
        sample = take()
    return sample


def rates(samples: list[Sample]) -> tuple[float, ...]:
    """Return the frames a second delivered."""
    return tuple(each.delivered for each in samples)


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

    def measure(
        self, contenders: Mapping[str, Callable[[], AnySample]]
    ) -> dict[str, list[AnySample]]:
        """Return the samples of each contender, in the order of the rounds."""
        return take_turns(contenders, self.count, quiet=self._is_patient, before=self._look)

    def _look(self) -> None:
        self._taken += 1
        self._noisy += self._is_patient and not wait_until_quiet(_SHORT_WAIT_SECONDS)

    def note(self, record: Record) -> None:
        """Tell how many rounds were noisy."""
        if self._noisy:
            record.note(
                f"{self._noisy} of {self._taken} rounds: something else used the CPUs meanwhile"
            )


def rounds_of(options: argparse.Namespace) -> Rounds:
    """Return what the options ask for; tiny and quick wait for nobody."""
    return Rounds(options.rounds, options.seconds, is_patient=is_patient(options))


def ns_each(work: Work, seconds: float) -> float:
    """Repeat ``work`` for so long, by its own account; return ns for one of what it does."""
    spent, done = work()
    deadline = time.monotonic() + _MOST_WAITING * seconds
    while spent < seconds * 1e9 and time.monotonic() < deadline:
        more_spent, more_done = work()
        spent, done = spent + more_spent, done + more_done
    return spent / done
