"""The rule table in the kernel: whole versions, one in force at a time.

The maps hold two versions, told apart by a generation in every key.  An update fills the other
one, switches by one store, waits until no program can still be in the old one, and clears it:
every packet sees one version, whole.
"""

import struct
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Final

from l2fwd.abi import VERDICTS
from l2fwd.bpf import Program, wait_for_running_programs
from l2fwd.errors import ConfigError
from l2fwd.rule_keys import key_masks
from l2fwd.rule_table import ACTION, MAX_MASKS, CompiledRules, compile_rules
from l2fwd.rules import Match, Rule

MAX_ENTRIES: Final = 1 << 17  # of one version
LINK_RULES: Final = 64  # LINK_RULES in kern/l2fwd.h
SHARED_MAPS: Final = ("generation", "tables", "masks", "link_rules", "rules", "hits", "links")

_U32: Final = struct.Struct("=I")
_KEY_HEAD: Final = struct.Struct("=II")  # struct rule_key: generation, mask_index
_NO_LINK_RULE: Final = bytes(_U32.size + ACTION.size)  # struct link_rule: in_ifindex, action


def map_sizes(rule_count: int) -> dict[str, int]:
    """Return sizes of the maps that leave room for as many rules again."""
    return {"rules": 2 * MAX_ENTRIES, "hits": max(1024, 2 * rule_count)}


def link_rules(
    rules: Sequence[Rule], ifindexes: Mapping[str, int], compiled: CompiledRules
) -> list[bytes]:
    """Return the links that need no look at a packet, as struct link_rule by ifindex.

    Those are the links whose first rule takes every packet.  To leave one out is right, too:
    the rules are then looked up.

    Parameters
    ----------
    rules : sequence of Rule
        In order of precedence.
    ifindexes : mapping of str to int
    compiled : CompiledRules
        Of the same rules.

    Returns
    -------
    list of bytes
        LINK_RULES of them.
    """
    places = {mask: place for place, (mask, _) in enumerate(compiled.masks)}
    found = [_NO_LINK_RULE] * LINK_RULES
    for name, ifindex in ifindexes.items():
        first = next((rule for rule in rules if rule.match.in_link in (name, None)), None)
        if first and first.match == Match(in_link=first.match.in_link) and not first.action.dec_ttl:
            ((mask, key),) = key_masks(first, ifindexes)
            action = compiled.entries[places[mask], key]
            found[ifindex % LINK_RULES] = _U32.pack(ifindex) + action
    return found


class RuleMaps:
    """Keeps a rule table in the maps of a loaded program.

    Parameters
    ----------
    program : Program
        Of an object with the maps of ``kern/rules.h``.
    max_rules : int
        Size of its map ``hits``.
    """

    def __init__(self, program: Program, max_rules: int) -> None:
        self._program = program
        self._max_rules = max_rules
        self._generation = 0
        self._keys: list[bytes] = []
        self._ids: dict[Rule, int] = {}  # where each rule of the table counts its hits
        self._used: set[int] = set()
        self._before: dict[int, list[int]] = {}  # what an id counted for earlier rules

    def apply(
        self, rules: Sequence[Rule], ifindexes: Mapping[str, int], miss: str
    ) -> CompiledRules:
        """Put a new table in force, whole, and return it; or raise, and leave the old one.

        Parameters
        ----------
        rules : sequence of Rule
            In order of precedence.
        ifindexes : mapping of str to int
        miss : str
            ``pass``, ``drop``, ``user``: what happens to packets that no rule takes.

        Raises
        ------
        ConfigError
            If it does not fit.
        """
        ids = self._assign(rules)
        compiled = compile_rules(rules, ifindexes, MAX_ENTRIES, [ids[rule] for rule in rules])
        for rule, rule_id in ids.items():
            if rule not in self._ids and rule_id in self._used:
                self._before[rule_id] = self._program.sums("hits", rule_id, 2)
        at_links = link_rules(rules, ifindexes, compiled)
        generation = self._generation + 1
        keys = self._fill(compiled, at_links, miss, generation)
        self._program.update("generation", {_U32.pack(0): _U32.pack(generation)})
        self._generation = generation
        old, self._keys = self._keys, keys
        wait_for_running_programs()
        self._program.delete("rules", old)
        self._ids = ids
        self._used.update(ids.values())
        return compiled

    def ids(self) -> dict[Rule, int]:
        """Return where each rule counts its hits."""
        return dict(self._ids)

    def _assign(self, rules: Sequence[Rule]) -> dict[Rule, int]:
        """Give each rule an id; one that was there keeps its own, and so its hits."""
        ids = {rule: self._ids[rule] for rule in rules if rule in self._ids}
        # Not those of rules that go, either: the table in force still counts on them.
        taken = set(self._ids.values())
        free = (rule_id for rule_id in range(self._max_rules) if rule_id not in taken)
        for rule in rules:
            if rule not in ids:
                rule_id = next(free, None)
                if rule_id is None:
                    raise ConfigError(
                        f"{len(rules)} rules beside the {len(taken)} in force, there is room for "
                        f"{self._max_rules} in all; start anew for so many"
                    )
                ids[rule] = rule_id
        return ids

    def hits(self) -> dict[Rule, tuple[int, int]]:
        """Return packets and bytes that each rule of the table has taken."""
        found = {}
        for rule, rule_id in self._ids.items():
            packets, size = self._program.sums("hits", rule_id, 2)
            before = self._before.get(rule_id, [0, 0])
            found[rule] = (packets - before[0], size - before[1])
        return found

    def _fill(
        self, compiled: CompiledRules, at_links: list[bytes], miss: str, generation: int
    ) -> list[bytes]:
        """Write the next version beside the one in force; return its keys."""
        slot = generation & 1
        masks = {
            _U32.pack(slot * MAX_MASKS + place): mask + _U32.pack(best) + bytes(4)
            for place, (mask, best) in enumerate(compiled.masks)
        }
        if masks:
            self._program.update("masks", masks)
        table = struct.pack("=II", len(compiled.masks), VERDICTS[miss])
        links = {_U32.pack(slot * LINK_RULES + i): at for i, at in enumerate(at_links)}
        self._program.update("link_rules", links)
        self._program.update("tables", {_U32.pack(slot): table})
        keys = [_KEY_HEAD.pack(generation, place) + key for place, key in compiled.entries]
        if keys:
            entries = dict(zip(keys, compiled.entries.values(), strict=True))
            with ExitStack() as undo:
                undo.callback(self._program.delete, "rules", keys)
                self._program.update("rules", entries)
                undo.pop_all()
        return keys
