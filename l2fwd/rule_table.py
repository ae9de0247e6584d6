"""Rules made into what a tuple-space search needs: masks in order, and entries under them.

One form for every compiler.  A mask is tried only while it can still hold a rule that ranks
above the best found; under each, one look-up of the masked key decides.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Final

from l2fwd.abi import CHANGES, VERDICTS
from l2fwd.errors import ConfigError
from l2fwd.rule_keys import key_masks
from l2fwd.rules import Action, Rule

MAX_MASKS: Final = 64  # MAX_MASKS in kern/l2fwd.h

# struct rule_action: rank, rule, out_ifindex, verdict, changes, vlan, dst_mac, src_mac
ACTION: Final = Struct("=IIIHHH6s6s2x")


@dataclass(frozen=True, slots=True)
class CompiledRules:
    """A rule table for one set of links.

    Attributes
    ----------
    masks : tuple of (bytes, int)
        64 bytes as ``rule_keys.KEY``, and the best rank under it; ascending by rank.
    entries : dict of (int, bytes) to bytes
        (Place of the mask, masked key) to struct rule_action.
    """

    masks: tuple[tuple[bytes, int], ...]
    entries: dict[tuple[int, bytes], bytes]


def compile_rules(
    rules: Iterable[Rule],
    ifindexes: Mapping[str, int],
    max_entries: int,
    rule_ids: Sequence[int] | None = None,
) -> CompiledRules:
    """Compile rules that are in order of precedence (``RuleTable.ranked``).

    Parameters
    ----------
    rules : iterable of Rule
    ifindexes : mapping of str to int
    max_entries : int
        That the search holds.
    rule_ids : sequence of int, optional
        Where each rule counts its hits; its rank where not given.

    Raises
    ------
    ConfigError
        If a rule names a link that is not in ``ifindexes``, or there are more masks or
        entries than the search holds; the message tells how many.
    """
    masks: dict[bytes, tuple[int, int]] = {}  # mask -> (place, best rank)
    entries: dict[tuple[int, bytes], bytes] = {}
    for rank, rule in enumerate(rules):
        rule_id = rank if rule_ids is None else rule_ids[rank]
        action = _pack(rule.action, rank, rule_id, ifindexes)
        for mask, key in key_masks(rule, ifindexes):
            # In order of rank, so a mask's first rule is its best, and so is a key's.
            place, _ = masks.setdefault(mask, (len(masks), rank))
            entries.setdefault((place, key), action)
    if len(masks) > MAX_MASKS:
        raise ConfigError(
            f"the rules need {len(masks)} different masks, {MAX_MASKS} are possible; use fewer "
            "combinations of fields, prefix lengths and port ranges"
        )
    if len(entries) > max_entries:
        raise ConfigError(
            f"the rules need {len(entries)} table entries, {max_entries} are possible; port "
            "ranges take several each"
        )
    ordered = tuple((mask, best) for mask, (_, best) in masks.items())
    return CompiledRules(ordered, entries)


def _pack(action: Action, rank: int, rule_id: int, ifindexes: Mapping[str, int]) -> bytes:
    out_ifindex = 0
    if action.out_link is not None:
        if action.out_link not in ifindexes:
            raise ConfigError(f"out must be one of {', '.join(ifindexes)}, got {action.out_link!r}")
        out_ifindex = ifindexes[action.out_link]
    # False, None: not asked for.  VID 0 is never pushed, and no MAC is empty.
    changes = sum(bit for name, bit in CHANGES.items() if getattr(action, name))
    return ACTION.pack(
        rank,
        rule_id,
        out_ifindex,
        VERDICTS[action.kind],
        changes,
        action.push_vlan or 0,
        action.set_dst_mac or bytes(6),
        action.set_src_mac or bytes(6),
    )
