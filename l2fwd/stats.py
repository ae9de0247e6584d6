"""Counters into samples, samples into rates, and both into what a user reads."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from l2fwd.abi import ANSWER_KINDS

# Reason -> what it means to the user.  Every packet not forwarded is in one of them.
DROP_REASONS: Final = {
    "rx_fill_empty_drops": "no free frame when it arrived",
    "rx_missed_drops": "the NIC had no buffer when it arrived",
    "rx_ring_full_drops": "the worker did not keep up",
    "rx_oversize_drops": "longer than a frame holds",
    "rx_invalid_drops": "descriptor out of bounds",
    "rx_abandoned_drops": "received, but its socket died first",
    "tx_full_drops": "the other link does not keep up",
    "tx_fragment_drops": "in more frames than the driver sends at once",
    "tx_busy_drops": "the driver refused it: carrier lost, or over the MTU",
    "tx_invalid_drops": "the kernel refused the descriptor",
    "tx_abandoned_drops": "queued, but its socket died first",
    "rx_rule_drops": "a rule, a policy or the miss policy said so",
    "rx_change_drops": "could not be changed as its rule says",
    "rx_policy_drops": "the policy failed, or gave no possible answer",
    "rx_host_drops": "meant for the host stack, which did not take it",
    "tx_no_link_drops": "its rule names a link that is not there now",
    "tx_mtu_drops": "longer than the other link takes",
}
# These were received, and never handed to the other link.
_NEVER_SENT: Final = (
    "rx_invalid_drops",
    "tx_full_drops",
    "tx_fragment_drops",
    "rx_rule_drops",
    "rx_change_drops",
    "rx_policy_drops",
    "rx_host_drops",
    "tx_no_link_drops",
    "tx_mtu_drops",
)
KERNEL_QUEUE: Final = -1  # of a sample: what a program forwarded by itself


@dataclass(slots=True)
class PortSample:
    """Counters of one (link, queue); all monotonic.

    ``counters`` holds the worker's own (``PortCounters`` in ``_rings.pxd``); ``drops`` every
    reason, the kernel's among them; ``frames`` what is lent, by place.
    """

    link: str
    queue: int
    counters: dict[str, int]
    drops: dict[str, int]
    frames: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        return {
            "link": self.link,
            "queue": self.queue,
            **self.counters,
            "drops": {reason: count for reason, count in self.drops.items() if count},
        }


def kernel_drops(
    statistics: dict[str, int], *, is_zero_copy: bool = False, frags: bool = False
) -> dict[str, int]:
    """Turn XDP_STATISTICS into disjoint reasons.

    In copy mode ``rx_dropped`` counts what found the fill ring empty as well
    (``xsk_rcv``: both move by the same packet), so that part is taken out.  With ``frags`` no
    packet is too long, and ``rx_dropped`` alone counts one in several frames that found too few
    (``__xsk_rcv``).  In zero-copy mode an empty fill ring is counted when a driver looks for a
    frame, as it does before the first one is there; a packet that the NIC then has no room for is
    in its own counters.
    """
    fill_empty = 0 if is_zero_copy else statistics.get("rx_fill_ring_empty_descs", 0)
    if frags:
        fill_empty = max(fill_empty, statistics.get("rx_dropped", 0))
    return {
        "rx_fill_empty_drops": fill_empty,
        "rx_ring_full_drops": statistics.get("rx_ring_full", 0),
        "rx_oversize_drops": max(0, statistics.get("rx_dropped", 0) - fill_empty),
        "tx_invalid_drops": statistics.get("tx_invalid_descs", 0),
    }


def add(into: dict[str, int], more: dict[str, int]) -> None:
    """Add ``more`` to ``into``, key by key."""
    for key, value in more.items():
        into[key] = into.get(key, 0) + value


@dataclass(slots=True)
class Snapshot:
    """All ports at one moment (seconds, monotonic clock), and the frame ledger.

    ``flows``: of the data path ``hybrid``, how many there are, and what became of new ones.
    ``verify``: what ``l2fwd.verification.judge`` found, if packets are checked.
    """

    time: float
    ports: list[PortSample]
    frames: dict[str, int] = field(default_factory=dict)
    frame_count: int = 0
    flows: dict[str, int] = field(default_factory=dict)
    verify: dict[str, Any] = field(default_factory=dict)

    def total(self, counter: str) -> int:
        return sum(port.counters.get(counter, 0) for port in self.ports)

    def dropped(self, *reasons: str) -> int:
        return sum(port.drops.get(reason, 0) for port in self.ports for reason in reasons)

    @property
    def drops(self) -> dict[str, int]:
        """Drops by reason over all ports, without the zeros."""
        drops: dict[str, int] = {}
        for port in self.ports:
            add(drops, port.drops)
        return {reason: count for reason, count in drops.items() if count}

    @property
    def in_flight(self) -> int:
        """Packets handed to the kernel that it has not completed yet."""
        handed = self.total("tx_packets") - self.total("tx_completed")
        return handed - self.dropped("tx_abandoned_drops")

    @property
    def forwarded(self) -> int:
        """Packets the kernel has sent: completed, and not refused."""
        return self.total("tx_completed") - self.dropped("tx_busy_drops", "tx_invalid_drops")

    @property
    def answered(self) -> dict[str, int]:
        """Packets that were sent back as answers, by kind; empty where nothing answers."""
        kinds = [f"answered_{kind}" for kind in ANSWER_KINDS]
        if not any(kind in port.counters for port in self.ports for kind in kinds):
            return {}
        return {kind.removeprefix("answered_"): self.total(kind) for kind in kinds}

    @property
    def slow_path(self) -> int:
        """Packets that went through user space."""
        return sum(p.counters.get("rx_packets", 0) for p in self.ports if p.queue != KERNEL_QUEUE)

    @property
    def unaccounted(self) -> int:
        """Packets received or made, but neither sent, used nor dropped, plus missing frames.

        Zero, always.  Exact once the workers have stopped.
        """
        handled = sum(map(self.total, ("tx_packets", "host_packets", "consumed_packets")))
        handled += self.dropped(*_NEVER_SENT)
        missing_frames = self.frame_count - sum(self.frames.values())
        there = self.total("rx_packets") + self.total("generated_packets")
        return abs(there - handled) + abs(missing_frames)

    def as_dict(self) -> dict[str, Any]:
        return {
            "rx_packets": self.total("rx_packets"),
            "rx_bytes": self.total("rx_bytes"),
            "tx_packets": self.total("tx_packets"),
            "tx_bytes": self.total("tx_bytes"),
            "forwarded": self.forwarded,
            "slow_path": self.slow_path,
            "consumed": self.total("consumed_packets"),
            "generated": self.total("generated_packets"),
            **({"answered": self.answered} if self.answered else {}),
            "in_flight": self.in_flight,
            "drops": self.drops,
            **({"flows": self.flows} if self.flows else {}),
            **({"verify": self.verify} if self.verify else {}),
            "ports": [port.as_dict() for port in self.ports],
        }


@dataclass(frozen=True, slots=True)
class Rate:
    """Traffic of one port, or of all, over one interval."""

    name: str
    rx_pps: float
    tx_pps: float
    rx_bits_per_second: float
    tx_bits_per_second: float
    drops_pps: float
    drops: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "rx_pps": round(self.rx_pps, 1),
            "tx_pps": round(self.tx_pps, 1),
            "rx_mbit_per_second": round(self.rx_bits_per_second / 1e6, 3),
            "tx_mbit_per_second": round(self.tx_bits_per_second / 1e6, 3),
            "drops_pps": round(self.drops_pps, 1),
            "drops": self.drops,
        }


def rates(before: Snapshot, now: Snapshot) -> list[Rate]:
    """Return one rate per link, then the total; queues of a link are added up."""
    elapsed = max(now.time - before.time, 1e-9)
    links = list(dict.fromkeys(port.link for port in now.ports))
    per_link = [_rate(name, before, now, elapsed, {name}) for name in links]
    return [*per_link, _rate("total", before, now, elapsed, set(links))]


def _rate(name: str, before: Snapshot, now: Snapshot, elapsed: float, links: set[str]) -> Rate:
    counters, drops = _sums(now.ports, links)
    old_counters, old_drops = _sums(before.ports, links)

    def per_second(counter: str) -> float:
        return (counters.get(counter, 0) - old_counters.get(counter, 0)) / elapsed

    moved = {reason: count - old_drops.get(reason, 0) for reason, count in drops.items()}
    moved = {reason: count for reason, count in moved.items() if count}
    return Rate(
        name,
        per_second("rx_packets"),
        per_second("tx_packets"),
        8 * per_second("rx_bytes"),
        8 * per_second("tx_bytes"),
        sum(moved.values()) / elapsed,
        moved,
    )


def _sums(ports: Iterable[PortSample], links: set[str]) -> tuple[dict[str, int], dict[str, int]]:
    counters: dict[str, int] = {}
    drops: dict[str, int] = {}
    for port in ports:
        if port.link in links:
            add(counters, port.counters)
            add(drops, port.drops)
    return counters, drops


def drops_text(drops: dict[str, int]) -> str:
    """Name the drops, largest first: ``tx_full 12, rx_ring_full 3``; or a dash."""
    worst = sorted(drops.items(), key=lambda item: -item[1])
    return ", ".join(f"{reason.removesuffix('_drops')} {count:,}" for reason, count in worst) or "-"
