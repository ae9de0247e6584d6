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
    failed: Callable[[str, Exception], None] | None = None,
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
        Told of a contender that failed, which then is out; the others go on.  Without it the
        error is the caller's.
    """
    found: Samples = {name: [] for name in contenders}
    for turn in range(rounds):
        if quiet:
            wait_until_quiet(_QUIET_SECONDS)
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
