"""Frames a second of the kernel's data paths, and how fast ``hybrid`` learns.

Question: what do rules and learned flows cost beside the plainest redirect program, on the wire;
          how many new flows a second go through the slow path, and how soon is one in the kernel?
Method:   the lab of ``bed.py``; the engine and the sink share a CPU and are the limit.  A round
          runs each engine once; the order turns from round to round; a ratio is of one round.
          ``plain`` is lab_redirect.bpf.c between the same links; ``pair`` is redirect without
          rules; ``rule`` matches a protocol, an address and a port, and sets a MAC; ``flow`` is
          hybrid with that rule, learned.
          Set-up: every frame is a new flow for a while; inserted flows of the engine's summary.
          Entry: from a send to the flow's entry in the map, one new flow at a time.
Prints:   one JSON object last; ``ratio`` is to plain, median of the rounds, higher is better,
          with its ``spread`` (least, most) and goal.

    python bench/bench_paths.py [--json] [--rounds N] [--seconds S] [--tiny]
"""

import argparse
import json
import socket
import statistics
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent))

import bed as bench

from l2fwd import link
from l2fwd.bpf import Program
from l2fwd.config import AttachMode, FlowConfig, ForwardConfig
from l2fwd.datapath.ruled import RuledPath
from l2fwd.lab import Bed
from l2fwd.rules import parse_rules

NAME: Final = "kernel_paths_pps"
GOALS: Final = {"pair": 0.97, "rule": 0.85, "flow": 0.85}
SIZE: Final = 64
ROUNDS: Final = 10
SECONDS: Final = 1.0
TINY_SECONDS: Final = 0.2
ENTRIES: Final = 2000
TINY_ENTRIES: Final = 20
ENTRY_SECONDS: Final = 1.0
MANY_FLOWS: Final = 1 << 22
QUIET_WAIT_SECONDS: Final = 3.0
RULE: Final = "in f0 proto udp dst 10.77.0.2 dport 9 -> out f1 set_dst_mac 02:00:00:00:00:02"
BY_SOURCE: Final = "in f0 proto udp dst 10.77.0.2 src 10.0.0.0/32 -> drop"  # sources are flows
_U32: Final = struct.Struct("=I")


@contextmanager
def plain(bed: Bed) -> Iterator[None]:
    """Run the program that does nothing else."""
    with ExitStack() as undo, link.in_netns(bed.fwd):
        program = Program("lab_redirect")
        undo.callback(program.close)
        program.load()
        links = [link.find_link(name) for name in ("f0", "f1")]
        keys = [_U32.pack(each.ifindex) for each in links]
        program.update("links", dict(zip(keys, reversed(keys), strict=True)))
        for each in links:
            attachment = program.attach(each.ifindex, each.ifname, AttachMode.NATIVE)
            undo.callback(attachment.detach)
        yield


ENGINES: Final[dict[str, Callable[[Bed], bench.Engine]]] = {
    "plain": plain,
    "pair": lambda bed: bench.forwarder(bed, "--data-path", "redirect"),
    "rule": lambda bed: bench.forwarder(bed, "--data-path", "redirect", "--rule", RULE),
    "flow": lambda bed: bench.forwarder(bed, "--data-path", "hybrid", "--rule", RULE),
}


@contextmanager
def placed(engine: bench.Engine, bed: Bed) -> Iterator[None]:
    with engine:
        bench.place_napi(bed)
        yield


def rates(rounds: int, seconds: float, quiet_wait: float) -> dict[str, list[float]]:
    """Run every engine once a round; return frames a second."""
    found: dict[str, list[float]] = {name: [] for name in ENGINES}
    names = list(ENGINES)
    with bench.bench_bed(in_kernel=True) as bed:
        for turn in range(rounds):
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                bench.wait_until_quiet(quiet_wait)
                engine = placed(ENGINES[name](bed), bed)
                found[name].append(bench.forward_rate(engine, bed, SIZE, seconds, packet="udp"))
    return found


@contextmanager
def learner(bed: Bed, table_size: int) -> Iterator[RuledPath]:
    """Run hybrid in this process, every IPv4 source a flow."""
    config = ForwardConfig(
        in_link="f0", out_link="f1", data_path="hybrid", cpus=(bench.ENGINE_CPU,),
        rules=parse_rules(f"{RULE}\n{BY_SOURCE}"),
        flows=FlowConfig(table_size=table_size, per_second=10_000_000),
    )  # fmt: skip
    with link.in_netns(bed.fwd):
        path = RuledPath(config, lambda event: None)
        path.start()
    try:
        yield path
    finally:
        path.stop()


def setup_rate(seconds: float) -> float:
    """Return new flows a second that the worker learned, one a frame, nothing else offered."""
    with bench.bench_bed(in_kernel=True) as bed, learner(bed, MANY_FLOWS) as path:
        with bench.generator(bed, SIZE, "udp", MANY_FLOWS):
            while not path.sample().flows["inserted"]:
                time.sleep(0.01)
            began, before = time.monotonic(), path.sample().flows["inserted"]
            time.sleep(seconds)
            learned = path.sample().flows["inserted"] - before
            return learned / (time.monotonic() - began)


def entry_times(count: int) -> list[float]:
    """Return seconds from a frame of a new flow to the entry of its flow, one by one."""
    found = []
    with bench.bench_bed(in_kernel=True) as bed, learner(bed, 2 * count) as path:
        with link.in_netns(bed.gen):
            sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            sender.bind(("g0", 0))
        with sender:
            for number in range(1, count + 1):
                frame = bytearray(bench.udp_packet(SIZE))
                frame[26:30] = (number + (10 << 24)).to_bytes(4, "big")
                before = path.sample().flows["inserted"]
                began = time.perf_counter()
                sender.send(frame)
                while path.sample().flows["inserted"] == before:
                    if time.perf_counter() - began > ENTRY_SECONDS:
                        raise RuntimeError(f"flow {number} was not learned in {ENTRY_SECONDS} s")
                found.append(time.perf_counter() - began)
    return found


def compare(found: dict[str, list[float]], name: str) -> dict[str, Any]:
    ratios = [ours / plain for ours, plain in zip(found[name], found["plain"], strict=True)]
    return {
        "pps": round(statistics.median(found[name])),
        "ratio": round(statistics.median(ratios), 3),
        "spread": [round(min(ratios), 3), round(max(ratios), 3)],
        "goal": GOALS[name],
    }


def report(rounds: int, seconds: float, entries: int, quiet_wait: float) -> dict[str, Any]:
    found = rates(rounds, seconds, quiet_wait)
    entered = sorted(entry_times(entries))
    return {
        "name": NAME,
        "rounds": rounds,
        "seconds": seconds,
        "plain_pps": round(statistics.median(found["plain"])),
        "paths": {name: compare(found, name) for name in GOALS},
        "new_flows_per_second": round(setup_rate(seconds)),
        "entry_us": {
            "p50": round(1e6 * entered[len(entered) // 2], 1),
            "p99": round(1e6 * entered[len(entered) * 99 // 100], 1),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="print only one JSON object")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="runs of each (%(default)s)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a run (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="run once, without a meaning")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or not 0 < arguments.seconds < 3600:
        parser.error("rounds must be at least 1, seconds in (0, 3600)")
    if arguments.tiny:
        result = report(1, TINY_SECONDS, TINY_ENTRIES, 0.0)
    else:
        result = report(arguments.rounds, arguments.seconds, ENTRIES, QUIET_WAIT_SECONDS)
    if not arguments.json:
        print(f"plain  {result['plain_pps'] / 1e6:.3f} Mpps")
        for name, figures in result["paths"].items():
            low, high = figures["spread"]
            print(
                f"{name:6} {figures['pps'] / 1e6:.3f} Mpps, ratio {figures['ratio']:.3f} "
                f"({low:.3f} to {high:.3f}), goal {figures['goal']}"
            )
        print(f"learns {result['new_flows_per_second']:,} new flows a second")
        entry = result["entry_us"]
        print(f"entry  {entry['p50']} us (p50), {entry['p99']} us (p99) after the first frame")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
