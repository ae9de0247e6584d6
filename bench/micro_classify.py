"""Time to find the rule of one packet, by the number of rules and of masks: ours against plain C.

Question: does a look-up stay cheap up to a million rules, and does it fit the 67 ns that a packet
          of 64 bytes has at 10 Gbit/s?
Method:   rules fix the link and all five fields of a UDP packet; each packet hits one, chosen at
          random among all.  Of several masks each has its share of the rules, under a source
          prefix a bit shorter than the one before; rules rank that way too, so that half of the
          masks are tried for a packet.  ``look-up`` is from keys to ranks, ``frame to rule`` from
          frames of 64 bytes to ranks, in bursts of a worker's default size.  The packets of a call
          are written just before it, as a NIC would, so they are in the cache; what they hit is
          only if the table is small.
          The reference (hash_reference.c) parses and looks up the same packets one at a time:
          an open hash table per mask, half full, whole keys, huge pages.  Every rank is checked.
          ``growth`` is our time at the most rules against that at one.
"""

import ctypes
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bench.case import Case
from bench.reference import compiled, declare
from bench.rounds import Work
from l2fwd._classify import Classifier
from l2fwd.abi import VERDICTS
from l2fwd.rule_keys import key_masks
from l2fwd.rule_table import ACTION
from l2fwd.rules import parse_rule

GOAL: Final = 1.0
GROWTH_GOAL: Final = 3.0
# By level, the numbers of rules under one mask; the masks of as many rules below.
_RULE_COUNTS: Final = {"tiny": (1, 100), "quick": (1, 100, 10_000)}
_MASK_COUNTS: Final = {"tiny": (8,), "quick": (32,)}
_ALL_RULE_COUNTS: Final = (1, 100, 10_000, 1_000_000)
_ALL_MASK_COUNTS: Final = (1, 8, 32)
_RULES_OF_MASKS: Final = 1000  # over all masks together
_PACKETS_PER_CALL: Final = 4096
_FRAME_BYTES: Final = 64
_LINKS: Final = {"e": 3}
_RULE: Final = "in e proto udp src {} dst 10.0.0.2 sport 7 dport 9 -> out e"
_FRAME_HEAD: Final = bytes.fromhex(
    "02000000000a 02000000000b 0800 4500002e 00000000 4011"
)  # fmt: skip
_SRC, _DST, _PORTS = 32, 48, 24  # offsets in rule_keys.KEY
_FRAME_SRC, _FRAME_DST, _FRAME_PORTS = 26, 30, 34

_SEEDS: Final = itertools.count()

Bytes = NDArray[np.uint8]
Ranks = NDArray[np.uint32]
Integers = NDArray[np.int64]


def fields(rules: Integers) -> tuple[Bytes, Bytes, Bytes]:
    """Return source, destination and ports, four bytes each, that rules of these ranks name."""
    numbers = (rules.astype(np.uint64) + 1) * np.uint64(0x9E3779B1) & np.uint64(0xFFFFFFFF)
    dst = numbers.astype(">u4").view(np.uint8).reshape(-1, 4)
    return np.bitwise_xor(dst[:, ::-1], np.uint8(0x5A)), dst, dst[:, [1, 3, 2, 0]]


class Packets:
    """What one call gets: packets that some rules take, as keys and as frames."""

    def __init__(self) -> None:
        self.frames = np.zeros((_PACKETS_PER_CALL, _FRAME_BYTES), np.uint8)
        self.frames[:, : len(_FRAME_HEAD)] = np.frombuffer(_FRAME_HEAD, np.uint8)
        key = Classifier([], {}).key(self.frames[0].tobytes(), _LINKS["e"])
        self.keys = np.tile(np.frombuffer(key or b"", np.uint8), (_PACKETS_PER_CALL, 1))

    def write(self, rules: Integers) -> None:
        """Make packet i one that ``rules[i]`` takes."""
        src, dst, ports = fields(rules)
        for rows, offsets in (
            (self.keys, (_SRC, _DST, _PORTS)),
            (self.frames, (_FRAME_SRC, _FRAME_DST, _FRAME_PORTS)),
        ):
            for offset, value in zip(offsets, (src, dst, ports), strict=True):
                rows[:, offset : offset + 4] = value


def masked_keys(place: int, ranks: Integers) -> tuple[bytes, Bytes]:
    """Return the mask whose source prefix is ``place`` bits short, and the keys of its rules."""
    src = f"0.0.0.0/{32 - place}"
    ((mask, key),) = key_masks(parse_rule(_RULE.format(src)), _LINKS)
    keys = np.tile(np.frombuffer(key, np.uint8), (len(ranks), 1))
    for offset, value in zip((_SRC, _DST, _PORTS), fields(ranks), strict=True):
        keys[:, offset : offset + 4] = value
    return mask, keys & np.frombuffer(mask, np.uint8)


class Rules:
    """One table, ours and the reference's: ranks go up from 0, mask by mask."""

    def __init__(self, library: ctypes.CDLL, count: int, mask_count: int) -> None:
        self.count, self.mask_count = count, mask_count
        self._library = library
        self._reference = library.reference_open(mask_count)
        masks: list[tuple[bytes, int]] = []
        entries: dict[tuple[int, bytes], bytes] = {}
        for place, ranks in enumerate(np.array_split(np.arange(count), mask_count)):
            mask, keys = masked_keys(place, ranks)
            best_rank = int(ranks[0])
            library.reference_add(self._reference, mask, keys.ctypes.data, len(ranks), best_rank)
            masks.append((mask, best_rank))
            for rank, key in zip(ranks.tolist(), keys, strict=True):
                action = ACTION.pack(rank, rank, 4, VERDICTS["out"], 0, 0, bytes(6), bytes(6))
                entries[place, key.tobytes()] = action
        self._ours = Classifier(masks, entries)

    def our_keys(self, packets: Packets, ranks: Ranks) -> None:
        self._ours.classify(packets.keys, ranks)

    def our_frames(self, packets: Packets, ranks: Ranks) -> None:
        self._ours.classify_frames(packets.frames, _LINKS["e"], ranks)

    def reference_keys(self, packets: Packets, ranks: Ranks) -> None:
        self._library.reference_keys(
            self._reference, packets.keys.ctypes.data, len(packets.keys), ranks.ctypes.data
        )

    def reference_frames(self, packets: Packets, ranks: Ranks) -> None:
        self._library.reference_frames(
            self._reference, packets.frames.ctypes.data, _FRAME_BYTES, len(packets.frames),
            _LINKS["e"], ranks.ctypes.data,
        )  # fmt: skip

    def __del__(self) -> None:
        self._library.reference_close(self._reference)


LookUp = Callable[[Rules, Packets, Ranks], None]
FindRules = Callable[[int, int], Rules]  # by numbers of rules and of masks


def looking_up(look_up: Callable[[Packets, Ranks], None], rule_count: int) -> Work:
    """Return work: look up packets that hit rules at random, others each time it is made."""
    packets, ranks = Packets(), np.zeros(_PACKETS_PER_CALL, np.uint32)
    rng = np.random.default_rng(next(_SEEDS))

    def work() -> tuple[float, int]:
        expected = rng.integers(rule_count, size=_PACKETS_PER_CALL)
        packets.write(expected)
        began = time.thread_time_ns()
        look_up(packets, ranks)
        spent = time.thread_time_ns() - began
        assert np.array_equal(ranks, expected), "the wrong rules: the result means nothing"
        return spent, _PACKETS_PER_CALL

    return work


@contextmanager
def library() -> Iterator[ctypes.CDLL]:
    """Compile and load the reference."""
    with compiled("hash_reference") as loaded:
        pointer, number = ctypes.c_void_p, ctypes.c_uint32
        declare(loaded, "reference_open", pointer, number)
        declare(loaded, "reference_close", None, pointer)
        declare(loaded, "reference_add", None, *[pointer] * 3, number, number)
        declare(loaded, "reference_keys", None, pointer, pointer, number, pointer)
        declare(loaded, "reference_frames", None, pointer, pointer, *[number] * 3, pointer)
        yield loaded


@contextmanager
def cases(level: str) -> Iterator[list[Case]]:
    """Numbers of rules under one mask, numbers of masks, and the growth."""
    rule_counts = _RULE_COUNTS.get(level, _ALL_RULE_COUNTS)
    mask_counts = _MASK_COUNTS.get(level, _ALL_MASK_COUNTS)
    shapes = [(count, 1) for count in rule_counts]
    shapes += [(_RULES_OF_MASKS, count) for count in mask_counts]
    with library() as loaded:
        find = cache(partial(Rules, loaded))  # a million rules take seconds to make
        yield [
            *(case for shape in shapes for case in _against_reference(find, *shape)),
            *_growth(find, rule_counts[0], rule_counts[-1]),
        ]


def _make(find: FindRules, count: int, mask_count: int, look_up: LookUp) -> Work:
    return looking_up(partial(look_up, find(count, mask_count)), count)


def _against_reference(find: FindRules, count: int, mask_count: int) -> Iterator[Case]:
    for what, ours, reference in (
        ("look-up", Rules.our_keys, Rules.reference_keys),
        ("frame to rule", Rules.our_frames, Rules.reference_frames),
    ):
        yield Case(
            name=f"{what}, rules {count}, masks {mask_count}",
            contenders={
                "ours": partial(_make, find, count, mask_count, ours),
                "C": partial(_make, find, count, mask_count, reference),
            },
            reference="C",
            goals={"ours": GOAL},
            values={"rules": count, "masks": mask_count},
        )


def _growth(find: FindRules, few: int, many: int) -> Iterator[Case]:
    for what, look_up in (("look-up", Rules.our_keys), ("frame to rule", Rules.our_frames)):
        yield Case(
            name=f"growth, {what}",
            contenders={
                f"rules {count}": partial(_make, find, count, 1, look_up) for count in (many, few)
            },
            reference=f"rules {few}",
            goals={f"rules {many}": GROWTH_GOAL},
        )
