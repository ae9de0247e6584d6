"""Who meets whom, on which bed, under which load, and what ours is to reach.

Goals are ratios, ours to the peer's, in the same rounds.  Each is as it is by default, in copy
mode on veths: so xdpsock never sleeps, and ours does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from bench import engines, peers
from bench.bed import Engine, Load, Sample
from bench.subjects import RULE

SMALL: Final = 64
LARGE: Final = 1514
NOBODY: Final = "02:00:00:00:00:77"
PACED: Final = {100_000: 0.25, 300_000: 0.35, 1_000_000: 0.7}
FLOWS: Final = (256, 65_536)


def delivered(sample: Sample) -> float:
    return sample.delivered


def cpu(sample: Sample) -> float:
    return sample.cpu_ns


@dataclass(frozen=True, slots=True)
class Contest:
    """One row of the table: ``ours`` and ``peer`` are contenders of the group."""

    ours: str
    peer: str
    goal: float | None
    what: Callable[[Sample], float] = delivered
    better: str = "higher"


@dataclass(frozen=True, slots=True)
class Group:
    """Contenders that take turns on one bed under one load.

    Attributes
    ----------
    name : str
    bed : mapping
        Arguments of ``bench_bed``.
    loads : mapping of str to Load
        By contender; the others get that of ``""``.
    contenders : mapping of str to Engine
    contests : tuple of Contest
    takes_all : bool
        Nothing comes out: what the engine's queue took is read from the link.
    is_sender : bool
        The engine makes the frames.
    is_broad : bool
        Contenders are many, and goals are far away: half of the rounds will do.
    """

    name: str
    load: Load
    contenders: Mapping[str, Engine]
    contests: tuple[Contest, ...]
    bed: Mapping[str, Any] = field(default_factory=dict)
    loads: Mapping[str, Load] = field(default_factory=dict)
    takes_all: bool = False
    is_sender: bool = False
    is_broad: bool = False

    def load_of(self, contender: str) -> Load:
        return self.loads.get(contender, self.load)


@dataclass(frozen=True, slots=True)
class Named:
    """What the user named.

    Attributes
    ----------
    xdpsock, xsk_fwd : str
        Peers; empty: not there.
    links : tuple of str
        NICs, as ``bench_bed`` has them; none: veths, where all run in copy mode.
    """

    xdpsock: str = ""
    xsk_fwd: str = ""
    links: tuple[str, ...] = ()

    @property
    def bind(self) -> str:
        return "zero-copy" if self.links else "copy"

    @property
    def queue(self) -> tuple[str, ...]:
        """The one that every peer has; NICs may have more, which then get nothing."""
        return ("--queues", "0") if self.links else ()

    @property
    def letter(self) -> str:
        return "-z" if self.links else "-c"

    @property
    def rule(self) -> str:
        entry, out = self.links[1:3] if self.links else ("f0", "f1")
        return RULE.format(entry=entry, exit=out)

    def xdpsock_engine(self, *letters: str) -> dict[str, Engine]:
        if not self.xdpsock:
            return {}
        return {f"xdpsock {' '.join(letters)}": peers.xdpsock(self.xdpsock, *letters)}

    def testpmd_engines(self) -> dict[str, Engine]:
        if not peers.has_testpmd():
            return {}
        return {
            f"testpmd {mode}": peers.testpmd(mode, force_copy=not self.links)
            for mode in ("io", "macswap")
        }

    def forward(self, *options: str) -> Engine:
        return engines.forwarder("--bind", self.bind, *self.queue, *options)

    def redirect(self, *options: str) -> Engine:
        return engines.forwarder("--data-path", "redirect", *options)

    def hybrid(self, *options: str) -> Engine:
        path = ("--data-path", "hybrid", *self.queue)
        return engines.forwarder(*path, "--rule", self.rule, *options)

    def tool(self, verb: str, *options: str) -> Engine:
        return engines.tool(verb, *self.queue, *options)

    def macswap(self, mode: str) -> Engine:
        return self.tool("macswap", "--mode", mode, "--bind", self.bind)

    def xsk_fwd_engine(self) -> dict[str, Engine]:
        return {"xsk_fwd": peers.xsk_fwd(self.xsk_fwd)} if self.xsk_fwd else {}


def all_groups(named: Named) -> list[Group]:
    """Return every group that the beds allow, with the peers that are there."""
    if len(named.links) == 2:
        return [hairpin(named, size) for size in (SMALL, LARGE)]
    stacks = [] if named.links else [to_the_stack(named, size) for size in (SMALL, LARGE)]
    return [
        two_ports_small(named),
        two_ports_large(named),
        *stacks,
        *(hairpin(named, size) for size in (SMALL, LARGE)),
        receive_only(named),
        send_only(named),
        *(paced(named, rate, goal) for rate, goal in PACED.items()),
        many_flows(named),
    ]


def two_ports_small(named: Named) -> Group:
    """Everything that forwards from one port to another, 64 bytes."""
    kernel = {
        "plain redirect": engines.plain,
        "redirect pair": named.redirect(),
        "redirect rule": named.redirect("--rule", named.rule),
        "hybrid hit": named.hybrid(),
        "bridge": peers.bridge,
        "tc mirred": peers.mirred,
    }
    if named.links:  # what a program redirects from a ring in zero-copy is copied first
        kernel["hybrid hit in zero-copy"] = named.hybrid("--bind", "zero-copy")
    user = _two_ports(named) | {"AF_PACKET loop": peers.packet_loop}
    contests = (
        Contest("redirect pair", "plain redirect", 0.97),
        Contest("redirect rule", "plain redirect", 0.85),
        Contest("hybrid hit", "plain redirect", 0.85),
        Contest("hybrid hit", "xsk_fwd", 4.5),
        Contest("hybrid hit", "testpmd io", 4.5),
        Contest("hybrid hit", "bridge", 4.5),
        Contest("hybrid hit", "tc mirred", 2.3),
        Contest("afxdp", "AF_PACKET loop", None),
    )
    return Group(
        "two ports, 64 bytes", Load(size=SMALL, packet="udp"), kernel | user,
        contests + _two_ports_contests(named, 1.05, 1.12),
    )  # fmt: skip


def two_ports_large(named: Named) -> Group:
    return Group(
        "two ports, 1514 bytes", Load(size=LARGE, packet="udp"), _two_ports(named),
        _two_ports_contests(named, 1.22, 1.30),
    )  # fmt: skip


def _two_ports(named: Named) -> dict[str, Engine]:
    own = {"afxdp": named.forward(), "afxdp --swap-mac": named.forward("--swap-mac")}
    if named.links:
        own["afxdp in copy mode"] = engines.forwarder("--bind", "copy", *named.queue)
    return own | named.xsk_fwd_engine() | named.testpmd_engines()


def _two_ports_contests(named: Named, xsk_fwd: float, testpmd: float) -> tuple[Contest, ...]:
    return (
        Contest("afxdp", "xsk_fwd", xsk_fwd),
        Contest("afxdp", "testpmd io", testpmd),
        Contest("afxdp --swap-mac", "testpmd macswap", testpmd),
        *([Contest("afxdp", "afxdp in copy mode", 1.0)] if named.links else ()),
    )


def to_the_stack(named: Named, size: int) -> Group:
    """The sink that costs a sender over AF_XDP least."""
    return Group(
        f"two ports, host as sink, {size} bytes", Load(size=size),
        {"afxdp": named.forward(), **named.xsk_fwd_engine()},
        (Contest("afxdp", "xsk_fwd", 1.03),), bed={"xdp_sink": False},
    )  # fmt: skip


def hairpin(named: Named, size: int) -> Group:
    native, skb = ("-l", "-N", named.letter), ("-l", "-S", "-c")
    contenders = {
        "macswap": named.macswap("native"),
        "macswap skb": named.tool("macswap", "--mode", "skb", "--bind", "copy"),
        **named.xdpsock_engine(*native),
        **named.xdpsock_engine(*skb),
    }
    contests = (
        Contest("macswap", f"xdpsock {' '.join(native)}", 1.12 if size == SMALL else 1.22),
        Contest("macswap skb", f"xdpsock {' '.join(skb)}", 1.25),
    )
    return Group(
        f"hairpin, {size} bytes", Load(size=size), contenders, contests, bed={"hairpin": True}
    )


def receive_only(named: Named) -> Group:
    peer = ("-r", "-N", named.letter)
    own = ("--mode", "native", "--bind", named.bind)
    return Group(
        "receive only, 64 bytes", Load(size=SMALL),
        {"rxdrop": named.tool("rxdrop", *own), **named.xdpsock_engine(*peer)},
        (Contest("rxdrop", f"xdpsock {' '.join(peer)}", 1.0),),
        bed={"hairpin": True}, takes_all=True,
    )  # fmt: skip


def send_only(named: Named) -> Group:
    # xdpsock counts the check sequence in.
    letters = ("-t", "-N", named.letter, "-G", NOBODY, "-s", str(SMALL + 4))
    own = ("--mode", "native", "--bind", named.bind, "-G", NOBODY, "-s", str(SMALL))
    return Group(
        "send only, 64 bytes", Load(size=SMALL),
        {"txonly": named.tool("txonly", *own), **named.xdpsock_engine(*letters)},
        (Contest("txonly", f"xdpsock {' '.join(letters)}", 1.0),),
        bed={"hairpin": True}, is_sender=True,
    )  # fmt: skip


def paced(named: Named, rate: int, goal: float) -> Group:
    """CPU time of the engine where there is little to do."""
    peer = ("-l", "-p", "-N", named.letter)
    return Group(
        f"CPU at {rate:,} frames/s", Load(size=SMALL, rate=rate),
        {"macswap": named.macswap("native"), **named.xdpsock_engine(*peer)},
        (Contest("macswap", f"xdpsock {' '.join(peer)}", goal, cpu, "lower"),),
        bed={"hairpin": True},
    )  # fmt: skip


def many_flows(named: Named) -> Group:
    """Each at many flows against itself at one."""
    paths = {
        "afxdp": named.forward(),
        "redirect": named.redirect("--rule", named.rule),
        "hybrid": named.hybrid(),
        "bridge": peers.bridge,
    }
    contenders: dict[str, Engine] = {}
    loads: dict[str, Load] = {}
    contests: list[Contest] = []
    for path, engine in paths.items():
        # Some frames a second are left of the bridge's rate at 256 flows already.
        for flows in (1, *FLOWS[: 1 if path == "bridge" else None]):
            name = f"{path}, {flows:,} flows"
            contenders[name] = engine
            loads[name] = Load(size=SMALL, packet="udp", flows=flows)
            if flows > 1:
                goal = None if path == "bridge" else 0.9
                contests.append(Contest(name, f"{path}, 1 flows", goal))
    return Group(
        "flows, 64 bytes", Load(size=SMALL), contenders, tuple(contests), loads=loads,
        is_broad=True,
    )  # fmt: skip
