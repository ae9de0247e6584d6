"""Address learning as RFC 2889 has it, for ``hybrid``: how fast flows enter the kernel's table."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from bench.bed import ENGINE_CPU, BenchBed, bench_bed
from bench.subjects import RULE
from bench.traffic import Load, packet_of
from l2fwd import link
from l2fwd.config import FlowConfig, ForwardConfig
from l2fwd.datapath.ruled import RuledPath
from l2fwd.errors import RunError
from l2fwd.rules import parse_rules

FEW_FLOWS: Final = 1 << 16
MANY_FLOWS: Final = 1 << 22
FLOWS_A_SECOND: Final = 1 << 20  # no worker learns more
_BY_SOURCE: Final = "in {entry} proto udp dst 10.77.0.2 src 10.0.0.0/32 -> drop"  # sources: flows
_ENTRY_SECONDS: Final = 1.0
_FIRST_SECONDS: Final = 20.0
_SOURCE: Final = slice(26, 30)  # of IPv4, in a frame
_LOAD: Final = Load(packet="udp")
_PER_SECOND: Final = 10_000_000  # no limit


@contextmanager
def learner(bed: BenchBed, table_size: int) -> Iterator[RuledPath]:
    """Run hybrid in this process, every IPv4 source a flow."""
    places = {"entry": bed.entry.ifname, "exit": bed.exit.ifname}
    config = ForwardConfig(
        in_link=bed.entry.ifname, out_link=bed.exit.ifname, data_path="hybrid",
        cpus=(ENGINE_CPU,), rules=parse_rules(f"{RULE}\n{_BY_SOURCE}".format(**places)),
        flows=FlowConfig(table_size=table_size, per_second=_PER_SECOND),
    )  # fmt: skip
    with link.in_netns(bed.entry.netns):
        path = RuledPath(config, lambda event: None)
        path.start()
    try:
        yield path
    finally:
        path.stop()


def learned(path: RuledPath) -> int:
    """Return the flows that its worker has put into the table so far."""
    return int(path.sample().flows["inserted"])


def setup_rate(links: tuple[str, ...], seconds: float) -> float:
    """Return new flows a second that are learned, one a frame, nothing else offered."""
    flows = max(FEW_FLOWS, min(MANY_FLOWS, round(seconds * FLOWS_A_SECOND)))
    load = replace(_LOAD, flows=flows)
    with bench_bed(links=links) as bed, learner(bed, flows) as path:
        bed.generator.start(load)
        try:
            _wait_for(path, 0, _FIRST_SECONDS)
            began, before = time.monotonic(), learned(path)
            time.sleep(seconds)
            return (learned(path) - before) / (time.monotonic() - began)
        finally:
            bed.generator.stop()


def entry_times_us(links: tuple[str, ...], count: int) -> list[float]:
    """Return us from a frame of a new flow to the entry of its flow, one by one, sorted."""
    found = []
    frame = bytearray(packet_of(_LOAD))
    with bench_bed(links=links) as bed, learner(bed, 2 * count) as path:
        with link.in_netns(bed.source.netns):
            sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        with sender:
            sender.bind((bed.source.ifname, 0))
            for number in range(1, count + 1):
                frame[_SOURCE] = (number + (10 << 24)).to_bytes(4, "big")
                before = learned(path)
                began = time.perf_counter()
                sender.send(frame)
                _wait_for(path, before, _ENTRY_SECONDS)
                found.append(1e6 * (time.perf_counter() - began))
    return sorted(found)


def _wait_for(path: RuledPath, before: int, seconds: float) -> None:
    """Wait, awake, until one more flow is in the table.

    Raises
    ------
    RunError
        If none is in time.
    """
    deadline = time.monotonic() + seconds
    while learned(path) == before:
        if time.monotonic() > deadline:
            raise RunError(f"no flow was learned in {seconds:g} s")
