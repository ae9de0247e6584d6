"""Hours of traffic through each data path; at the end the ledger, and what was left behind.

Question: does anything get lost without a reason, late, changed or out of order, and does anything
          grow, if it runs for hours?
Method:   numbered and timed frames at a part of the no-drop rate, one data path after the other.
          redirect runs in this process, and its rules are swapped five times a second.
          sent = received + the engine's drops + those on the wire before and behind it, by the
          links' counters; the summary's ``unaccounted`` is the same within the engine.
          Left behind: BPF programs, maps and links, AF_XDP sockets, pinned pages, namespaces, and
          open files of this process.  They are counted on the whole machine: run nothing else.
Prints:   a line a minute; at the end counts, all with goal 0, and what the engine's memory grew.
          Cut short by Ctrl-C, the data path at work is summed up all the same.
"""

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

import pytest

from bench.bed import BenchBed, dropped_on_send
from bench.leaks import Objects, kernel_objects, left_for_good, open_files, resident_kib
from bench.options import options_of, wanted
from bench.record import Record
from bench.rfc_case import Case
from bench.rfc_rates import search
from bench.subjects import OURS, Subject
from bench.swapping import swapping_redirect
from bench.traffic import Load, Seen
from bench.trials import Trials
from l2fwd.errors import L2fwdError, RunError

ROUNDS: Final = {"tiny": (1, 0.02), "quick": (1, 0.2), "normal": (1, 0.5), "full": (1, 2.0)}
HOURS: Final = {"tiny": 0.5 / 3600, "quick": 60 / 3600, "normal": 1.0, "full": 12.0}
MINUTE: Final = 60.0
GROWTH_GOAL_KIB: Final = 1024
_LEAST_LINES: Final = 3  # of a run shorter than that many minutes
_MOST_HOURS: Final = 1000.0
_RESOLUTION: Final = 0.05
_TRIES: Final = 3
_SETTLE_SECONDS: Final = 0.5
_LEAST_RATE: Final = 1000.0
_SUBJECTS: Final = {
    name: replace(each, engine=swapping_redirect) if name == "redirect" else each
    for name, each in OURS.items()
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--hours", type=_hours, help="of traffic through each data path (1)")
    add("--load", type=_percent, default=50.0, help="%% of the no-drop rate (50)")
    add("--engine", action="append", choices=list(OURS), help="one of ours (all); may be repeated")


def _hours(text: str) -> float:
    hours = float(text)
    if not 0 < hours <= _MOST_HOURS:
        raise argparse.ArgumentTypeError(f"must be in (0, {_MOST_HOURS:g}], got {text}")
    return hours


def _percent(text: str) -> float:
    percent = float(text)
    if not 0 < percent <= 100:
        raise argparse.ArgumentTypeError(f"must be in (0, 100], got {text}")
    return percent


@dataclass(slots=True)
class Minutes:
    """What was seen, interval by interval."""

    rates: list[float] = field(default_factory=list)
    p99_us: list[float] = field(default_factory=list)
    kib: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    is_cut: bool = False


def run(options: argparse.Namespace, record: Record) -> None:
    """Soak one data path after the other; one that fails is recorded, and the others go on."""
    if options.hours is None:
        options.hours = HOURS[options.level]
    for name in options.engine or OURS:
        if not wanted(options, name):
            continue
        if not _SUBJECTS[name].fits(options):
            record.skip(name, "forwards between two links: name --gen and --sink, too")
            continue
        try:
            _soak(_SUBJECTS[name], options, record)
        except (L2fwdError, OSError) as error:
            record.skip(name, str(error))


def _soak(subject: Subject, options: argparse.Namespace, record: Record) -> None:
    before, files = kernel_objects(), open_files(os.getpid())
    case = Case(subject.name)
    with subject.bed(options) as bed:
        load = replace(_carried(subject, bed, options), stamped=True)
        minutes = _traffic(case, subject, bed, load, options, record)
    _tell_left(case, before, files, record)
    if minutes.is_cut:
        raise KeyboardInterrupt


def _carried(subject: Subject, bed: BenchBed, options: argparse.Namespace) -> Load:
    """Return a load at the part wanted of the rate that is carried."""
    load = Case(subject.name).load(subject.packet)
    with subject.engine(bed) as running:
        settle_seconds = min(_SETTLE_SECONDS, options.seconds)
        tries = 1 if options.level == "tiny" else _TRIES
        trials = Trials(bed, running, options.seconds, settle_seconds, tries)
        high = trials.fastest(load).offered
        rate = search(trials, load, 0.0, high, 0.0, _RESOLUTION)
    return replace(load, rate=max(_LEAST_RATE, rate * options.load / 100))


def _traffic(
    case: Case, subject: Subject, bed: BenchBed, load: Load, options: argparse.Namespace,
    record: Record,
) -> Minutes:  # fmt: skip
    """Send for hours; take the figures once the engine has ended."""
    on_wire = _wire_drops(bed)
    with subject.engine(bed) as running:
        trials = Trials(bed, running, options.seconds, _SETTLE_SECONDS, 1)
        trials.sink.look(stamped=True, checked=True)
        before = trials.sink.seen()
        bed.generator.start(load)
        try:
            minutes = _watch(case, trials, options.hours * 3600, record)
        finally:
            sent = bed.generator.stop()
        seen = trials.settled(before, sent)
    if not running.summary:
        raise RunError(f"{subject.name} ended without a summary")
    wire = {name: count - on_wire[name] for name, count in _wire_drops(bed).items()}
    _tell_minutes(case, minutes, load, record)
    _tell_ledger(case, sent, seen, running.summary, wire, record)
    return minutes


def _watch(case: Case, trials: Trials, seconds: float, record: Record) -> Minutes:
    """Look once a minute; Ctrl-C ends it early."""
    minutes = Minutes()
    pid = trials.running.pid or os.getpid()
    before, began = trials.sink.seen(), time.monotonic()
    try:
        for pause in _pauses(seconds):
            then = time.monotonic()
            time.sleep(pause)
            now = trials.sink.seen()
            _note(minutes, now - before, time.monotonic() - then, pid)
            before = now
            passed = time.monotonic() - began
            record.say(f"{case.name}: {passed / 60:.1f} min: {minutes.rates[-1]:.0f} frames/s, "
                       f"p99 {minutes.p99_us[-1]:.0f} us, {now.reordered} reordered, "
                       f"{now.corrupted} corrupted, {minutes.kib[-1]} KiB")  # fmt: skip
    except KeyboardInterrupt:
        minutes.is_cut = True
    return minutes


def _pauses(seconds: float) -> Iterator[float]:
    """Yield minutes, and the rest; or a third of a short run three times."""
    pause = min(MINUTE, seconds / _LEAST_LINES)
    while seconds > 1e-9:
        yield min(pause, seconds)
        seconds -= pause


def _note(minutes: Minutes, seen: Seen, seconds: float, pid: int) -> None:
    minutes.rates.append(seen.packets / seconds)
    minutes.p99_us.append(seen.latency.percentile_us(99))
    minutes.kib.append(resident_kib(pid))
    minutes.files.append(open_files(pid))


def _wire_drops(bed: BenchBed) -> dict[str, int]:
    """Frames that a link could not hand to the other end of its cable, so far."""
    return {
        "wire_in_drops": dropped_on_send(*bed.source),
        "wire_out_drops": dropped_on_send(*bed.exit),
    }


def _tell_minutes(case: Case, minutes: Minutes, load: Load, record: Record) -> None:
    if not minutes.rates:
        return
    take = record.take
    take(case.figure("delivered, by the minute", "frames/s", minutes.rates, offered=load.rate))
    if p99 := [each for each in minutes.p99_us if each == each]:
        take(case.figure("latency p99, by the minute", "us", p99, better="lower"))
    grown = minutes.kib[-1] - minutes.kib[0]
    files = minutes.files[-1] - minutes.files[0]
    take(case.figure("memory grown after the first minute", "KiB", [grown], better="lower",
                     goal=GROWTH_GOAL_KIB))  # fmt: skip
    take(case.figure("files opened and kept", "files", [files], better="lower", goal=0))


def _tell_ledger(
    case: Case, sent: int, seen: Seen, summary: dict[str, Any], wire: dict[str, int],
    record: Record,
) -> None:  # fmt: skip
    """Hold what was sent against what came, and what was dropped for a reason."""
    drops = {reason: count for reason, count in (summary["drops"] | wire).items() if count}
    lost = sent - seen.packets
    counts = {
        "lost": lost,
        "lost without a reason": abs(lost - sum(drops.values())),
        "unaccounted in the engine": summary["unaccounted"],
        "reordered": seen.reordered,
        "corrupted": seen.corrupted,
    }
    for what, count in counts.items():
        more = {"sent": sent, "drops": drops} if what == "lost" else {}
        record.take(case.figure(what, "frames", [count], better="lower", goal=0, **more))
    if "swaps" in summary:
        record.take(case.figure("rule swaps", "swaps", [summary["swaps"]], better="neither"))


def _tell_left(case: Case, before: Objects, files: int, record: Record) -> None:
    left = {kind: len(found) for kind, found in left_for_good(before).items()}
    grown = open_files(os.getpid()) - files
    if grown > 0:
        left["files"] = grown
    record.take(case.figure("left behind", "objects", [sum(left.values())], better="lower",
                            goal=0, left=left))  # fmt: skip


@pytest.mark.parametrize("name", OURS)
def test_soak(benchmark: Any, name: str) -> None:
    """pytest-benchmark's table is of the whole run; the ledger is in extra_info."""
    options = options_of(ROUNDS, add_arguments, "--tiny", "--engine", name)
    record = Record("soak", {}, output=None, quiet=True)
    benchmark.pedantic(run, (options, record), rounds=1)
    benchmark.extra_info.update({each.name: each.median for each in record.figures})
    assert benchmark.extra_info[f"{name}: lost without a reason"] == 0
