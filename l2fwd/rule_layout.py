"""One version of the rule table, as the maps of ``kern/rules.h`` have it.

A look-up that calls into the kernel costs a program more than all else it does.  So what fits is
put where none is needed: into arrays, at a link's ifindex or near a key's hash.
"""

import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from l2fwd.abi import VERDICTS
from l2fwd.rule_keys import key_masks
from l2fwd.rule_table import ACTION, MAX_MASKS, CompiledRules
from l2fwd.rules import Match, Rule

# Of kern/l2fwd.h
LINK_RULES: Final = 64
HASHED_WORDS: Final = 9
HASH_FACTOR: Final = 0x9E3779B97F4A7C15
NEAR_BITS: Final = 12
NEAR_PROBES: Final = 4

U32: Final = struct.Struct("=I")
U64: Final = struct.Struct("=Q")
RULE_KEY_HEAD: Final = struct.Struct("=II")  # struct rule_key: generation, mask_index
RULE_MASK_TAIL: Final = struct.Struct("=I4x")  # struct rule_mask: best_rank
RULE_TABLE: Final = struct.Struct("=III")  # mask_count, miss_verdict, is_near

_NO_LINK_RULE: Final = bytes(U32.size + ACTION.size)  # struct link_rule: in_ifindex, action
_WORDS: Final = struct.Struct(f"={HASHED_WORDS}Q")
_FACTORS: Final = tuple(pow(HASH_FACTOR, i + 1, 1 << 64) for i in range(HASHED_WORDS))

Maps = dict[str, dict[bytes, bytes]]


def hash_key(key: bytes) -> int:
    """Return the 64-bit hash of a struct rule_key or flow_key, as kern/l2fwd.h has it."""
    words: tuple[int, ...] = _WORDS.unpack(key)
    pairs = zip(words, _FACTORS, strict=True)
    return sum((word ^ word >> 32) * factor for word, factor in pairs) % (1 << 64)


def flow_place(key: bytes) -> bytes:
    """Return where the map flows has a struct flow_key: its hash."""
    return U64.pack(hash_key(key))


def near_places(keys: Iterable[bytes], taken: Collection[int]) -> dict[int, bytes] | None:
    """Give each struct rule_key one of the places where the kernel looks for it.

    Returns
    -------
    dict of int to bytes, or None
        Index in the map near_rules; None if a key finds all of its places taken.
    """
    found: dict[int, bytes] = {}
    for key in keys:
        first = hash_key(key) >> (64 - NEAR_BITS)
        probes = ((first + i) % (1 << NEAR_BITS) for i in range(NEAR_PROBES))
        place = next((each for each in probes if each not in taken and each not in found), None)
        if place is None:
            return None
        found[place] = key
    return found


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
    indexes = {mask: index for index, (mask, _) in enumerate(compiled.masks)}
    found = [_NO_LINK_RULE] * LINK_RULES
    for name, ifindex in ifindexes.items():
        first = next((rule for rule in rules if rule.match.in_link in (name, None)), None)
        if first and first.match == Match(in_link=first.match.in_link) and not first.action.dec_ttl:
            ((mask, key),) = key_masks(first, ifindexes)
            action = compiled.entries[indexes[mask], key]
            found[ifindex % LINK_RULES] = U32.pack(ifindex) + action
    return found


def version_maps(
    rules: Sequence[Rule],
    ifindexes: Mapping[str, int],
    compiled: CompiledRules,
    generation: int,
    taken: Collection[int],
    miss: str,
) -> Maps:
    """Return what a version adds to each map.

    Parameters
    ----------
    rules : sequence of Rule
        In order of precedence.
    ifindexes : mapping of str to int
    compiled : CompiledRules
        Of the same rules.
    generation : int
    taken : collection of int
        Places in near_rules that are in use.
    miss : str
        ``pass``, ``drop`` or ``user``.
    """
    slot = generation & 1
    entries = {
        RULE_KEY_HEAD.pack(generation, index) + key: action
        for (index, key), action in compiled.entries.items()
    }
    near = near_places(entries, taken)
    table = RULE_TABLE.pack(len(compiled.masks), VERDICTS[miss], near is not None)
    return {
        "masks": {
            U32.pack(place): mask + RULE_MASK_TAIL.pack(best_rank)
            for place, (mask, best_rank) in enumerate(compiled.masks, slot * MAX_MASKS)
        },
        "near_rules": {U32.pack(at): key + entries[key] for at, key in (near or {}).items()},
        "rules": entries if near is None else {},
        "link_rules": {
            U32.pack(place): rule
            for place, rule in enumerate(link_rules(rules, ifindexes, compiled), slot * LINK_RULES)
        },
        "tables": {U32.pack(slot): table},
    }
