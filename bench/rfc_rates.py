"""What an engine carries: RFC 2544's throughput, latency, loss, bursts and recovery."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

from bench.bed import Sample
from bench.figures import ratio
from bench.record import Record
from bench.rfc_case import Case, Plan
from bench.search import highest
from bench.traffic import Load
from bench.trials import Trial, Trials

PARTIAL_LOSS: Final = 0.005
OVERLOAD_GOAL: Final = 0.9
LATENCY_LOADS: Final = (10, 50, 90)  # % of the no-drop rate
PERCENTILES: Final = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9}
RECOVERY_FROM: Final = 1.1
_RECOVERY_TO: Final = 0.5
_LEAST_RATE: Final = 1000.0


@dataclass(frozen=True, slots=True)
class Carried:
    """What the parts after the search take their rates from, in frames a second.

    Attributes
    ----------
    no_drop : float
    fastest : float
        Of the generator, paced.
    overload : Sample
        Of the engine, under all that the generator makes.
    """

    no_drop: float
    fastest: float
    overload: Sample


Part = Callable[[Case, Trials, Load, Carried, Plan, Record], None]  # of what follows


def throughput(case: Case, trials: Trials, load: Load, plan: Plan, record: Record) -> Carried:
    """Search the no-drop rate and that at half a percent of loss; overload it for comparison."""
    clean, partial, overloads = [], [], []
    for _ in range(plan.rounds):
        fastest = trials.fastest(load).offered
        clean.append(search(trials, load, 0.0, fastest, 0.0, plan.resolution))
        partial.append(search(trials, load, clean[-1], fastest, PARTIAL_LOSS, plan.resolution))
        overloads.append(trials.overload(load))
    over = [each.delivered for each in overloads]
    take = record.take
    take(case.figure("no-drop rate", "frames/s", clean))
    take(case.figure("rate at 0.5 % loss", "frames/s", partial))
    take(case.figure("rate under overload", "frames/s", over))
    if case.engine == "afxdp":
        name = f"{case.name}: no-drop rate / rate under overload"
        own, against = {"engine": case.engine, "bytes": case.size}, "itself under overload"
        take(ratio(name, clean, over, against=against, goal=OVERLOAD_GOAL, case=own))
    no_drop = sorted(clean)[len(clean) // 2]
    if no_drop >= fastest:
        record.note(f"{case.name}: carries all that the generator makes")
    if no_drop == 0:
        record.note(f"{case.name}: frames are lost at any rate; what follows is at the least")
    return Carried(max(no_drop, _LEAST_RATE), fastest, overloads[-1])


def search(
    trials: Trials, load: Load, low: float, high: float, tolerance: float, resolution: float
) -> float:
    """Return the highest rate with at most this loss, 0 to 1."""
    return highest(
        lambda rate: trials.passes(replace(load, rate=rate), tolerance), low, high,
        resolution=resolution, least=_LEAST_RATE,
    )  # fmt: skip


def latency(
    case: Case, trials: Trials, load: Load, carried: Carried, plan: Plan, record: Record
) -> None:
    """Take the ages of frames at parts of the no-drop rate."""
    for percent in LATENCY_LOADS:
        stamped = replace(load, stamped=True, rate=carried.no_drop * percent / 100)
        taken = [trials.until(_has_no_loss, stamped) for _ in range(plan.repeats)]
        taken = [each for each in taken if each.seen.latency.packets]
        if not taken:
            record.skip(f"{case.name}: latency at {percent} %", "no frame came")
            continue
        for name, each in PERCENTILES.items():
            more: dict[str, Any] = {"histogram": histogram(taken)} if name == "p99" else {}
            samples = [trial.seen.latency.percentile_us(each) for trial in taken]
            record.take(case.figure(f"latency {name} at {percent} %", "us", samples, better="lower",
                                    load=percent, percentile=name, **more))  # fmt: skip


def histogram(taken: Iterable[Trial]) -> list[list[float]]:
    """Return upper bounds in us, and packets, of all trials together."""
    counts: Counter[float] = Counter()
    for trial in taken:
        counts.update(dict(trial.seen.latency.histogram()))
    return [[upper, counts[upper]] for upper in sorted(counts)]


def loss_curve(
    case: Case, trials: Trials, load: Load, carried: Carried, _plan: Plan, record: Record
) -> None:
    """Offer less and less, from all that the generator paces, until twice nothing is lost."""
    lossless = 0
    for percent in range(100, 0, -10):
        trial = trials.until(_has_no_loss, replace(load, rate=carried.fastest * percent / 100))
        record.take(case.figure(f"loss at {percent} % of what is offered", "%", [100 * trial.loss],
                                better="lower", load=percent, offered=trial.offered))  # fmt: skip
        lossless = 0 if trial.lost else lossless + 1
        if lossless == 2:
            return


def back_to_back(
    case: Case, trials: Trials, load: Load, carried: Carried, plan: Plan, record: Record
) -> None:
    """Search the longest burst at full speed that is carried whole."""
    fastest = carried.overload.offered
    most = max(1.0, fastest * plan.seconds)
    found = [
        highest(lambda frames: trials.carries_burst(load, int(frames), fastest), 0.0, most,
                resolution=plan.resolution)
        for _ in range(plan.rounds)
    ]  # fmt: skip
    samples = [float(int(each)) for each in found]
    record.take(case.figure("longest burst", "frames", samples, most=int(most)))


def recovery(
    case: Case, trials: Trials, load: Load, carried: Carried, plan: Plan, record: Record
) -> None:
    """Overload it a little, then offer half: how long are frames lost after that?"""
    rate = RECOVERY_FROM * carried.no_drop
    name = "recovery from 110 %"
    if rate > carried.fastest:
        record.skip(f"{case.name}: {name}", "the generator makes no more than is carried")
        return
    samples = [_recovery_ms(trials, load, rate, plan.seconds) for _ in range(plan.rounds)]
    record.take(case.figure(name, "ms", samples, better="lower"))


def _recovery_ms(trials: Trials, load: Load, rate: float, seconds: float) -> float:
    """The sink keeps when the last frame was sent before which one is missing."""
    half = rate / RECOVERY_FROM * _RECOVERY_TO
    before = max(1, round(rate * seconds))
    load = replace(load, stamped=True, rate=rate, later_from=before, later_rate=half,
                   limit=before + max(1, round(half * seconds)))  # fmt: skip
    trial = trials.take(load, 2 * seconds)
    if not trial.lost:
        return 0.0
    return max(0, trial.seen.last_gap_ns - trials.bed.generator.changed_ns) / 1e6


def long_run(
    case: Case, trials: Trials, load: Load, carried: Carried, plan: Plan, record: Record
) -> None:
    """Offer 90 % of the no-drop rate for longer; nothing may be lost, late or changed."""
    rate = 0.9 * carried.no_drop
    trial = trials.take(replace(load, stamped=True, rate=rate), plan.soak_seconds)
    counts = {
        "lost": trial.lost, "reordered": trial.seen.reordered, "corrupted": trial.seen.corrupted,
    }  # fmt: skip
    for what, count in counts.items():
        record.take(case.figure(f"{what} at 90 %, long", "frames", [count], better="lower", goal=0,
                                sent=trial.sent, seconds=plan.soak_seconds))  # fmt: skip


def _has_no_loss(trial: Trial) -> bool:
    return not trial.lost
