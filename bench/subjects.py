"""Our engines as the RFC benches take them: how each is started, and the bed that it needs."""

import argparse
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Final

from bench.bed import BenchBed, Engine, Running, bench_bed
from bench.engines import forwarder, tool
from bench.options import links_of

RULE: Final = (
    "in {entry} proto udp dst 10.77.0.2 dport 9 -> out {exit} set_dst_mac 02:00:00:00:00:02"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """An engine under test.

    Attributes
    ----------
    name : str
    engine : Engine
    is_hairpin : bool
        Sends back where it receives.
    packet : str
        Of the load, as ``Load`` has it.
    """

    name: str
    engine: Engine
    is_hairpin: bool = False
    packet: str = "raw"

    def bed(self, options: argparse.Namespace) -> AbstractContextManager[BenchBed]:
        return bench_bed(links=links_of(options), hairpin=self.is_hairpin)

    def fits(self, options: argparse.Namespace) -> bool:
        """Tell whether the links named are enough: between two, only a hairpin is possible."""
        return self.is_hairpin or len(links_of(options)) != 2


@contextmanager
def _hybrid(bed: BenchBed) -> Iterator[Running]:
    rule = RULE.format(entry=bed.entry.ifname, exit=bed.exit.ifname)
    with forwarder("--data-path", "hybrid", "--rule", rule)(bed) as running:
        yield running


def ours(ring_size: int = 0) -> dict[str, Subject]:
    """Return all by name; ``ring_size``: slots of a ring, with four frames for each."""
    rings = ["--ring-size", str(ring_size), "--frames", str(4 * ring_size)] if ring_size else []
    subjects = (
        Subject(name="afxdp", engine=forwarder(*rings)),
        Subject(name="macswap", engine=tool("macswap", "--interval", "0", *rings), is_hairpin=True),
        Subject(name="redirect", engine=forwarder("--data-path", "redirect")),
        Subject(name="hybrid", engine=_hybrid, packet="udp"),
    )
    return {each.name: each for each in subjects}


OURS: Final = ours()
