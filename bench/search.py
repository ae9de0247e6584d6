"""The highest value that passes, found by halving: of a rate, of a burst."""

from collections.abc import Callable


def highest(
    passes: Callable[[float], bool],
    low: float,
    high: float,
    *,
    resolution: float,
    least: float = 1.0,
) -> float:
    """Return the highest value tried that passes, to ``resolution`` of itself.

    Parameters
    ----------
    passes : callable
        Asked of a value.  It need not say the same each time: only ``low``, and values that it
        said yes to, are returned.
    low, high : float
        ``low`` is taken to pass, unasked; ``high`` is asked first.
    resolution : float
        In (0, 1): of the lowest value known to fail.
    least : float
        Nothing below is looked for.
    """
    if high <= low or passes(high):
        return max(low, high)
    while high - low > resolution * high and high > least:
        middle = (low + high) / 2
        if passes(middle):
            low = middle
        else:
            high = middle
    return low
