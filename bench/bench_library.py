"""Packets a second through the library's sockets, against AF_PACKET in Python and scapy.

Question: what does one core send and receive through each way to use a socket, and how many times
          what a plain Python loop of AF_PACKET ``send`` or ``recv`` does, and scapy?
Method:   eleven cases on a veth (``library_bed.py``), or two NICs that a cable joins; packets of 64
          bytes, batches of 64, all contenders on one CPU.  A round runs ours, AF_PACKET and scapy
          once each, in an order that turns; a ratio is of one round.
          Send: the far end drops in XDP, for all.  On a veth that runs in the sender's time, so
          each case is run once more on a link that throws packets away, the sender alone.
          Receive: 768 packets wait per queue before the clock runs, sent from the
          other CPU, so that what offers them is never the limit.  ``read_batch`` is the one
          without a copy; the Python loop makes ``bytes``.
          Flood: what arrives while the kernel offers more than anybody takes, and the share of
          its core that the receiver used; here the kernel's own core may be the limit.
Prints:   one JSON object last; ``ratio`` is to AF_PACKET, median of the rounds, higher is better,
          with its ``spread`` (quartiles) and goal.

    python bench/bench_library.py [--json] [--output FILE] [--rounds N] [--seconds S] [--tiny]
                                  [--link IFNAME --peer IFNAME]
    pytest -p benchmark bench/bench_library.py --benchmark-only --benchmark-json=FILE
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # pytest imports a bench without its directory

import bed as bench
import library_bed as beds
from library_bed import BURST, TURN, Contender, Ends, Turn

from l2fwd import MultiQueueSocket, XdpSocket, ethtool, link

NAME: Final = "library_pps"
ROUNDS: Final = 10
SECONDS: Final = 0.3
TINY_SECONDS: Final = 0.02
FLOOD_ROUNDS: Final = 5
QUIET_WAIT_SECONDS: Final = 0.5
SINGLE, SEND, RECEIVE = 1.0, 2.0, 5.0  # goals: calls of one packet, batches

Open = Callable[[Ends], Any]  # a socket, or one over many queues


def open_one(ends: Ends) -> XdpSocket:
    with link.in_netns(ends.netns):
        return XdpSocket(ends.link, block=False, poll_timeout=0.1)


def open_many(ends: Ends) -> MultiQueueSocket:
    with link.in_netns(ends.netns):
        return MultiQueueSocket(ends.link, ends.queues, block=False, poll_timeout=0.1)


def each_of(opened: Any) -> tuple[XdpSocket, ...]:
    return opened.sockets if isinstance(opened, MultiQueueSocket) else (opened,)


# What is measured: each takes an open socket and returns how to move packets through it


def send_single(opened: Any) -> Turn:
    packet, writes = beds.packet(), [each.write for each in each_of(opened)]

    def turn() -> int:
        for write in writes:
            for _ in range(TURN):
                write(packet)
        return TURN * len(writes)

    return turn


def send_batches(opened: Any) -> Turn:
    packets = [beds.packet(flow) for flow in range(BURST)]
    calls = TURN // BURST

    def turn() -> int:
        return sum(each.write_batch(packets) for each in each_of(opened) for _ in range(calls))

    return turn


def send_spread(many: MultiQueueSocket) -> Turn:
    packets = [beds.packet(flow) for flow in range(BURST)] * len(many.sockets)

    def turn() -> int:
        return sum(many.write_batch(packets) for _ in range(TURN // BURST))

    return turn


def receive_single(opened: Any) -> Turn:
    def turn() -> int:
        done = 0
        for each in each_of(opened):
            read = each.read
            with suppress(BlockingIOError):  # the hash gives one queue more than the other
                while True:
                    read(0)
                    done += 1
        return done

    return turn


def receive_batches(opened: Any) -> Turn:
    def turn() -> int:
        done = 0
        for each in each_of(opened):
            count = 1
            while count:
                with each.read_batch(BURST, timeout=0) as batch:
                    count = len(batch)
                done += count
        return done

    return turn


def receive_from_all(many: MultiQueueSocket) -> Turn:
    def turn() -> int:
        done, count = 0, 1
        while count:
            count = len(many.read_batch(BURST, timeout=0))
            done += count
        return done

    return turn


def echo(opened: XdpSocket) -> Turn:
    def turn() -> int:
        done, count = 0, 1
        while count:
            count = opened.read_batch(BURST, timeout=0).send_on(opened)
            done += count
        return done

    return turn


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    queues: int
    direction: str  # send, receive, both
    open: Open
    use: Callable[[Any], Turn]
    goal: float | None

    @property
    def rivals(self) -> dict[str, Contender]:
        return {
            "send": {"af_packet": beds.packet_send, "scapy": beds.scapy_send},
            "receive": {"af_packet": beds.packet_receive, "scapy": beds.scapy_receive},
            "both": {"af_packet": beds.packet_echo, "scapy": beds.scapy_echo},
        }[self.direction]


# In the order of xdppacket's list; the last is what it could not do.
CASES: Final = {
    "one queue, single packet send": Case(1, "send", open_one, send_single, SINGLE),
    "one queue, batch send": Case(1, "send", open_one, send_batches, SEND),
    "one queue, single packet receive": Case(1, "receive", open_one, receive_single, SINGLE),
    "one queue, batch receive": Case(1, "receive", open_one, receive_batches, RECEIVE),
    "all queues as one, send": Case(2, "send", open_many, send_spread, SEND),
    "all queues as one, receive": Case(2, "receive", open_many, receive_from_all, RECEIVE),
    "each queue, single packet send": Case(2, "send", open_many, send_single, SINGLE),
    "each queue, batch send": Case(2, "send", open_many, send_batches, SEND),
    "each queue, single packet receive": Case(2, "receive", open_many, receive_single, SINGLE),
    "each queue, batch receive": Case(2, "receive", open_many, receive_batches, RECEIVE),
    "full duplex on one link": Case(1, "both", open_one, echo, None),
}


@dataclass
class Run:
    """One contender's share of a round."""

    pps: float
    loss: float  # of what was sent, or of what was offered to it
    obtained: dict[str, str]


def run(case: Case, ends: Ends, name: str, seconds: float) -> Run:
    """Let one contender move packets for so long; count where they end up."""
    with ExitStack() as undo:
        obtained = {}
        if name == "ours":
            opened = undo.enter_context(case.open(ends))
            turn = case.use(opened)
            first = each_of(opened)[0]
            bind = "zero-copy" if first.is_zero_copy else "copy"
            obtained = {"mode": first.attach_mode, "bind": bind}
        else:
            turn = undo.enter_context(case.rivals[name](ends))
        if case.direction == "send":
            return Run(*_sent(ends, turn, seconds), obtained)
        filler = beds.Filler(ends)
        undo.callback(filler.close)
        share = beds.SCAPY_TURN if name == "scapy" else TURN * ends.queues
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


def _received(filler: beds.Filler, share: int, turn: Turn, seconds: float) -> tuple[float, float]:
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
        raise RuntimeError("no packet arrived from the far end")
    return moved / spent, 1 - moved / (share * turns)


def measure(case: Case, ends: Ends, rounds: int, seconds: float, quiet_wait: float) -> Any:
    """Run all contenders by turns; return the figures of one case."""
    names = ["ours", *case.rivals]
    runs: dict[str, list[Run]] = {name: [] for name in names}
    noisy = 0
    for i in range(rounds):
        noisy += not bench.wait_until_quiet(quiet_wait) if quiet_wait else 0
        shift = i % len(names)
        for name in names[shift:] + names[:shift]:
            runs[name].append(run(case, ends, name, seconds))
    own = runs["ours"]
    with link.in_netns(ends.netns):
        driver = ethtool.driver(ends.link)
    return {
        "pps": round(statistics.median(each.pps for each in own)),
        "loss": round(max(each.loss for each in own), 6),
        **own[0].obtained,
        "driver": driver,
        "queues": min(case.queues, ends.queues),
        "packet_bytes": beds.SIZE,
        "frame_size": 2048,
        "noisy_rounds": noisy,
        "goal": case.goal,
        "rivals": {name: _compare(own, runs[name]) for name in case.rivals},
    }


def _compare(own: list[Run], theirs: list[Run]) -> dict[str, Any]:
    ratios = sorted(ours.pps / rival.pps for ours, rival in zip(own, theirs, strict=True))
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {
        "pps": round(statistics.median(each.pps for each in theirs)),
        "ratio": round(statistics.median(ratios), 3),
        "spread": [round(quartiles[0], 3), round(quartiles[2], 3)],
        "ratio_min_max": [round(ratios[0], 3), round(ratios[-1], 3)],
    }


# Flood


def flood(rounds: int, seconds: float) -> dict[str, Any]:
    """Receive what one core of the kernel delivers, and tell how busy that kept the receiver."""
    found: dict[str, list[tuple[float, float]]] = {"ours": [], "af_packet": []}
    case = CASES["one queue, batch receive"]
    with bench.bench_bed() as bed, bench.generator(bed, beds.SIZE, "udp"):
        ends = Ends("f0", bed.fwd, "g0", bed.gen, 1)
        time.sleep(bench.WARM_UP_SECONDS)
        for _ in range(rounds):
            for name, runs in found.items():
                runs.append(_flooded(case, ends, name, seconds))
    return {
        name: {
            "pps": round(statistics.median(pps for pps, _ in runs)),
            "core": round(statistics.median(core for _, core in runs), 3),
        }
        for name, runs in found.items()
    }


def _flooded(case: Case, ends: Ends, name: str, seconds: float) -> tuple[float, float]:
    with ExitStack() as undo:
        if name == "ours":
            opened = undo.enter_context(case.open(ends))

            def turn() -> int:
                with opened.read_batch(BURST) as batch:
                    return len(batch)
        else:
            turn = undo.enter_context(case.rivals[name](ends))
        turn()
        moved = 0
        began, worked = time.perf_counter(), time.thread_time()
        while time.perf_counter() < began + seconds:
            moved += turn()
        elapsed = time.perf_counter() - began
        return moved / elapsed, (time.thread_time() - worked) / elapsed


# Everything


@contextmanager
def ends_for(case: Case, ifname: str, peer: str) -> Iterator[Ends]:
    beds.pin_contender()
    chosen = beds.nic_ends(ifname, peer) if ifname else beds.veth_ends(case.queues)
    with chosen as ends:
        yield ends


def report(options: argparse.Namespace, quiet_wait: float) -> dict[str, Any]:
    rows = {}
    for name, case in CASES.items():
        with ends_for(case, options.link, options.peer) as ends:
            rows[name] = measure(case, ends, options.rounds, options.seconds, quiet_wait)
        if case.direction == "send" and not options.link:
            try:
                with beds.lone_ends(case.queues) as ends:
                    alone = measure(case, ends, options.rounds, options.seconds, quiet_wait)
                rows[name]["alone"] = alone
            except beds.NoLoneLinkError as error:
                print(error, file=sys.stderr)
        if not options.json:
            print_row(name, rows[name])
    result = {"name": NAME, "rounds": options.rounds, "seconds": options.seconds, "cases": rows}
    if not options.link:
        result["flood"] = flood(min(options.rounds, FLOOD_ROUNDS), options.seconds)
    return result


HEADER: Final = (
    f"{'case':36}{'packets/s':>11}{'x AF_PACKET':>13}{'spread':>15}{'x scapy':>9}{'goal':>6}"
)


def print_row(name: str, figures: dict[str, Any], note: str = "") -> None:
    packet, scapy = figures["rivals"]["af_packet"], figures["rivals"]["scapy"]
    low, high = packet["spread"]
    print(
        f"{note or name:36}{figures['pps']:>11,}{packet['ratio']:>13.2f}"
        f"{f'{low:.2f} to {high:.2f}':>15}{scapy['ratio']:>9.1f}{figures['goal'] or '-':>6}",
        flush=True,
    )
    if "alone" in figures:
        print_row(name, figures["alone"], "  the sender alone")


def print_flood(flooded: dict[str, Any]) -> None:
    for name, figures in flooded.items():
        print(f"flood, {name}: {figures['pps']:,} packets/s with {figures['core']:.0%} of its core")


# Under pytest


@pytest.mark.parametrize("name", CASES)
def test_packets_per_second(benchmark: Any, request: pytest.FixtureRequest, name: str) -> None:
    """pytest-benchmark's table is of our own turns; rates and ratios are in extra_info."""
    case = CASES[name]
    ifname, peer = (request.config.getoption(each, "") for each in ("--link", "--peer"))
    with ends_for(case, ifname, peer) as ends:
        benchmark.extra_info.update(measure(case, ends, 1, TINY_SECONDS, 0.0))
        with case.open(ends) as opened, ExitStack() as undo:
            fill = None
            if case.direction != "send":
                filler = beds.Filler(ends)
                undo.callback(filler.close)
                fill = lambda: filler.fill(TURN * ends.queues)  # noqa: E731
            moved = benchmark.pedantic(case.use(opened), setup=fill, rounds=20)
    assert moved > 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="print only one JSON object")
    parser.add_argument("--output", type=Path, help="write that object to a file, too")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="runs of each (%(default)s)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a run (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="run once, without a meaning")
    parser.add_argument("--link", default="", help="a NIC to test, instead of a veth")
    parser.add_argument("--peer", default="", help="the NIC at the other end of its cable")
    options = parser.parse_args()
    if options.rounds < 1 or not 0 < options.seconds < 3600:
        parser.error("rounds must be at least 1, seconds in (0, 3600)")
    if bool(options.link) != bool(options.peer):
        parser.error("--link and --peer go together")
    if options.tiny:
        options.rounds, options.seconds = 1, TINY_SECONDS
    return options


def main() -> None:
    options = parse()
    if not options.json:
        print(HEADER)
    result = report(options, 0.0 if options.tiny else QUIET_WAIT_SECONDS)
    if "flood" in result and not options.json:
        print_flood(result["flood"])
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
