"""Contenders by turns, so that all of a round meet the same minute of the machine."""

from collections.abc import Callable, Mapping
from typing import Final

from bench.bed import Sample, wait_until_quiet
from l2fwd.errors import L2fwdError

_TRIES: Final = 3
_QUIET_SECONDS: Final = 3.0

Samples = dict[str, list[Sample]]


def take_turns(
    contenders: Mapping[str, Callable[[], Sample]],
    rounds: int,
    *,
    quiet: bool = True,
    failed: Callable[[str, L2fwdError], None] | None = None,
) -> Samples:
    """Sample every contender once a round; who goes first moves on by one each round.

    A sample that something else disturbed is taken again, twice at most; the least disturbed
    machine there is then has to do.

    Parameters
    ----------
    contenders : mapping of str to callable
    rounds : int
    quiet : bool
        Wait some seconds for a quiet machine before each round.
    failed : callable, optional
        Told of a contender that raises, which has no samples and no turns then; without it the
        error is the caller's.
    """
    found: Samples = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(rounds):
        if quiet:
            wait_until_quiet(_QUIET_SECONDS)
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            if name not in found:
                continue
            try:
                found[name].append(undisturbed(contenders[name], _TRIES if quiet else 1))
            except L2fwdError as error:
                if failed is None:
                    raise
                del found[name]
                failed(name, error)
    return found


def undisturbed(take: Callable[[], Sample], tries: int) -> Sample:
    """Take a sample; again if it was disturbed, ``tries`` in all."""
    sample = take()
    while sample.is_disturbed and tries > 1:
        tries -= 1
        sample = take()
    return sample


def rates(samples: list[Sample]) -> tuple[float, ...]:
    """Return the frames a second delivered."""
    return tuple(each.delivered for each in samples)
