"""Whether two sets of samples could well be of one kind: the test of Mann and Whitney.

It looks at ranks alone, so one wild sample counts no more than one that is a little off.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Final

_EXACT: Final = 40  # samples in all; above that the normal distribution is as good


def p_value(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return how likely ranks as far apart as these are by chance, two-sided.

    Ties are counted in full: the distribution is that of these very ranks.

    >>> round(p_value([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]), 6) == round(2 / 252, 6)
    True
    >>> p_value([1, 1], [1, 1])
    1.0
    """
    ranks = doubled_ranks([*ours, *theirs])
    rank_sum, count = sum(ranks[: len(ours)]), len(ranks)
    expected = len(ours) * (count + 1)  # of doubled ranks
    distance = abs(rank_sum - expected)
    if count > _EXACT:
        return _normal(ranks, len(ours), distance)
    ways = _ways(ranks, len(ours))
    far = sum(number for total, number in ways.items() if abs(total - expected) >= distance)
    return far / math.comb(count, len(ours))


def least_p_value(ours: int, theirs: int) -> float:
    """Return the smallest that so many samples can give: without any overlap."""
    return 2 / math.comb(ours + theirs, ours)


def doubled_ranks(samples: Sequence[float]) -> list[int]:
    """Return twice the rank of each sample; equal ones share the middle of theirs.

    >>> doubled_ranks([30, 10, 10, 20])
    [8, 3, 3, 6]
    """
    order = sorted(samples)
    first = {value: place for place, value in reversed(list(enumerate(order, 1)))}
    last = {value: place for place, value in enumerate(order, 1)}
    return [first[value] + last[value] for value in samples]


def _ways(ranks: Sequence[int], chosen: int) -> dict[int, int]:
    """Return in how many ways ``chosen`` of the ranks add up to each sum."""
    ways: list[dict[int, int]] = [{0: 1}, *({} for _ in range(chosen))]
    for rank in ranks:
        for taken in range(chosen, 0, -1):  # downwards: each rank is taken once
            for total, number in ways[taken - 1].items():
                ways[taken][total + rank] = ways[taken].get(total + rank, 0) + number
    return ways[chosen]


def _normal(ranks: Sequence[int], ours: int, distance: float) -> float:
    """Return the same by the normal distribution, with the variance of the ranks as they are."""
    count = len(ranks)
    variance = ours * (count - ours) / (count - 1) * statistics.pvariance(ranks)
    if not variance:
        return 1.0
    # A doubled rank sum goes in steps of two: half a step is 1.
    return math.erfc(max(0.0, distance - 1) / math.sqrt(2 * variance))
