"""Data path ``redirect``: rule look-up, change and XDP_REDIRECT, all in the kernel.

One program per link, so that each has counters of its own; the maps that hold rules and links
are those of the first.  This process only watches, counts, and changes the rules.
"""

import contextlib
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Final

from l2fwd import bpf, link
from l2fwd.config import ForwardConfig
from l2fwd.datapath import Event, Notify
from l2fwd.datapath.linked import LinkedPath, stop_check
from l2fwd.datapath.side import Side
from l2fwd.errors import ConfigError, KernelError
from l2fwd.rule_maps import SHARED_MAPS, RuleMaps, map_sizes
from l2fwd.rules import Action, Match, Rule, RuleTable
from l2fwd.stats import PortSample, Snapshot

# Counter of kern/l2fwd.h -> drop reason.
_DROPS: Final = {
    "rule_drops": "rx_rule_drops",
    "change_drops": "rx_change_drops",
    "no_link_drops": "tx_no_link_drops",
    "mtu_drops": "tx_mtu_drops",
}
_U32: Final = struct.Struct("=I")


class RedirectPath(LinkedPath):
    """Forwards between the links of ``config`` and of its rules, in the kernel.

    Parameters
    ----------
    config : ForwardConfig
    notify : callable
        Gets one dict per event: ``warning``, ``program_lost``, ``program_attached``.

    Raises
    ------
    ConfigError
        If a link is unknown or down, or the rules do not fit.
    """

    def __init__(self, config: ForwardConfig, notify: Notify) -> None:
        _refuse_user(config.rules)
        self.config = config
        self._programs: list[bpf.Program] = []
        names = dict.fromkeys((config.in_link, config.out_link, *config.rules.links()))
        super().__init__(tuple(Side(name, config, self._make_program) for name in names), notify)
        self._table = config.rules
        self._max_rules = map_sizes(len(config.rules))["hits"]
        self._maps: RuleMaps | None = None
        self._ifindexes: dict[str, int] = {}
        self._undo = ExitStack()
        self._final: Snapshot | None = None

    def _make_program(self, found: link.Link) -> bpf.Program:
        shared = self._programs[0] if self._programs else None
        if shared is None:
            program = bpf.Program("redirect", map_sizes(len(self.config.rules)))
        else:
            program = bpf.Program("redirect", shared=shared, shared_maps=SHARED_MAPS)
        program.load()
        self._programs.append(program)
        return program

    def start(self, is_stopping: Callable[[], bool] = lambda: False) -> Event:
        """Load, put the rules in force, and attach to every link; all or nothing."""
        check = stop_check(is_stopping)
        with ExitStack() as undo:
            for side in self.sides:
                undo.callback(side.close)
                side.program = self._make_program(side.link)
                check()
            self._maps = RuleMaps(self._programs[0], self._max_rules)
            self._refresh()
            for side in self.sides:
                self._warn(side.attach())
            for side in self.sides:
                self._wait_for_carrier(side, check)
            self._undo = undo.pop_all()
        links = [
            {
                "link": side.name,
                "attach_mode": side.attachment.mode if side.attachment else "none",
                "rules": len(self._table),
            }
            for side in self.sides
        ]
        return {"sockets": [], "links": links}

    def apply(self, rules: RuleTable) -> None:
        """Put other rules in force: every packet sees the old ones, or the new ones.

        Raises
        ------
        ConfigError
            If a rule names a link without our program, or the rules do not fit; the old ones
            stay.
        """
        _refuse_user(rules)
        before, self._table = self._table, rules
        try:
            self._put_rules()
        except Exception:
            self._table = before
            raise

    def _put_rules(self) -> None:
        assert self._maps is not None
        self._maps.apply(self._ranked(), self._ifindexes, self.config.miss)

    def _ranked(self) -> Sequence[Rule]:
        """Return the rules by rank; without any, those of a plain pair of links."""
        if len(self._table):
            return self._table.ranked()
        there = self._pair_rule(self.config.in_link, self.config.out_link, is_out=True)
        if self.config.one_way:
            return (there,)
        return (there, self._pair_rule(self.config.out_link, self.config.in_link, is_out=False))

    def _pair_rule(self, source: str, target: str, *, is_out: bool) -> Rule:
        rewrite = self.config.rewrite
        dst_mac = rewrite.dst_mac if is_out else None
        action = Action(kind="out", out_link=target, swap_mac=rewrite.swap_mac, set_dst_mac=dst_mac)
        return Rule(Match(in_link=source), action)

    def _refresh(self) -> None:
        """Tell the maps what the links are called now.

        A link made anew has a new ifindex; the old one left the map ``links`` with the link.
        """
        self._ifindexes = {side.name: side.link.ifindex for side in self.sides}
        keys = [_U32.pack(ifindex) for ifindex in self._ifindexes.values()]
        self._programs[0].update("links", dict(zip(keys, keys, strict=True)))
        self._put_rules()

    def _open_again(self) -> None:
        self._refresh()

    def sample(self) -> Snapshot:
        """Read all counters."""
        if self._final is not None:
            return self._final
        return Snapshot(time.monotonic(), [self._sample(side) for side in self.sides])

    def _sample(self, side: Side) -> PortSample:
        counters = dict.fromkeys(
            ("rx_packets", "rx_bytes", "tx_packets", "tx_completed", "tx_bytes", "passed_packets"),
            0,
        )
        drops: dict[str, int] = {}
        if side.program is not None:
            with contextlib.suppress(KernelError):
                found = side.program.counters()
                drops = {reason: found[name] for name, reason in _DROPS.items()}
                sent = found["redirected_packets"]
                counters |= {
                    "rx_packets": sent + sum(drops.values()),
                    "rx_bytes": found["redirected_bytes"],
                    "tx_packets": sent,
                    "tx_completed": sent,
                    "tx_bytes": found["redirected_bytes"],
                    "passed_packets": found["passed_packets"],
                }
        return PortSample(side.name, 0, counters, drops, {})

    def hits(self) -> dict[Rule, tuple[int, int]]:
        """Return packets and bytes that each rule has taken."""
        return {} if self._maps is None else self._maps.hits()

    def stop(self) -> None:
        """Detach and close."""
        for side in self.sides:
            side.detach()
        if self._final is None:
            self._final = self.sample()
        self._undo.close()


def _refuse_user(rules: RuleTable) -> None:
    for rule in rules:
        if rule.action.kind == "user":
            raise ConfigError(f"'{rule}': user needs a program to decide; redirect has none")
