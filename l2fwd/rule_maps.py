"""The rule table in the kernel: whole versions, one in force at a time.

The maps hold two versions, told apart by a generation in every key.  An update fills the other
one, switches by one store, waits until no program can still be in the old one, and clears it:
every packet sees one version, whole.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Final

from l2fwd.bpf import Program, wait_for_running_programs
from l2fwd.errors import ConfigError
from l2fwd.rule_layout import U32, Maps, version_maps
from l2fwd.rule_table import CompiledRules, compile_rules
from l2fwd.rules import Rule

MAX_ENTRIES: Final = 1 << 17  # of one version
SHARED_MAPS: Final = (
    "generation", "tables", "masks", "link_rules", "near_rules", "rules", "hits", "links"
)  # fmt: skip


def map_sizes(rule_count: int) -> dict[str, int]:
    """Return sizes of the maps that leave room for as many rules again."""
    return {"rules": 2 * MAX_ENTRIES, "hits": max(1024, 2 * rule_count)}


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
        self._next = 1  # generation
        self._near: set[int] = set()  # places of the version in force
        self._keys: list[bytes] = []  # and its keys in the map rules
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
        generation = self._next
        self._next += 2  # in case this one fails: in the same half, and strange to its entries
        version = version_maps(rules, ifindexes, compiled, generation, self._near, miss)
        self._write(version, generation)
        self._next = generation + 1
        old, self._keys = self._keys, list(version["rules"])
        self._near = {U32.unpack(place)[0] for place in version["near_rules"]}
        self._ids = ids
        self._used.update(ids.values())
        wait_for_running_programs()
        self._program.delete("rules", old)
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

    def _write(self, version: Maps, generation: int) -> None:
        """Write a version and put it in force, or clear what was written of it."""
        with ExitStack() as undo:
            undo.callback(self._program.delete, "rules", list(version["rules"]))
            for name, entries in version.items():
                if entries:
                    self._program.update(name, entries)
            self._program.update("generation", {U32.pack(0): U32.pack(generation)})
            undo.pop_all()
