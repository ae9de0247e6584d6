"""RFC 2544 and 2889 of our data paths: throughput, latency, loss, bursts, recovery, learning.

Question: what does each engine carry without loss, how late are its frames then, and how does it
          behave at the edges: under overload, after it, at its start, with single frames?
Method:   a generator in the kernel sends so many frames at a rate; the sink's program counts what
          came, until it sees no more.  Rates and bursts are found by halving.  A trial in which
          frames were lost while generator or engine were kept from their CPU is taken again, so
          that a rate is carried if one of --tries trials lost nothing.
          Frames of latency, recovery and the long run carry number and time.
          afxdp, redirect and hybrid forward between two links, macswap sends back by the same.
          A veth holds 256 frames on their way, which bounds bursts there; and what the kernel
          forwards between veths it does on the generator's CPU, as fast as that makes frames.
Prints:   frames/s, us, %, frames, ms, s; goals where there are any.  Sizes are bytes in memory,
          without the check sequence.  With --xdpsock the p99 of macswap is also a ratio to it.
"""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, Final

import pytest

from bench import learning, rfc_rates, rfc_starts
from bench.bed import BenchBed, Engine, bench_bed
from bench.engines import tool
from bench.figures import Figure, ratio
from bench.options import links_of, options_of, wanted
from bench.peers import require_file, xdpsock, xsk_fwd
from bench.record import Record
from bench.rfc_case import Case, Plan, plan_of
from bench.subjects import OURS, Subject, ours
from bench.traffic import IMIX, MIN_BYTES
from l2fwd.errors import L2fwdError

ROUNDS: Final = {"tiny": (1, 0.02), "quick": (1, 0.1), "normal": (1, 0.5), "full": (3, 60.0)}
SIZES: Final = {
    "tiny": (64,),
    "quick": (64,),
    "normal": (64,),
    "full": (64, 128, 256, 512, 1024, 1280, 1514, "imix"),
}
# By level: latency trials, resolution, silence after a trial, tries of one, the long run.
_DEFAULTS: Final = {
    "tiny": {"repeats": 1, "resolution": 0.3, "settle": 0.02, "tries": 1, "soak_seconds": 0.1},
    "quick": {"repeats": 1, "resolution": 0.1, "settle": 0.02, "tries": 2, "soak_seconds": 1.0},
    "normal": {"repeats": 3, "resolution": 0.02, "settle": 0.05, "tries": 2, "soak_seconds": 5.0},
    "full": {"repeats": 20, "resolution": 0.005, "settle": 2.0, "tries": 3, "soak_seconds": 3600.0},
}
PEER_GOAL: Final = 0.9
_PARTS: Final = {  # after the search of rates
    "latency": rfc_rates.latency,
    "loss curve": rfc_rates.loss_curve,
    "longest burst": rfc_rates.back_to_back,
    "recovery": rfc_rates.recovery,
    "long run": rfc_rates.long_run,
}
_PEER: Final = "xdpsock -l"
_AWAKE: Final = "macswap --busy-poll"  # as xdpsock: never sleeps
_PAIRS: Final = {"tiny": 1, "quick": 3, "normal": 10, "full": 20}  # of latency, at least
_ENTRIES: Final = {"tiny": 20, "quick": 200, "normal": 2000, "full": 2000}
_LEARNING_SECONDS: Final = 5.0  # longer, and the flows are not new


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--engine", action="append", choices=list(OURS), help="one of ours (all); may be repeated")
    add("--sizes", nargs="+", type=_size, help="bytes of a frame, or imix (64; all with --full)")
    add("--trial", dest="seconds", type=float, help="the same as --seconds")
    add("--repeats", type=_count, help="latency trials at each load")
    add("--resolution", type=_part, help="of a search, as a part of what is found")
    add("--settle", type=_positive, help="seconds without a frame until none is awaited")
    add("--tries", type=_count, help="of a trial that something disturbed")
    add("--soak-seconds", type=_positive, help="of the run at 90 %% of the no-drop rate")
    add("--ring-size", type=_count, default=0,
        help="slots of the rings of afxdp and macswap, with four frames for each")  # fmt: skip
    add("--xdpsock", default="", metavar="PATH", help="xdpsock, to compare macswap with")
    add("--xsk-fwd", default="", metavar="PATH", help="xsk_fwd, for single frames")


def _size(text: str) -> int | str:
    if text == "imix":
        return text
    if not text.isdecimal() or not MIN_BYTES <= int(text) <= max(IMIX):
        raise argparse.ArgumentTypeError(
            f"must be imix, or bytes in [{MIN_BYTES}, {max(IMIX)}], got {text}"
        )
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be more than 0, got {text}")
    return value


def _part(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be in (0, 1), got {text}")
    return value


def run(options: argparse.Namespace, record: Record) -> None:
    """Take all parts of the engines wanted; one that fails is recorded, and the others go on."""
    fill_in(options)
    plan = plan_of(options)
    for name in options.engine or OURS:
        subject = ours(options.ring_size)[name]
        if not subject.fits(options):
            record.skip(name, "forwards between two links: name --gen and --sink, too")
            continue
        with subject.bed(options) as bed:
            _rates(subject, bed, plan, options, record)
            _starts(subject, bed, plan, options, record)
    if "hybrid" in (options.engine or OURS) and len(links_of(options)) != 2:
        _part_of(record, options, "hybrid: learning", partial(_learning, options, record))
    _peers(plan, options, record)


def run_headlines(options: argparse.Namespace, record: Record) -> None:
    """Take what the table of peers shows: no-drop rate, starts and single frames, and latency."""
    fill_in(options)
    plan, subject = plan_of(options), ours(options.ring_size)["afxdp"]
    case = Case(subject.name, 64)
    with subject.bed(options) as bed:

        def throughput() -> None:
            with subject.engine(bed) as running:
                trials = plan.trials(bed, running)
                rfc_rates.throughput(case, trials, case.load(subject.packet), plan, record)

        _part_of(record, options, f"{case.name}: no-drop rate", throughput)
        _starts(subject, bed, plan, options, record)
    _peers(plan, options, record)


def fill_in(options: argparse.Namespace) -> None:
    """Give what the command line left open the value of its level."""
    for name, value in {"sizes": SIZES[options.level], **_DEFAULTS[options.level]}.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    require_file(options.xdpsock, "--xdpsock")
    require_file(options.xsk_fwd, "--xsk-fwd")


def _part_of(
    record: Record, options: argparse.Namespace, name: str, part: Callable[[], None]
) -> None:
    """Take one part, if it is wanted."""
    if wanted(options, name):
        _guarded(record, name, part)


def _guarded(record: Record, name: str, part: Callable[[], None]) -> None:
    """Take one part; what is wrong with it is not wrong with the next."""
    try:
        part()
    except (L2fwdError, OSError) as error:
        record.skip(name, str(error))


def _rates(
    subject: Subject, bed: BenchBed, plan: Plan, options: argparse.Namespace, record: Record
) -> None:
    for size in options.sizes:
        case = Case(subject.name, size)
        parts = [part for name, part in _PARTS.items() if wanted(options, f"{case.name}: {name}")]
        if parts or wanted(options, f"{case.name}: no-drop rate"):
            take = partial(_rates_of, case, parts, subject, bed, plan, record)
            _guarded(record, case.name, take)


def _rates_of(
    case: Case,
    parts: Iterable[rfc_rates.Part],
    subject: Subject,
    bed: BenchBed,
    plan: Plan,
    record: Record,
) -> None:
    load = case.load(subject.packet)
    with subject.engine(bed) as running:
        trials = plan.trials(bed, running)
        carried = rfc_rates.throughput(case, trials, load, plan, record)
        for part in parts:
            part(case, trials, load, carried, plan, record)


def _starts(
    subject: Subject, bed: BenchBed, plan: Plan, options: argparse.Namespace, record: Record
) -> None:
    case = Case(subject.name)
    load = case.load(subject.packet)

    def part() -> None:
        lives = [rfc_starts.live(bed, subject.engine, load) for _ in range(plan.rounds)]
        _take(record, rfc_starts.figures(case, lives))

    _part_of(record, options, f"{case.name}: start, reset, single frames", part)


def _take(record: Record, figures: Iterable[Figure]) -> None:
    for figure in figures:
        record.take(figure)


def _learning(options: argparse.Namespace, record: Record) -> None:
    """RFC 2889: how many flows a second are learned, and how soon one is in the kernel."""
    case, links = Case("hybrid"), links_of(options)
    seconds = min(options.seconds, _LEARNING_SECONDS)
    found = [learning.setup_rate(links, seconds) for _ in range(options.rounds)]
    record.take(case.figure("flows learned", "flows/s", found))
    times = learning.entry_times_us(links, _ENTRIES[options.level])
    for percent in (50, 99):
        sample = times[min(len(times) - 1, len(times) * percent // 100)]
        record.take(case.figure(f"first frame to its flow's entry, p{percent}", "us", [sample],
                                better="lower", percentile=f"p{percent}"))  # fmt: skip


def _peers(plan: Plan, options: argparse.Namespace, record: Record) -> None:
    """Single frames through the peers, and p99 beside xdpsock."""
    links = links_of(options)
    if options.xdpsock:
        peer = xdpsock(options.xdpsock, "-l", "-N", "-c")
        part = partial(_peer_singles, Case(_PEER), peer, links, True, record)
        _part_of(record, options, f"{_PEER}: single frames", part)
        for size in options.sizes:
            name = f"macswap {size}: latency p99 at 50 % / {_PEER}"
            part = partial(_latency_ratio, name, peer, size, plan, options, record)
            _part_of(record, options, name, part)
    else:
        record.skip(f"latency p99 at 50 % / {_PEER}", "no --xdpsock PATH")
    if options.xsk_fwd and len(links) != 2:
        part = partial(
            _peer_singles, Case("xsk_fwd"), xsk_fwd(options.xsk_fwd), links, False, record
        )
        _part_of(record, options, "xsk_fwd: single frames", part)


def _peer_singles(
    case: Case, engine: Engine, links: tuple[str, ...], hairpin: bool, record: Record
) -> None:
    with bench_bed(links=links, hairpin=hairpin) as bed:
        ages = rfc_starts.single_frames(bed, engine, case.load("raw"))
        _take(record, rfc_starts.single_figures(case, [ages], is_ours=False))


def _latency_ratio(
    name: str, peer: Engine, size: int | str, plan: Plan, options: argparse.Namespace,
    record: Record,
) -> None:  # fmt: skip
    """Take the p99 of each at half of the no-drop rate that all of them have, by turns."""
    contenders = {
        _PEER: peer,
        "macswap": ours(options.ring_size)["macswap"].engine,
        _AWAKE: tool("macswap", "--interval", "0", "--busy-poll"),
    }
    p99: dict[str, list[float]] = {each: [] for each in contenders}
    with bench_bed(links=links_of(options), hairpin=True) as bed:
        rate = min(_no_drop(engine, bed, size, plan) for engine in contenders.values()) / 2
        for _ in range(max(plan.rounds, _PAIRS[options.level])):
            for each, engine in contenders.items():
                p99[each].append(_p99_us(engine, bed, size, plan, rate))
    for each in ("macswap", _AWAKE):
        case = {"engine": each, "bytes": size, "rate": round(rate), "percentile": "p99"}
        goal = PEER_GOAL if each == _AWAKE else None
        record.take(ratio(name.replace("macswap", each, 1), p99[each], p99[_PEER], against=_PEER,
                          goal=goal, better="lower", case=case))  # fmt: skip


def _no_drop(engine: Engine, bed: BenchBed, size: int | str, plan: Plan) -> float:
    load = Case("", size).load("raw")
    with engine(bed) as running:
        trials = plan.trials(bed, running)
        high = trials.fastest(load).offered
        return rfc_rates.search(trials, load, 0.0, high, 0.0, plan.resolution)


def _p99_us(engine: Engine, bed: BenchBed, size: int | str, plan: Plan, rate: float) -> float:
    load = replace(Case("", size).load("raw"), stamped=True, rate=rate)
    with engine(bed) as running:
        trial = plan.trials(bed, running).until(lambda trial: not trial.lost, load)
    return trial.seen.latency.percentile_us(99)


@pytest.mark.parametrize("name", OURS)
def test_no_drop_rate(benchmark: Any, name: str) -> None:
    """pytest-benchmark's table is of the whole search; the rates are in extra_info."""
    options = options_of(ROUNDS, add_arguments, "--tiny")
    fill_in(options)
    record = Record("rfc2544", {}, output=None, quiet=True)
    subject, plan = OURS[name], plan_of(options)
    case = Case(name, 64)

    def once() -> None:
        with subject.bed(options) as bed, subject.engine(bed) as running:
            load, trials = case.load(subject.packet), plan.trials(bed, running)
            rfc_rates.throughput(case, trials, load, plan, record)

    benchmark.pedantic(once, rounds=1)
    benchmark.extra_info.update({each.name: each.median for each in record.figures})
    assert benchmark.extra_info[f"{name} 64: rate under overload"] > 0


def test_flows_learned(benchmark: Any) -> None:
    """Flows a second in extra_info."""
    found = benchmark.pedantic(learning.setup_rate, ((), ROUNDS["tiny"][1]), rounds=1)
    benchmark.extra_info["flows/s"] = found
    assert found > 0
