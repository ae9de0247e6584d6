"""What became of numbered packets: the findings of all workers that received them, together.

>>> seen = Seen(streams={7: (0, 9, 8, 1, 0)}, latency=[0] * 20 + [8], latency_max=20)
>>> verdict = judge([seen])
>>> verdict["packets"], verdict["lost"], verdict["reordered"], has_passed(verdict)
(8, 2, 1, False)
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

_SUB_BUCKETS: Final = 32  # to a power of two; SUB_BITS in _verifier.pyx
_PERCENTILES: Final = {"p50": 0.5, "p99": 0.99, "p999": 0.999}
_FAULTS: Final = ("lost", "reordered", "duplicated", "corrupted")

StreamSeen = tuple[int, int, int, int, int]
"""Lowest and highest number, packets counted once, reordered, duplicated."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one worker found; see ``VerifierState`` in ``_verifier.pxd``."""

    foreign: int = 0
    corrupted: int = 0
    latency_max: int = 0
    latency: Sequence[int] = ()
    streams: Mapping[int, StreamSeen] = field(default_factory=dict)


def judge(found: Iterable[Seen]) -> dict[str, Any]:
    """Add up what the workers found.

    Returns
    -------
    dict
        ``packets``: intact, each counted once.  ``foreign``: not a generator's.  ``lost``:
        numbers between the lowest and the highest of a stream of which nothing came, not even
        corrupted.  ``reordered``: received after one that was sent later, on the same queue.
        ``duplicated``: received before, or more than 65,535 numbers late.  ``corrupted``.
        ``streams``: senders.  ``missed``: numbers before the first that was seen.
        ``latency_us``: ``p50``, ``p99``, ``p999``, ``max``; None if no packet has a time.
    """
    found = list(found)
    streams = _merged(found)
    corrupted = sum(seen.corrupted for seen in found)
    gaps = sum(newest + 1 - first - packets for first, newest, packets, *_ in streams.values())
    return {
        "packets": sum(packets for _, _, packets, *_ in streams.values()),
        "foreign": sum(seen.foreign for seen in found),
        "lost": max(0, gaps - corrupted),
        "reordered": sum(stream[3] for stream in streams.values()),
        "duplicated": sum(stream[4] for stream in streams.values()),
        "corrupted": corrupted,
        "streams": len(streams),
        "missed": sum(stream[0] for stream in streams.values()),
        "latency_us": _latency(found),
    }


def has_passed(verdict: Mapping[str, Any]) -> bool:
    """Tell whether packets came, and every one intact, once and in order."""
    return bool(verdict["packets"]) and not any(verdict[fault] for fault in _FAULTS)


def verdict_text(verdict: Mapping[str, Any]) -> str:
    """Say it in a line."""
    latency = verdict["latency_us"]
    names = {"p999": "p99.9"}
    times = ", ".join(
        f"{names.get(name, name)} {value:,.1f}" for name, value in (latency or {}).items()
    )
    missed = f"; {verdict['missed']:,} were sent before the first" if verdict["missed"] else ""
    faults = ", ".join(f"{fault} {verdict[fault]:,}" for fault in _FAULTS)
    return (
        f"verified {verdict['packets']:,} packets of {verdict['streams']} senders: {faults}; "
        f"foreign {verdict['foreign']:,}{missed}; latency in us: {times or '-'}"
    )


def _merged(found: Iterable[Seen]) -> dict[int, StreamSeen]:
    """Join what several queues received of a stream; no packet comes to two of them."""
    merged: dict[int, StreamSeen] = {}
    for seen in found:
        for number, stream in seen.streams.items():
            if not stream[2]:
                continue
            before = merged.get(number, (stream[0], stream[1], 0, 0, 0))
            counts = (a + b for a, b in zip(before[2:], stream[2:], strict=True))
            packets, reordered, duplicated = counts
            first, newest = min(before[0], stream[0]), max(before[1], stream[1])
            merged[number] = (first, newest, packets, reordered, duplicated)
    return merged


def _latency(found: Sequence[Seen]) -> dict[str, float] | None:
    counts = [sum(column) for column in zip(*(s.latency for s in found if s.latency), strict=True)]
    most = max((seen.latency_max for seen in found), default=0)
    total = sum(counts)
    if not total:
        return None
    found_ns = {name: min(_quantile(counts, share), most) for name, share in _PERCENTILES.items()}
    return {name: value / 1000 for name, value in (found_ns | {"max": most}).items()}


def _quantile(counts: Sequence[int], share: float) -> int:
    """Return the upper end of the bucket below which that share of all lies, in ns."""
    left = share * sum(counts)
    for bucket, count in enumerate(counts):
        left -= count
        if count and left <= 0:
            return _last_of(bucket)
    return _last_of(len(counts) - 1)


def _last_of(bucket: int) -> int:
    """Return the largest value of a bucket, which is its width at most above any in it."""
    shift = max(0, bucket // _SUB_BUCKETS - 1)
    return ((bucket - shift * _SUB_BUCKETS + 1) << shift) - 1
