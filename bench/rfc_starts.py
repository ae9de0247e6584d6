"""What an engine does first: cold start, reset, and single frames through an idle one."""

import os
import signal
import socket
import struct
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Final

from bench.bed import BenchBed, Engine, wait_for_flow
from bench.figures import Figure
from bench.rfc_case import Case
from bench.traffic import HEADER_BYTES, Load, Seen, packet_of
from l2fwd import link
from l2fwd.errors import RunError

COLD_START_GOAL: Final = 0.6
SINGLE_FRAMES: Final = 10
SINGLE_GOAL_US: Final = 1000.0
_GAP_SECONDS: Final = 0.05
_IDLE_SECONDS: Final = 0.2
_PEER_IDLE_SECONDS: Final = 1.0  # it does not say when it is ready
_RATE: Final = 10_000.0  # a frame each 100 us: precise enough, and no load
_STAMP: Final = struct.Struct("=QQ")  # struct lab_stamp


@dataclass(frozen=True, slots=True)
class Life:
    """An engine's first frames.

    Attributes
    ----------
    cold, reset : float
        Seconds to the first frame out: from the call that starts a process; and from kill -9,
        followed by a start.
    ages_us : list of float
        Of single frames that came, through the second one, idle.
    """

    cold: float
    reset: float
    ages_us: list[float]


def live(bed: BenchBed, engine: Engine, load: Load) -> Life:
    """Start an engine, kill it, start it again, and leave it idle but for a few frames."""
    bed.generator.start(replace(load, rate=_RATE))
    with ExitStack() as undo:
        undo.callback(bed.generator.stop)
        began = time.monotonic()
        with engine(bed) as running:
            wait_for_flow(bed)
            cold = time.monotonic() - began
            began = time.monotonic()
            os.kill(running.pid, signal.SIGKILL)
        undo.enter_context(engine(bed))
        wait_for_flow(bed)
        reset = time.monotonic() - began
        bed.generator.stop()
        time.sleep(_IDLE_SECONDS)
        return Life(cold, reset, _ages_us(bed, load))


def single_frames(bed: BenchBed, engine: Engine, load: Load) -> list[float]:
    """Return the ages in us of those of ten frames that came through an idle engine."""
    with engine(bed):
        time.sleep(_PEER_IDLE_SECONDS)
        return _ages_us(bed, load)


def figures(case: Case, lives: list[Life]) -> list[Figure]:
    """Return what rounds of ours came to."""
    return [
        case.figure("cold start to the first frame", "s", [each.cold for each in lives],
                    better="lower", goal=COLD_START_GOAL),
        case.figure("reset: kill -9, start, first frame", "s", [each.reset for each in lives],
                    better="lower"),
        *single_figures(case, [each.ages_us for each in lives], is_ours=True),
    ]  # fmt: skip


def single_figures(case: Case, rounds: list[list[float]], *, is_ours: bool) -> list[Figure]:
    """Return how many of ten came, and how old the oldest was; ours has goals."""
    came = [float(len(ages)) for ages in rounds]
    oldest = [max(ages) for ages in rounds if ages]
    goals = (SINGLE_FRAMES, SINGLE_GOAL_US) if is_ours else (None, None)
    found = [case.figure("single frames that came, of 10", "frames", came, goal=goals[0],
                         ages_us=rounds)]  # fmt: skip
    if oldest:
        found.append(case.figure("oldest of 10 single frames", "us", oldest, better="lower",
                                 goal=goals[1]))  # fmt: skip
    return found


def _ages_us(bed: BenchBed, load: Load) -> list[float]:
    """Return the ages of those that came."""
    if bed.sink is None:
        raise RunError("single frames need a sink that is a program")
    bed.sink.look(stamped=True)
    ages = []
    with link.in_netns(bed.source.netns):
        sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    with sender:
        sender.bind((bed.source.ifname, 0))
        for number in range(SINGLE_FRAMES):
            before = bed.sink.seen()
            sender.send(_stamped(load, number))
            time.sleep(_GAP_SECONDS)
            ages += _age_us(bed.sink.seen() - before)
    return ages


def _age_us(seen: Seen) -> list[float]:
    return [round(seen.latency.mean_us, 1)] if seen.packets else []


def _stamped(load: Load, number: int) -> bytes:
    packet = bytearray(packet_of(load))
    _STAMP.pack_into(packet, HEADER_BYTES, number, time.monotonic_ns())
    return bytes(packet)
