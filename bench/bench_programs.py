"""Time of our XDP programs for one frame, in the kernel: ours against the plainest redirect.

Question: what do rules and flows cost beside a bare ``bpf_redirect_map``?
Method:   BPF_PROG_TEST_RUN on the links of the lab, so that the MTU and the devmap looked up are
          real.  Each program gets the same UDP frame, and must redirect it, every time:
          ``plain`` is lab_redirect.bpf.c; ``xconnect`` is what redirect does for a pair of links
          without rules; ``rule`` matches a protocol, an address and a port, and sets a MAC;
          ``flow`` is hybrid with that rule learned.  What one run of a program costs by itself
          (the call, the clock) is in all of them.
          A round times each once; the order turns from round to round.
Prints:   with --json one object last; ``ratio`` is to plain, median of the rounds, lower is
          better, with its goal; ``spread`` its quartiles; ns are per frame.

    python bench/bench_programs.py [--json] [--rounds N] [--tiny]
"""

import argparse
import json
import os
import statistics
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from l2fwd import link
from l2fwd._bpf import test_run
from l2fwd.bpf import Program
from l2fwd.lab import Bed
from l2fwd.rule_layout import flow_place
from l2fwd.rule_maps import RuleMaps, map_sizes
from l2fwd.rule_table import compile_rules
from l2fwd.rules import Rule, parse_rules

NAME: Final = "program_ns_per_frame"
GOALS: Final = {"xconnect": 1.5, "rule": 3.0, "flow": 3.0}
SIZES: Final = (64, 1514)
ROUNDS: Final = 25
RUNS: Final = 1_000_000
TINY_RUNS: Final = 100
PAIR: Final = "in f0 -> out f1\nin f1 -> out f0"
RULE: Final = "in f0 proto udp dst 10.77.0.2 dport 9 -> out f1 set_dst_mac 02:00:00:00:00:02"
_HEADERS: Final = (
    bytes.fromhex("020000000b0b 020000000a0a 0800")
    + bytes.fromhex("45000032 00000000 40110000 0a4d0001 0a4d0002")
    + bytes.fromhex("04000009 001e0000")
)
_XDP_REDIRECT: Final = 4
_U32: Final = struct.Struct("=I")
_FLOW_KEY_HEAD: Final = struct.Struct("=HHI")  # queue, mask_slot, zero
_FLOW_TAIL: Final = struct.Struct("=QQQQ")  # packets, bytes, last_seen, wait_for
_SETTLED: Final = 2**64 - 1

Ifindexes = dict[str, int]


def plain(ifindexes: Ifindexes) -> Program:
    """Return the program that does nothing else."""
    program = Program("lab_redirect")
    program.load()
    program.update("links", {_U32.pack(ifindexes["f0"]): _U32.pack(ifindexes["f1"])})
    return program


def with_rules(name: str, ifindexes: Ifindexes, rules: list[Rule]) -> Program:
    """Return a program of ours with both links and these rules."""
    program = Program(name, map_sizes(len(rules)))
    program.load()
    keys = [_U32.pack(ifindex) for ifindex in ifindexes.values()]
    program.update("links", dict(zip(keys, keys, strict=True)))
    RuleMaps(program, map_sizes(len(rules))["hits"]).apply(rules, ifindexes, "pass")
    return program


def xconnect(ifindexes: Ifindexes) -> Program:
    """Return redirect as it is for a pair of links."""
    return with_rules("redirect", ifindexes, list(parse_rules(PAIR)))


def rule(ifindexes: Ifindexes) -> Program:
    """Return redirect with one rule."""
    return with_rules("redirect", ifindexes, list(parse_rules(RULE)))


def flow(ifindexes: Ifindexes) -> Program:
    """Return hybrid with the one rule learned, as a flow that is the kernel's."""
    rules = list(parse_rules(RULE))
    program = with_rules("hybrid", ifindexes, rules)
    compiled = compile_rules(rules, ifindexes, 1)
    ((mask, _),), (((_, key), action),) = compiled.masks, compiled.entries.items()
    program.update("flow_masks", {_U32.pack(0): mask})
    program.update("flow_order", {_U32.pack(0): bytes.fromhex("00ffffff")})
    flow_key = _FLOW_KEY_HEAD.pack(0, 0, 0) + key
    value = flow_key + action + _FLOW_TAIL.pack(0, 0, 0, _SETTLED)
    program.update("flows", {flow_place(flow_key): value})
    return program


PROGRAMS: Final[dict[str, Callable[[Ifindexes], Program]]] = {
    "plain": plain,
    "xconnect": xconnect,
    "rule": rule,
    "flow": flow,
}


@contextmanager
def loaded() -> Iterator[tuple[dict[str, Program], int]]:
    """Load every program in a lab of its own; give them, and the ifindex frames come in by."""
    with ExitStack() as undo:
        bed = undo.enter_context(Bed(f"l2fwd-bench{os.getpid()}"))
        undo.enter_context(link.in_netns(bed.fwd))
        ifindexes = {name: link.find_link(name).ifindex for name in ("f0", "f1")}
        programs = {}
        for name, make in PROGRAMS.items():
            programs[name] = make(ifindexes)
            undo.callback(programs[name].close)
        yield programs, ifindexes["f0"]


def time_one(program: Program, frame: bytes, ifindex: int, runs: int) -> int:
    """Return ns per frame."""
    verdict, spent = test_run(program.fd, frame, repeat=runs, ingress_ifindex=ifindex)
    assert verdict == _XDP_REDIRECT, f"{program.name}: verdict {verdict}, the result means nothing"
    return int(spent)


def measure(
    programs: dict[str, Program], ifindex: int, size: int, rounds: int, runs: int
) -> dict[str, Any]:
    """Time all programs by turns on frames of ``size`` bytes; return the figures of each."""
    frame = _HEADERS.ljust(size, b"\0")
    names = list(programs)
    times: dict[str, list[int]] = {name: [] for name in names}
    for i in range(rounds + 1):  # the first warms up
        for name in names[i % len(names) :] + names[: i % len(names)]:
            spent = time_one(programs[name], frame, ifindex, runs)
            times[name] += [spent] if i else []
    return {name: _compare(times[name], times["plain"]) for name in names}


def _compare(ours: list[int], plain_ns: list[int]) -> dict[str, Any]:
    ratios = [mine / (other or 1) for mine, other in zip(ours, plain_ns, strict=True)]
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {
        "ns": statistics.median(ours),
        "ratio": round(statistics.median(ratios), 3),
        "spread": [round(quartiles[0], 3), round(quartiles[2], 3)],
    }


def report(rounds: int, runs: int) -> dict[str, Any]:
    """Measure every size."""
    with loaded() as (programs, ifindex):
        sizes = {size: measure(programs, ifindex, size, rounds, runs) for size in SIZES}
    return {"name": NAME, "goals": GOALS, "rounds": rounds, "runs": runs, "sizes": sizes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="(%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="run once, without a meaning")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("rounds must be at least 1")
    if os.geteuid() != 0:
        sys.exit("bench_programs needs root: it makes network namespaces and loads programs")
    result = report(1, TINY_RUNS) if arguments.tiny else report(arguments.rounds, RUNS)
    if arguments.json:
        print(json.dumps(result))
        return
    for size, programs in result["sizes"].items():
        for name, figures in programs.items():
            low, high = figures["spread"]
            goal = f", goal {GOALS[name]:.1f}" if name in GOALS else ""
            print(
                f"{size:>4} bytes {name:8} {figures['ns']:5.1f} ns, ratio {figures['ratio']:.2f} "
                f"(quartiles {low:.2f} to {high:.2f}{goal})"
            )


if __name__ == "__main__":
    main()
