"""Time to find the rule of one packet, by the number of rules and of masks: ours against plain C.

Question: does a look-up stay cheap up to a million rules, and does it fit the 67 ns that a packet
          of 64 bytes has at 10 Gbit/s?
Method:   rules fix the link and all five fields of a UDP packet; each packet hits one, chosen at
          random among all.  Of several masks each has its share of the rules, under a source
          prefix a bit shorter than the one before; rules rank that way too, so that half of the
          masks are tried for a packet.  ``look_up`` is from keys to ranks, ``packet`` from frames
          of 64 bytes to ranks, in bursts of a worker's default size.  The packets of a call are
          written just before it, as a NIC would, so they are in the cache; what they hit is only
          if the table is small.
          The reference (hash_reference.c) parses and looks up the same packets one at a time:
          an open hash table per mask, half full, whole keys, huge pages, compiled by cc with the
          flags setuptools gives the extensions.
          Every rank is checked.  Measurements are interleaved, and who goes first alternates.
Prints:   with --json one object last; ``ratio`` is ours / reference, median of the pairs, lower is
          better; ``spread`` its quartiles; ns are per packet.  ``growth`` is the time at the most
          rules over the time at one, goal 3 at most; ``hot_ns`` is ``packet`` at 100 rules, goal
          40 at most.

    python bench/bench_classify.py [--json] [--tiny]
    pytest -p benchmark bench/bench_classify.py
"""

import argparse
import ctypes
import json
import os
import shlex
import statistics
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from numpy.typing import NDArray

from l2fwd import _rings
from l2fwd._classify import Classifier
from l2fwd.rule_keys import key_masks
from l2fwd.rule_table import ACTION, VERDICTS
from l2fwd.rules import parse_rule

NAME: Final = "classify_ns_per_packet"
GROWTH_GOAL: Final = 3.0
HOT_NS_GOAL: Final = 40.0
RULE_COUNTS: Final = (1, 100, 10_000, 1_000_000)
MASK_COUNTS: Final = (1, 8, 32)
RULES_OF_MASKS: Final = 1000  # over all masks together
HOT_RULES: Final = 100
PAIRS: Final = 11
PACKETS: Final = 1 << 20  # per measurement
PACKETS_PER_CALL: Final = 4096
FRAME_BYTES: Final = 64
LINKS: Final = {"e": 3}
RULE: Final = "in e proto udp src {} dst 10.0.0.2 sport 7 dport 9 -> out e"
FRAME_HEAD: Final = bytes.fromhex("02000000000a 02000000000b 0800 4500002e 00000000 4011")
SRC, DST, PORTS = 32, 48, 24  # offsets in rule_keys.KEY
FRAME_SRC, FRAME_DST, FRAME_PORTS = 26, 30, 34

Bytes = NDArray[np.uint8]
Ranks = NDArray[np.uint32]
Integers = NDArray[np.int64]
Work = Callable[["Packets", Ranks, bool], None]  # the last: ours, or the reference's


def compile_reference(folder: str) -> ctypes.CDLL:
    """Build hash_reference.c as setuptools builds the extensions, and load it."""
    target = f"{folder}/hash_reference.so"
    flags = shlex.split(sysconfig.get_config_var("CFLAGS") or "")
    subprocess.run(
        [os.environ.get("CC", "cc"), *flags, "-O3", "-DNDEBUG", "-Wall", "-Wextra", "-fPIC",
         "-shared", str(Path(__file__).with_name("hash_reference.c")), "-o", target],
        check=True,
    )  # fmt: skip
    library = ctypes.CDLL(target)
    pointer, number = ctypes.c_void_p, ctypes.c_uint32
    library.reference_open.restype = pointer
    library.reference_open.argtypes = [number]
    library.reference_close.argtypes = [pointer]
    library.reference_add.argtypes = [pointer, pointer, pointer, number, number]
    library.reference_keys.argtypes = [pointer, pointer, number, pointer]
    library.reference_frames.argtypes = [pointer, pointer, number, number, number, pointer]
    return library


@contextmanager
def reference_library() -> Iterator[ctypes.CDLL]:
    with tempfile.TemporaryDirectory() as folder:
        yield compile_reference(folder)


def fields(rules: Integers) -> tuple[Bytes, Bytes, Bytes]:
    """Return source, destination and ports, four bytes each, that rules of these ranks name."""
    numbers = (rules.astype(np.uint64) + 1) * np.uint64(0x9E3779B1) & np.uint64(0xFFFFFFFF)
    dst = numbers.astype(">u4").view(np.uint8).reshape(-1, 4)
    return np.bitwise_xor(dst[:, ::-1], np.uint8(0x5A)), dst, dst[:, [1, 3, 2, 0]]


class Packets:
    """What one call gets: packets that some rules take, as keys and as frames."""

    def __init__(self) -> None:
        self.frames = np.zeros((PACKETS_PER_CALL, FRAME_BYTES), np.uint8)
        self.frames[:, : len(FRAME_HEAD)] = np.frombuffer(FRAME_HEAD, np.uint8)
        key = Classifier([], {}).key(self.frames[0].tobytes(), LINKS["e"])
        self.keys = np.tile(np.frombuffer(key or b"", np.uint8), (PACKETS_PER_CALL, 1))

    def write(self, rules: Integers) -> None:
        """Make packet i one that ``rules[i]`` takes."""
        src, dst, ports = fields(rules)
        for rows, offsets in (
            (self.keys, (SRC, DST, PORTS)),
            (self.frames, (FRAME_SRC, FRAME_DST, FRAME_PORTS)),
        ):
            for offset, value in zip(offsets, (src, dst, ports), strict=True):
                rows[:, offset : offset + 4] = value


def masked_keys(place: int, ranks: Integers) -> tuple[bytes, Bytes]:
    """Return the mask whose source prefix is ``place`` bits short, and the keys of its rules."""
    src = f"0.0.0.0/{32 - place}"
    ((mask, key),) = key_masks(parse_rule(RULE.format(src)), LINKS)
    keys = np.tile(np.frombuffer(key, np.uint8), (len(ranks), 1))
    for offset, value in zip((SRC, DST, PORTS), fields(ranks), strict=True):
        keys[:, offset : offset + 4] = value
    return mask, keys & np.frombuffer(mask, np.uint8)


class Rules:
    """One table, ours and the reference's: ranks go up from 0, mask by mask."""

    def __init__(self, library: ctypes.CDLL, count: int, mask_count: int) -> None:
        self.library = library
        self.count = count
        self.reference = library.reference_open(mask_count)
        masks: list[tuple[bytes, int]] = []
        entries: dict[tuple[int, bytes], bytes] = {}
        for place, ranks in enumerate(np.array_split(np.arange(count), mask_count)):
            mask, keys = masked_keys(place, ranks)
            best_rank = int(ranks[0])
            library.reference_add(self.reference, mask, keys.ctypes.data, len(ranks), best_rank)
            masks.append((mask, best_rank))
            for rank, key in zip(ranks.tolist(), keys, strict=True):
                action = ACTION.pack(rank, rank, 4, VERDICTS["out"], 0, 0, bytes(6), bytes(6))
                entries[place, key.tobytes()] = action
        self.ours = Classifier(masks, entries)

    def look_up(self, packets: Packets, ranks: Ranks, ours: bool) -> None:
        """Go from keys to ranks."""
        keys = packets.keys
        if ours:
            self.ours.classify(keys, ranks)
        else:
            self.library.reference_keys(
                self.reference, keys.ctypes.data, len(keys), ranks.ctypes.data
            )

    def packet(self, packets: Packets, ranks: Ranks, ours: bool) -> None:
        """Go from frames to ranks."""
        frames = packets.frames
        if ours:
            self.ours.classify_frames(frames, LINKS["e"], ranks)
        else:
            self.library.reference_frames(
                self.reference, frames.ctypes.data, FRAME_BYTES, len(frames), LINKS["e"],
                ranks.ctypes.data,
            )  # fmt: skip

    def __del__(self) -> None:
        self.library.reference_close(self.reference)


def time_once(work: Work, hits: Integers, ours: bool) -> float:
    """Return ns per packet; ``hits`` are the ranks of their rules."""
    packets, ranks, spent = Packets(), np.zeros(PACKETS_PER_CALL, np.uint32), 0
    for expected in hits.reshape(-1, PACKETS_PER_CALL):
        packets.write(expected)
        began = time.thread_time_ns()
        work(packets, ranks, ours)
        spent += time.thread_time_ns() - began
        assert np.array_equal(ranks, expected), "the wrong rules: the result means nothing"
    return spent / hits.size


class Result:
    """Pairs of ns per packet, ours and the reference's, of one kind of work on one table."""

    def __init__(self, work: Work, rule_count: int) -> None:
        self._work = work
        self._rule_count = rule_count
        self.pairs: list[tuple[float, float]] = []

    def measure(self, count: int) -> None:
        """Time one pair more, over ``count`` packets."""
        turn = len(self.pairs)
        hits = np.random.default_rng(turn).integers(self._rule_count, size=count)
        order = (True, False) if turn % 2 else (False, True)
        spent = {ours: time_once(self._work, hits, ours) for ours in order}
        self.pairs.append((spent[True], spent[False]))

    def summary(self) -> dict[str, Any]:
        return {
            **median("ratio", [ours / reference for ours, reference in self.pairs]),
            "ours_ns": round(statistics.median(ours for ours, _ in self.pairs), 2),
            "reference_ns": round(statistics.median(ref for _, ref in self.pairs), 2),
        }


def median(name: str, values: list[float]) -> dict[str, Any]:
    """Return the median under ``name``, and the quartiles as ``spread``."""
    quartiles = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {
        name: round(statistics.median(values), 3),
        "spread": [round(quartiles[0], 3), round(quartiles[2], 3)],
    }


def growth(few: Result, many: Result) -> dict[str, Any]:
    """Compare our times of each round."""
    both = zip(few.pairs, many.pairs, strict=True)
    return median("growth", [after / before for (before, _), (after, _) in both])


def measure(tables: Sequence[Rules], pairs: int, count: int) -> list[dict[str, Result]]:
    """Measure both kinds of work on every table, by turns."""
    results = [
        {"look_up": Result(table.look_up, table.count), "packet": Result(table.packet, table.count)}
        for table in tables
    ]
    for _ in range(pairs):
        for kinds in results:
            for result in kinds.values():
                result.measure(count)
    return results


def report(
    rule_counts: Sequence[int], mask_counts: Sequence[int], pairs: int, count: int
) -> dict[str, Any]:
    """Measure every number of rules with one mask, and of masks with ``RULES_OF_MASKS``."""
    with reference_library() as library:
        tables = [Rules(library, number, 1) for number in rule_counts]
        tables += [Rules(library, RULES_OF_MASKS, number) for number in mask_counts]
        results = measure(tables, pairs, count)
    few, many = results[0], results[len(rule_counts) - 1]
    found = [{kind: result.summary() for kind, result in kinds.items()} for kinds in results]
    rules = dict(zip(rule_counts, found, strict=False))
    masks = dict(zip(mask_counts, found[len(rule_counts) :], strict=True))
    return {
        "name": NAME, "growth_goal": GROWTH_GOAL, "hot_ns_goal": HOT_NS_GOAL,
        "growth": {kind: growth(few[kind], many[kind]) for kind in few},
        "hot_ns": rules[HOT_RULES]["packet"]["ours_ns"], "rules": rules, "masks": masks,
        "pairs": pairs, "packets": count, "debug_build": _rings.DEBUG,
    }  # fmt: skip


@pytest.mark.parametrize("mask_count", MASK_COUNTS)
def test_classify(benchmark: Any, mask_count: int) -> None:
    """pytest-benchmark's table is per call; per packet and ratios are in extra_info."""
    packets, ranks = Packets(), np.zeros(PACKETS_PER_CALL, np.uint32)
    with reference_library() as library:
        rules = Rules(library, RULES_OF_MASKS, mask_count)
        packets.write(np.arange(PACKETS_PER_CALL) % RULES_OF_MASKS)
        (kinds,) = measure([rules], 5, 16 * PACKETS_PER_CALL)
        benchmark.extra_info.update(kinds["packet"].summary())
        benchmark.pedantic(rules.packet, args=(packets, ranks, True), rounds=20, warmup_rounds=2)


def print_table(what: str, tables: dict[int, dict[str, Any]]) -> None:
    for number, kinds in tables.items():
        for kind, figures in kinds.items():
            low, high = figures["spread"]
            print(
                f"{number:>9,} {what:6} {kind:8} ours {figures['ours_ns']:6.1f} ns, "
                f"C {figures['reference_ns']:6.1f} ns, ratio {figures['ratio']:.2f} "
                f"(quartiles {low:.2f} to {high:.2f})"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--tiny", action="store_true", help="run once, without a meaning")
    arguments = parser.parse_args()
    if arguments.tiny:
        result = report((1, HOT_RULES), MASK_COUNTS[:2], 1, PACKETS_PER_CALL)
    else:
        result = report(RULE_COUNTS, MASK_COUNTS, PAIRS, PACKETS)
    if arguments.json:
        print(json.dumps(result))
        return
    print_table("rules", result["rules"])
    print_table("masks", result["masks"])
    for kind, figures in result["growth"].items():
        low, high = figures["spread"]
        print(
            f"growth from the fewest rules to the most, {kind}: {figures['growth']:.2f} "
            f"(quartiles {low:.2f} to {high:.2f})"
        )


if __name__ == "__main__":
    main()
