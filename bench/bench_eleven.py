"""Packets a second through the library's sockets, against AF_PACKET in Python and scapy.

Question: what does one core send and receive through each way to use a socket, and how many times
          what a plain Python loop of AF_PACKET ``send`` or ``recv`` does, and scapy?
Method:   eleven cases (eleven_cases.py) on a veth (eleven_ends.py), or on two NICs that a cable
          joins: IN is ours, OUT its far end.  Packets of 64 bytes, batches of 64, all contenders on
          one CPU; in a round each runs once.
          Send: the far end drops in XDP, for all.  On a veth that runs in the sender's time, so
          each case is run once more on a link that throws packets away, the sender alone.
          Receive: 768 packets wait per queue before the clock runs, sent from the
          other CPU, so that what offers them is never the limit.  ``read_batch`` is the one
          without a copy; the Python loop makes ``bytes``.
          Flood: what arrives while the kernel offers more than anybody takes, and the share of
          its core that the receiver used; here the kernel's own core may be the limit.
Prints:   rates, and ours to the rivals', higher is better; loss is of what was sent, or of what was
          offered.
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from bench import bed
from bench.eleven_cases import CASES, Case, each_of
from bench.eleven_ends import (
    BURST,
    SIZE,
    TURN,
    Ends,
    Filler,
    lone_ends,
    nic_ends,
    pinned,
    veth_ends,
)
from bench.eleven_rivals import RIVALS, SCAPY_TURN, Turn, is_missing
from bench.figures import Figure, ratio
from bench.options import links_of, wanted
from bench.record import Record
from bench.rounds import Rounds, rounds_of
from l2fwd import ethtool, link
from l2fwd.errors import ConfigError, RunError, UnsupportedError

ROUNDS: Final = {"tiny": (1, 0.02), "quick": (2, 0.05), "normal": (10, 0.2), "full": (31, 1.0)}
FLOOD: Final = "flood, one queue, batch receive"
_FLOODED: Final = "one queue, batch receive"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Nothing beyond what all suites have."""


def run(options: argparse.Namespace, record: Record) -> None:
    """Measure all cases, and the flood."""
    links = links_of(options)
    if len(links) > 2:
        raise ConfigError("eleven takes two NICs cabled to each other: leave out --gen and --sink")
    for name in ("AF_PACKET", "scapy"):
        if is_missing(name):
            record.skip(name, "not installed: pip install 'l2fwd[bench]'")
    rounds = rounds_of(options)
    with ExitStack() as undo:
        undo.callback(rounds.note, record)
        undo.enter_context(pinned())
        for name, case in CASES.items():
            if wanted(options, name):
                _take_case(name, case, links, rounds, record)
        if wanted(options, FLOOD):
            _take_flood(links, rounds, record)


def _take_case(
    name: str, case: Case, links: tuple[str, ...], rounds: Rounds, record: Record
) -> None:
    with ends_for(case, links) as ends:
        for figure in measure(name, case, ends, rounds):
            record.take(figure)
    if case.direction != "send":
        return
    alone = f"{name}, alone"
    if links:
        record.skip(alone, "on NICs the far end costs the sender nothing")
        return
    try:
        with lone_ends(case.queues) as ends:
            for figure in measure(alone, case, ends, rounds):
                record.take(figure)
    except UnsupportedError as error:
        record.skip(alone, str(error))


def ends_for(case: Case, links: tuple[str, ...]) -> AbstractContextManager[Ends]:
    """Make or take the link of a case."""
    return nic_ends(*links) if links else veth_ends(case.queues)


# One case


@dataclass(frozen=True, slots=True)
class Run:
    """One contender's share of a round."""

    rate: float
    loss: float  # of what was sent, or of what was offered to it
    obtained: dict[str, str] = field(default_factory=dict)


def measure(name: str, case: Case, ends: Ends, rounds: Rounds) -> Iterator[Figure]:
    """Run all contenders by turns; yield the figures of one case."""
    rivals = [rival for rival in RIVALS[case.direction] if not is_missing(rival)]
    runs = rounds.measure(
        {who: partial(move, case, ends, who, rounds.seconds) for who in ("ours", *rivals)}
    )
    own = runs["ours"]
    values = {
        "direction": case.direction, "queues": min(case.queues, ends.queues), "bytes": SIZE,
        "driver": _driver(ends), **own[0].obtained,
    }  # fmt: skip
    for who, done in runs.items():
        rates = tuple(each.rate for each in done)
        yield Figure(name=f"{name}, {who}", unit="frames/s", samples=rates, case=values)
    yield Figure(
        name=f"{name}, ours, loss", unit="%", better="neither", case=values,
        samples=tuple(100 * each.loss for each in own),
    )  # fmt: skip
    for who in rivals:
        yield ratio(
            f"{name}, ours to {who}", [each.rate for each in own],
            [each.rate for each in runs[who]], against=who,
            goal=case.goal if who == "AF_PACKET" else None, case=values,
        )  # fmt: skip


def _driver(ends: Ends) -> str:
    with link.in_netns(ends.netns):
        return ethtool.driver(ends.link)


def move(case: Case, ends: Ends, who: str, seconds: float) -> Run:
    """Let one contender move packets for so long; count where they end up."""
    with ExitStack() as undo:
        obtained = {}
        if who == "ours":
            opened = undo.enter_context(case.open(ends))
            turn = case.use(opened)
            first = each_of(opened)[0]
            bind = "zero-copy" if first.is_zero_copy else "copy"
            obtained = {"mode": first.attach_mode, "bind": bind}
        else:
            turn = undo.enter_context(RIVALS[case.direction][who](ends))
        if case.direction == "send":
            return Run(*_sent(ends, turn, seconds), obtained)
        filler = Filler(ends)
        undo.callback(filler.close)
        share = SCAPY_TURN if who == "scapy" else TURN * ends.queues
        return Run(*_received(filler, share, turn, seconds), obtained)


def _sent(ends: Ends, turn: Turn, seconds: float) -> tuple[float, float]:
    turn()
    before, moved = ends.arrived(), 0
    began = now = time.perf_counter()
    while now < began + seconds:
        moved += turn()
        now = time.perf_counter()
    time.sleep(0.01)
    return moved / (now - began), 1 - (ends.arrived() - before) / moved


def _received(filler: Filler, share: int, turn: Turn, seconds: float) -> tuple[float, float]:
    filler.fill(share)
    turn()
    spent, moved, turns = 0.0, 0, 0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not turns:
        filler.fill(share)
        began = time.perf_counter()
        moved += turn()
        spent += time.perf_counter() - began
        turns += 1
    if not moved:
        raise RunError("no packet arrived from the far end: are the two links cabled?")
    return moved / spent, 1 - moved / (share * turns)


# Flood


def _take_flood(links: tuple[str, ...], rounds: Rounds, record: Record) -> None:
    if links:
        record.skip(FLOOD, "it is made in the kernel, on the far end of a veth")
        return
    for figure in flood(rounds):
        record.take(figure)


def flood(rounds: Rounds) -> Iterator[Figure]:
    """Receive what one core of the kernel delivers, and tell how busy that kept the receiver."""
    with bed.bench_bed(hairpin=True) as lab:
        ends = Ends(lab.entry.ifname, lab.entry.netns, lab.source.ifname, lab.source.netns, 1)
        lab.generator.start(bed.Load(size=SIZE, packet="udp"))
        time.sleep(bed.WARM_UP_SECONDS)
        found = rounds.measure(
            {who: partial(_flooded, ends, who, rounds.seconds) for who in ("ours", "AF_PACKET")}
        )
    rates = {who: tuple(rate for rate, _ in done) for who, done in found.items()}
    for who, done in found.items():
        yield Figure(name=f"{FLOOD}, {who}", unit="frames/s", samples=rates[who])
        yield Figure(
            name=f"{FLOOD}, {who}, core", unit="%", better="lower",
            samples=tuple(100 * core for _, core in done),
        )  # fmt: skip
    yield ratio(
        f"{FLOOD}, ours to AF_PACKET", rates["ours"], rates["AF_PACKET"], against="AF_PACKET"
    )


def _flooded(ends: Ends, who: str, seconds: float) -> tuple[float, float]:
    """Return packets a second, and the share of its core that the receiver used."""
    with ExitStack() as undo:
        if who == "ours":
            opened = undo.enter_context(CASES[_FLOODED].open(ends))

            def turn() -> int:
                with opened.read_batch(BURST) as batch:
                    return len(batch)
        else:
            turn = undo.enter_context(RIVALS["receive"][who](ends))
        turn()
        moved = 0
        began, worked = time.perf_counter(), time.thread_time()
        while time.perf_counter() < began + seconds:
            moved += turn()
        elapsed = time.perf_counter() - began
        return moved / elapsed, (time.thread_time() - worked) / elapsed


# Under pytest


def test_packets_per_second(benchmark: Any, name: str) -> None:
    """pytest-benchmark's table is of our own turns; the figures are in extra_info."""
    case = CASES[name]
    with pinned(), veth_ends(case.queues) as ends:
        rounds = Rounds(1, 0.02, is_patient=False)
        for figure in measure(name, case, ends, rounds):
            benchmark.extra_info[figure.name] = figure.as_dict()
        with case.open(ends) as opened, ExitStack() as undo:
            fill = None
            if case.direction != "send":
                filler = Filler(ends)
                undo.callback(filler.close)
                fill = partial(_fill, filler, TURN * ends.queues)
            moved = benchmark.pedantic(case.use(opened), setup=fill, rounds=20)
    assert moved > 0


def _fill(filler: Filler, count: int) -> None:
    filler.fill(count)  # what it returns would be arguments of the turn


def pytest_generate_tests(metafunc: Any) -> None:
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", CASES)
