"""Ages of packets, in the buckets of kern/lab_sink.bpf.c: sixteen to a power of two."""

from collections.abc import Sequence
from typing import Final

_SUB: Final = 16
_FIRST_POWER: Final = 8
_LAST_POWER: Final = 34
BUCKETS: Final = (_LAST_POWER - _FIRST_POWER) * _SUB + 2


def upper_ns(bucket: int) -> float:
    """Return the age that all packets of a bucket are younger than."""
    if bucket == 0:
        return float(1 << _FIRST_POWER)
    if bucket == BUCKETS - 1:
        return float("inf")
    octave, part = divmod(bucket - 1, _SUB)
    power = _FIRST_POWER + octave
    return float((_SUB + part + 1) << (power - 4))


class Latency:
    """How old packets were.

    Parameters
    ----------
    counts : sequence of int
        Packets by bucket.
    total_ns : int
        Sum of all ages.
    """

    def __init__(self, counts: Sequence[int], total_ns: int) -> None:
        self.counts = tuple(counts)
        self._total_ns = total_ns

    def __sub__(self, before: "Latency") -> "Latency":
        counts = [now - then for now, then in zip(self.counts, before.counts, strict=True)]
        return Latency(counts, self._total_ns - before._total_ns)

    @property
    def packets(self) -> int:
        return sum(self.counts)

    @property
    def mean_us(self) -> float:
        return self._total_ns / self.packets / 1e3 if self.packets else float("nan")

    def percentile_us(self, percent: float) -> float:
        """Return the age that ``percent`` of the packets are younger than, to 6 % of it."""
        wanted = self.packets * percent / 100
        passed = 0
        for bucket, count in enumerate(self.counts):
            passed += count
            if count and passed >= wanted:
                return upper_ns(bucket) / 1e3
        return float("nan")

    def histogram(self) -> list[tuple[float, int]]:
        """Return upper bounds in us, and packets, of the buckets that have some."""
        return [(upper_ns(i) / 1e3, count) for i, count in enumerate(self.counts) if count]
