"""The same work for ours and for every peer found, in interleaved rounds.

Question: on one bed, in one run, does ours forward more than each peer, and for less CPU?
Method:   bench/contests.py says who meets whom; all contenders of a group take one turn a round,
          and who goes first moves on.  Rates are read at the wire's ends.  testpmd is taken where
          it is installed (apt install dpdk-dev); --xdpsock and --xsk-fwd name programs of
          xdp-project/bpf-examples.  At the end what other suites measure of the same table: the
          ring loop; no-drop rate, starts, single frames and latency.
Prints:   frames a second, or CPU ns a frame, of each contender, and the ratios with their goals.
"""

import argparse
from functools import partial
from types import ModuleType
from typing import Any, Final

import pytest

from bench import bench_micro, bench_rfc2544, contests, micro_rings, peers
from bench.bed import (
    BenchBed,
    Engine,
    Sample,
    bench_bed,
    sample,
    taken,
    wait_for_flow,
    watch,
)
from bench.bench_rfc2544 import run_headlines
from bench.contests import Contest, Group, Named
from bench.figures import Figure, ratio
from bench.options import Rounds, is_patient, links_of, options_of, wanted
from bench.record import Record
from bench.rounds import Samples, rounds_of, take_turns
from l2fwd.errors import RunError

ROUNDS: Final[Rounds] = {
    "tiny": (1, 0.1),
    "quick": (3, 0.3),
    "normal": (10, 0.6),
    "full": (20, 3.0),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--xdpsock", metavar="PATH", default="", help="the peer xdpsock")
    parser.add_argument("--xsk-fwd", metavar="PATH", default="", help="the peer xsk_fwd")
    parser.add_argument("--rates-only", action="store_true",
        help="without what rfc2544 and micro measure of the table")  # fmt: skip


def run(options: argparse.Namespace, record: Record) -> None:
    """Run every group; one that fails is named, and the others go on."""
    named = Named(options.xdpsock, options.xsk_fwd, links_of(options))
    peers.require_file(named.xdpsock, "--xdpsock")
    peers.require_file(named.xsk_fwd, "--xsk-fwd")
    for group in contests.all_groups(named):
        if wanted(options, group.name):
            run_group(group, options, record)
    if options.rates_only:
        return
    if len(named.links) != 2:
        run_headlines(options_like(options, bench_rfc2544), record)
    if not named.links:
        micro = options_like(options, bench_micro)
        for figure in bench_micro.measure(micro_rings, micro, rounds_of(micro)):
            record.take(figure)


def options_like(options: argparse.Namespace, suite: ModuleType) -> argparse.Namespace:
    """Return another suite's options, at the level and with the links and peers of these."""
    words = [] if options.level == "normal" else [f"--{options.level}"]
    found = options_of(suite.ROUNDS, suite.add_arguments, *words)
    common = ("in_link", "out_link", "gen_link", "sink_link", "only", "xdpsock", "xsk_fwd")
    for name in common:
        setattr(found, name, getattr(options, name))
    if suite is bench_rfc2544:
        found.sizes = [contests.SMALL]
    return found


def run_group(group: Group, options: argparse.Namespace, record: Record) -> None:
    links = links_of(options)
    with bench_bed(links=links, **group.bed) as bed:
        turns = {
            name: partial(one_turn, bed, engine, group, name, options.seconds)
            for name, engine in group.contenders.items()
        }
        samples = take_turns(
            turns, max(1, options.rounds // (1 + group.is_broad)), quiet=options.level != "tiny",
            before=None if is_patient(options) else _at_once,
            failed=lambda name, error: record.skip(f"{group.name}: {name}", str(error)),
        )  # fmt: skip
    tell(group, samples, record)


def _at_once() -> None:
    """Wait for nothing; a sample that was disturbed is taken again all the same."""


def one_turn(bed: BenchBed, engine: Engine, group: Group, name: str, seconds: float) -> Sample:
    """Let one contender do the group's work.

    Raises
    ------
    RunError
        If it cannot be started, or stops forwarding.
    """
    found = _work(bed, engine, group, name, seconds)
    if not found.delivered:
        raise RunError(f"no frame in {seconds:g} s, after the first ones")
    return found


def _work(bed: BenchBed, engine: Engine, group: Group, name: str, seconds: float) -> Sample:
    load = group.load_of(name)
    if group.is_sender:
        with engine(bed) as running:
            wait_for_flow(bed)
            return watch(bed, running, seconds)
    if group.takes_all:
        return taken(bed, engine, load, seconds)
    return sample(bed, engine, load, seconds)


def tell(group: Group, samples: Samples, record: Record) -> None:
    """Record each contender's figures, and the ratios of the contests."""
    for name, each in samples.items():
        record.take(rate_figure(group, name, each))
        if any(sample.cpu_ns for sample in each):
            record.take(cpu_figure(group, name, each))
    for contest in group.contests:
        name = f"{group.name}: {contest.ours} / {contest.peer}"
        if contest.ours in samples and contest.peer in samples:
            record.take(ratio_figure(group, contest, samples, name))
        elif contest.peer not in group.contenders:
            record.skip(name, f"{contest.peer} is not here")


def rate_figure(group: Group, name: str, samples: list[Sample]) -> Figure:
    return Figure(
        name=f"{group.name}: {name}", unit="frames/s",
        samples=tuple(each.delivered for each in samples), case=case_of(group, name),
    )  # fmt: skip


def cpu_figure(group: Group, name: str, samples: list[Sample]) -> Figure:
    return Figure(
        name=f"{group.name}: {name}: CPU", unit="ns/frame", better="lower",
        samples=tuple(each.cpu_ns for each in samples), case=case_of(group, name),
    )  # fmt: skip


def ratio_figure(group: Group, contest: Contest, samples: Samples, name: str) -> Figure:
    return ratio(
        name,
        [contest.what(each) for each in samples[contest.ours]],
        [contest.what(each) for each in samples[contest.peer]],
        against=contest.peer, goal=contest.goal, better=contest.better,
        case=case_of(group, contest.ours),
    )  # fmt: skip


def case_of(group: Group, name: str) -> dict[str, Any]:
    load = group.load_of(name)
    return {"group": group.name, "series": name, "bytes": load.size, "flows": load.flows or 1}


@pytest.mark.parametrize("group", contests.all_groups(Named()), ids=lambda group: group.name)
def test_peers(benchmark: Any, group: Group) -> None:
    """pytest-benchmark's table is per run; the rates are in extra_info."""
    found: dict[str, float] = {}

    def once() -> None:
        with bench_bed(**group.bed) as bed:
            for name, engine in group.contenders.items():
                found[name] = one_turn(bed, engine, group, name, ROUNDS["tiny"][1]).delivered

    benchmark.pedantic(once, rounds=1)
    benchmark.extra_info.update(found)
    assert all(found.values())
