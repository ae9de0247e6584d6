"""The rules of a job: whole versions, in the maps that all its programs share."""

import struct
from collections.abc import Sequence
from typing import Final

from l2fwd import bpf, link
from l2fwd.abi import ETHERNET_MTU
from l2fwd.config import ForwardConfig
from l2fwd.datapath.side import Side
from l2fwd.errors import ConfigError
from l2fwd.rule_maps import MAX_ENTRIES, SHARED_MAPS, RuleMaps, map_sizes
from l2fwd.rule_table import CompiledRules
from l2fwd.rules import Action, Match, Rule, RuleTable

_U32: Final = struct.Struct("=I")


class Rulebook:
    """Makes the programs of a job, one per link, and keeps their rules.

    Each program has counters of its own; rules and links are in the maps of the first.

    Parameters
    ----------
    config : ForwardConfig
    name : str
        Of the BPF object.
    sizes : dict of str to int
        Of maps, beside those of the rules.
    shared : tuple of str
        Maps that all programs share, beside those of the rules.
    per_queue : tuple of str
        Maps with an entry for each RX queue of the link.
    """

    def __init__(
        self,
        config: ForwardConfig,
        name: str,
        *,
        sizes: dict[str, int] | None = None,
        shared: tuple[str, ...] = (),
        per_queue: tuple[str, ...] = (),
    ) -> None:
        self.config = config
        self.table = config.rules
        self.ifindexes: dict[str, int] = {}
        self.programs: list[bpf.Program] = []
        # Routes come and go while it runs.
        room = map_sizes(MAX_ENTRIES // 2 if config.routed else len(config.rules))
        self.max_rules = room["hits"]
        self.compiled = CompiledRules((), {})
        self._name = name
        self._sizes = room | (sizes or {})
        self._shared = SHARED_MAPS + shared
        self._per_queue = per_queue
        self._maps: RuleMaps | None = None

    def make_program(self, found: link.Link) -> bpf.Program:
        """Load the program for a link."""
        sizes = dict.fromkeys(self._per_queue, max(found.rx_queue_count, 1))
        if self.programs:
            program = bpf.Program(
                self._name, sizes, shared=self.programs[0], shared_maps=self._shared
            )
        else:
            program = bpf.Program(self._name, self._sizes | sizes)
        program.load()
        if not self.programs:
            self._maps = RuleMaps(program, self.max_rules)
        self.programs.append(program)
        return program

    def refresh(self, sides: Sequence[Side]) -> None:
        """Tell the maps what the links are now, and put the rules in force.

        A link made anew has a new ifindex; the old one left the map ``links`` with the link.
        """
        self.ifindexes = {side.name: side.link.ifindex for side in sides}
        keys = [_U32.pack(ifindex) for ifindex in self.ifindexes.values()]
        self.programs[0].update("links", dict(zip(keys, keys, strict=True)))
        for side in sides:
            if side.program is not None:
                is_jumbo = side.link.mtu > ETHERNET_MTU
                side.program.update("jumbo", {bytes(4): _U32.pack(is_jumbo)})
        self._put()

    def apply(self, rules: RuleTable) -> None:
        """Put other rules in force: every packet sees the old ones, or the new ones.

        Raises
        ------
        ConfigError
            If a rule names a link without our program, or the rules do not fit; the old ones
            stay.
        """
        self.config.check_policy(rules)
        before, self.table = self.table, rules
        try:
            self._put()
        except Exception:
            self.table = before
            raise

    def _put(self) -> None:
        if self._maps is None:
            raise ConfigError("rules are put in force by start first")
        self.compiled = self._maps.apply(self._ranked(), self.ifindexes, self.config.miss)

    def _ranked(self) -> Sequence[Rule]:
        """Return the rules by rank; without any, those of a plain pair of links.

        But where a policy is asked about what no rule takes, no rules means all of it; and no
        routes mean that the host gets all.
        """
        if len(self.table) or self.config.miss == "user" or self.config.routed:
            return self.table.ranked()
        there = self._pair_rule(self.config.in_link, self.config.out_link, is_out=True)
        if self.config.one_way:
            return (there,)
        return (there, self._pair_rule(self.config.out_link, self.config.in_link, is_out=False))

    def _pair_rule(self, source: str, target: str, *, is_out: bool) -> Rule:
        rewrite = self.config.rewrite
        dst_mac = rewrite.dst_mac if is_out else None
        action = Action(kind="out", out_link=target, swap_mac=rewrite.swap_mac, set_dst_mac=dst_mac)
        return Rule(Match(in_link=source), action)

    def hits(self) -> dict[Rule, tuple[int, int]]:
        """Return packets and bytes that the programs have counted for each rule."""
        return {} if self._maps is None else self._maps.hits()

    def ids(self) -> dict[Rule, int]:
        """Return where each rule counts its hits."""
        return {} if self._maps is None else self._maps.ids()
