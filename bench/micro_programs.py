"""Time of our XDP programs for one frame, in the kernel: ours against the plainest redirect.

Question: what do rules and flows cost beside a bare ``bpf_redirect_map``?
Method:   BPF_PROG_TEST_RUN on the links of the lab, so that the MTU and the devmap looked up are
          real.  Each program gets the same UDP frame, and must redirect it, every time:
          ``plain`` is lab_redirect.bpf.c; ``xconnect`` is what redirect does for a pair of links
          without rules; ``rule`` matches a protocol, an address and a port, and sets a MAC;
          ``flow`` is hybrid with that rule learned.  What one run of a program costs by itself
          (the call, the clock) is in all of them.
"""

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Final

from bench.case import Case
from bench.rounds import Work
from l2fwd import link
from l2fwd._bpf import test_run as run_program
from l2fwd.bpf import Program
from l2fwd.lab import Bed
from l2fwd.rule_layout import flow_place
from l2fwd.rule_maps import RuleMaps, map_sizes
from l2fwd.rule_table import compile_rules
from l2fwd.rules import Rule, parse_rules

GOALS: Final = {"xconnect": 1.5, "rule": 3.0, "flow": 3.0}
SIZES: Final = (64, 1514)
PAIR: Final = "in f0 -> out f1\nin f1 -> out f0"
RULE: Final = "in f0 proto udp dst 10.77.0.2 dport 9 -> out f1 set_dst_mac 02:00:00:00:00:02"
_RUNS: Final = 250_000  # of a program in one call
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


def running(program: Program, frame: bytes, ifindex: int) -> Work:
    """Return work: run the program for one frame many times."""

    def work() -> tuple[float, int]:
        # By the kernel's clock, in whole ns a run: a call takes it many ms before the first run.
        verdict, ns = run_program(program.fd, frame, repeat=_RUNS, ingress_ifindex=ifindex)
        assert verdict == _XDP_REDIRECT, f"{program.name}: verdict {verdict}, this means nothing"
        return max(ns, 1) * _RUNS, _RUNS

    return work


@contextmanager
def cases(level: str) -> Iterator[list[Case]]:
    """One case a frame size, at any level."""
    with loaded() as (programs, ifindex):
        yield [
            Case(
                name=f"program, {size} bytes",
                contenders={
                    name: partial(running, program, _HEADERS.ljust(size, b"\0"), ifindex)
                    for name, program in programs.items()
                },
                reference="plain",
                goals=GOALS,
                values={"bytes": size},
            )
            for size in SIZES
        ]
