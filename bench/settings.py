"""Ways to run ours on a bed: every dimension that a sweep goes along, and how it is measured."""

import argparse
import hashlib
import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench import preflight
from bench.bed import BenchBed, Engine, Running, Sample, bench_bed, offer, place_napi
from bench.engines import forwarder
from bench.options import links_of
from bench.record import Record
from bench.rounds import take_turns
from bench.socket_traffic import SocketLoad
from bench.traffic import IMIX, MAX_BYTES, Load
from l2fwd import link
from l2fwd.errors import ConfigError, L2fwdError
from l2fwd.ethtool import queue_counts

# Path -> data path of the engine, and whether it has rules.
PATHS: Final = {
    "afxdp": ("afxdp", False),
    "afxdp-rules": ("afxdp", True),
    "redirect": ("redirect", False),
    "redirect-rule": ("redirect", True),
    "hybrid": ("hybrid", True),
}
MODES: Final = ("native", "skb")
BINDS: Final = ("copy", "zero-copy")
IMIX_SIZE: Final = "imix"
FCS_BYTES: Final = 4
JUMBO_MTU: Final = 9000
_RING: Final = 2048
_BATCH: Final = 64
_MTU: Final = 1500
_HEADER_BYTES: Final = 14
_LEAST_TABLE: Final = 65536
_NO_LIMIT: Final = "10000000"  # flows a second
_HIT: Final = "in {} proto udp dst 10.77.0.2 dport 9 -> out {} set_dst_mac 02:00:00:00:00:02"
_OTHER: Final = "in {} proto udp dst 10.{}.{}.{} dport 9 -> out {}"
# No packet has this source, but a rule that looks at sources makes each of them a flow.
_BY_SOURCE: Final = "in {} proto udp dst 10.77.0.2 src 10.255.255.255 -> drop"

_STRANGER: Final = "172.16.0.0"
_STRANGE_PORT: Final = 7


class Needs(NamedTuple):
    """What settings must have in common to share a bed."""

    queues: int
    is_in_kernel: bool
    both_ways: bool
    by_socket: bool
    mtu: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One way to run ours, and what it is offered.

    Attributes
    ----------
    path, mode, bind : str
    size : str
        Bytes on the wire, with the check sequence, as RFCs count them; or ``imix``.
    queues, batch, ring, flows, ways : int
    rules : int
        In the table, of which packets hit one; without meaning for a path that has none.
    masks : int
        Combinations of fields and prefix lengths that are tried before the rule that packets hit,
        and its own.
    by_source : bool
        A rule more looks at sources: each is a flow of ``hybrid`` then.
    by_socket : bool
        Frames are made by a socket, whatever the kernel could.
    """

    path: str = "afxdp"
    mode: str = "native"
    bind: str = "copy"
    size: str = "64"
    queues: int = 1
    batch: int = _BATCH
    ring: int = _RING
    rules: int = 1
    flows: int = 1
    ways: int = 1
    masks: int = 1
    by_source: bool = False
    by_socket: bool = False

    @property
    def data_path(self) -> str:
        return PATHS[self.path][0]

    @property
    def has_rules(self) -> bool:
        return PATHS[self.path][1]

    @property
    def has_sockets(self) -> bool:
        return self.data_path != "redirect"

    @property
    def is_in_kernel(self) -> bool:
        """Whether packets are forwarded by a program, but for the first of a flow."""
        return self.data_path != "afxdp"

    @property
    def frame_bytes(self) -> int:
        """Bytes of a frame in memory; of imix the greatest."""
        return max(IMIX) if self.size == IMIX_SIZE else int(self.size) - FCS_BYTES

    def normal(self) -> "Setting":
        """Return it with the dimensions that its path does not have as they are by default."""
        fixed: dict[str, Any] = {}
        if not self.has_sockets:
            fixed |= {"bind": "copy", "ring": _RING}
        if self.is_in_kernel:  # a worker sees the first packet of a flow
            fixed |= {"batch": _BATCH}
        if not self.has_rules:
            fixed |= {"rules": 1, "flows": 1}
        return replace(self, **fixed)

    def needs(self, is_veth: bool) -> Needs:
        jumbo = self.frame_bytes > _MTU + _HEADER_BYTES
        return Needs(
            self.queues, self.is_in_kernel, self.ways == 2, self._takes_socket(is_veth),
            JUMBO_MTU if jumbo else _MTU,
        )  # fmt: skip

    def _takes_socket(self, is_veth: bool) -> bool:
        return self.by_socket or self.frame_bytes > MAX_BYTES or (self.queues > 1 and is_veth)

    def _sources(self, is_veth: bool) -> int:
        """Return how many addresses send: enough for a NIC's hash to find every queue."""
        return self.flows if is_veth or self.queues == 1 else max(self.flows, 64 * self.queues)

    def load(self, is_veth: bool) -> Load:
        """Return what it is offered.

        Raises
        ------
        ConfigError
            If the generator it needs makes no such frames.
        """
        what: dict[str, Any] = {
            "size": self.frame_bytes, "packet": "udp", "flows": self._sources(is_veth),
            "imix": self.size == IMIX_SIZE,
        }  # fmt: skip
        if self._takes_socket(is_veth):
            return SocketLoad(**what, queues=self.queues if is_veth else 1)
        return Load(**what)

    @property
    def name(self) -> str:
        """Tell it from all others, the same from run to run."""
        parts = [self.path, self.mode, *([self.bind] if self.has_sockets else []), self.size]
        parts.append(f"queues {self.queues}")
        parts += [] if self.is_in_kernel else [f"batch {self.batch}"]
        parts += [f"ring {self.ring}"] if self.ring != _RING else []
        parts += [f"rules {self.rules}", f"flows {self.flows}"] if self.has_rules else []
        parts += [f"masks {self.masks}"] if self.masks > 1 else []
        parts += ["by source"] if self.by_source else []
        parts += ["two ways"] if self.ways == 2 else []
        return " ".join(parts)

    def case(self, obtained: Mapping[str, Any], is_veth: bool) -> dict[str, Any]:
        """Return the case of a figure; ``obtained`` is the engine's event ``ready``."""
        sockets, links = obtained["sockets"], obtained.get("links", [])
        mode = (sockets or links)[0]["attach_mode"]
        is_imix = self.size == IMIX_SIZE
        return {
            "series": f"{self.path}/{mode}",
            "size": self.size,
            "bytes": round(sum(IMIX) / len(IMIX)) if is_imix else self.frame_bytes,
            "queues": self.queues,
            "batch": 0 if self.is_in_kernel else self.batch,
            "rules": self.rules if self.has_rules else 0,
            "flows": self._sources(is_veth),
            "ways": self.ways,
            "mode": mode,
            "bind": sockets[0]["bind_mode"] if sockets else "none",
            "generator": "socket" if self._takes_socket(is_veth) else "kernel",
        }

    def has_cpu_time(self, is_veth: bool) -> bool:
        """Whether the CPU time of a sample is all that forwarding took."""
        return is_veth or not self.is_in_kernel

    def engine(self, folder: Path) -> Engine:
        """Return ours so set; files of rules go to ``folder``."""

        @contextmanager
        def run(bed: BenchBed) -> Iterator[Running]:
            options = self._options(bed, folder)
            with forwarder(*options, workers=self.queues)(bed) as running:
                if bed.is_veth and self.is_in_kernel:
                    running = replace(running, threads=_place(bed))
                yield running

        return run

    def _options(self, bed: BenchBed, folder: Path) -> list[str]:
        options = ["--data-path", self.data_path, "--mode", self.mode]
        if self.has_sockets:
            options += ["--queues", f"0-{self.queues - 1}"]
            options += ["--bind", self.bind, "--ring-size", str(self.ring)]
            options += ["--batch-size", str(min(self.batch, self.ring))]
        if self.data_path == "hybrid":
            options += ["--flow-table-size", str(max(_LEAST_TABLE, 2 * self.flows))]
            options += ["--flow-rate", _NO_LIMIT]
        if self.has_rules:
            options += ["--rules", str(self._rules_file(bed, folder))]
        return options

    def _rules_file(self, bed: BenchBed, folder: Path) -> Path:
        text = "\n".join(self._rules(bed.entry.ifname, bed.exit.ifname)) + "\n"
        path = folder / f"{hashlib.sha256(text.encode()).hexdigest()}.rules"
        if not path.exists():
            path.write_text(text)
        return path

    def _rules(self, entry: str, exit_: str) -> Iterator[str]:
        for i in range(self.rules - 1):
            yield _OTHER.format(entry, 128 + (i >> 16), i >> 8 & 255, i & 255, exit_)
        for i in range(self.masks - 1):
            yield _masked(entry, i)
        yield _HIT.format(entry, exit_)
        if self.ways == 2:
            yield _HIT.format(exit_, entry)
        if self.by_source:
            yield _BY_SOURCE.format(entry)

    def take(self, bed: BenchBed, folder: Path, seconds: float) -> tuple[Sample, dict[str, Any]]:
        """Run it once; return what went through, and the case that it was.

        Raises
        ------
        L2fwdError
            If it cannot be run, as the engine says.
        """
        load = self.load(bed.is_veth)
        with self.engine(folder)(bed) as running:
            case = self.case(running.obtained, bed.is_veth)
            learns = self.data_path == "hybrid" and self.flows > 1
            return offer(bed, running, load, seconds, until_idle=learns), case


def _masked(entry: str, number: int) -> str:
    """Return a rule under a mask of its own, above the one that is hit: none has its source."""
    length = 32 - number % 32
    network = ipaddress.ip_network((_STRANGER, length), strict=False)
    port = f"sport {_STRANGE_PORT} " if number >= 32 else ""
    return f"in {entry} proto udp src {network} dst 10.77.0.2 {port}dport 9 -> drop"


def _place(bed: BenchBed) -> tuple[int, ...]:
    """Put the kernel's side on the engine's CPU; return the threads that forward."""
    threads = place_napi(bed.entry, *([bed.exit] if bed.back else []))
    place_napi(bed.target, *([bed.source] if bed.back else []))
    return threads


def queues_of(ifname: str) -> int:
    """Return the RX queues that a link has in use."""
    counts = queue_counts(ifname)
    return counts[0] if counts else link.find_link(ifname).rx_queue_count


class Measured(NamedTuple):
    """Samples of a setting, and the case that it was."""

    samples: list[Sample]
    case: dict[str, Any]


@contextmanager
def bed_for(needs: Needs, links: tuple[str, ...]) -> Iterator[BenchBed]:
    """Make a bed for settings with such needs."""
    with bench_bed(
        links=links, xdp_sink=needs.is_in_kernel, queues=needs.queues, mtu=needs.mtu,
        both_ways=needs.both_ways, by_socket=needs.by_socket,
    ) as bed:  # fmt: skip
        yield bed


class Sweep:
    """Measures settings by turns and tells a record what cannot be measured.

    Parameters
    ----------
    record : Record
    links : tuple of str
        Four NICs, or none.
    rounds : int
    seconds : float
    folder : Path
        For files of rules.
    quiet : bool
        Wait for a quiet machine before each round.
    """

    def __init__(
        self, record: Record, links: tuple[str, ...], rounds: int, seconds: float, folder: Path,
        *, quiet: bool,
    ) -> None:  # fmt: skip
        self._record, self._links = record, links
        self._rounds, self._seconds = rounds, seconds
        self._folder, self._quiet = folder, quiet

    @property
    def is_veth(self) -> bool:
        return not self._links

    def measure(
        self, settings: Sequence[Setting], needs: Needs | None = None
    ) -> dict[Setting, Measured]:
        """Measure settings that share a bed; one that cannot run is skipped, by name.

        ``needs``: of the bed, if not those of the first setting.
        """
        needs = needs or settings[0].needs(self.is_veth)
        able = [each for each in settings if self._has_queues(each)]
        if not able:
            return {}
        try:
            with bed_for(needs, self._links) as bed:
                return self._by_turns(bed, able)
        except L2fwdError as error:  # the bed: a NIC may not take the MTU
            for setting in able:
                self._record.skip(setting.name, str(error))
            return {}

    def _by_turns(self, bed: BenchBed, settings: Sequence[Setting]) -> dict[Setting, Measured]:
        by_name = {setting.name: setting for setting in settings}
        cases: dict[str, dict[str, Any]] = {}

        def take(name: str) -> Sample:
            sample, cases[name] = by_name[name].take(bed, self._folder, self._seconds)
            return sample

        found = take_turns(
            {name: partial(take, name) for name in by_name},
            self._rounds,
            quiet=self._quiet,
            failed=lambda name, error: self._record.skip(name, str(error)),
        )
        return {by_name[name]: Measured(found[name], cases[name]) for name in found}

    def _has_queues(self, setting: Setting) -> bool:
        """Skip a setting that leaves queues of a NIC without a worker: their packets get lost."""
        for ifname in self._links[1:3]:
            count = queues_of(ifname)
            if count != setting.queues:
                remedy = f"ethtool -L {ifname} combined {setting.queues}"
                self._record.skip(setting.name, f"{ifname} has {count} queues; {remedy}")
                return False
        return True


def needs_of_four(suite: str, options: argparse.Namespace) -> preflight.Needs:
    """Return what the links of a suite must have that forwards from port to port.

    Raises
    ------
    ConfigError
        If there are two NICs: what comes from one port has to leave by another.
    """
    if len(links_of(options)) == 2:
        raise ConfigError(f"{suite} needs four NICs: name --gen and --sink too")
    return preflight.Needs()
