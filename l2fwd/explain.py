"""Which rule takes a frame, and why: the verdict of the data path's own classifier, in words.

The judge is ``Classifier.decide``.  Why a rule ranked above does not take the frame is asked of
``key_masks``, a field more at a time: nothing here reads the language a second time.
"""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final

from l2fwd._classify import Classifier
from l2fwd.errors import ConfigError
from l2fwd.pcap import read_capture
from l2fwd.rule_keys import HAS_PORTS, KEY, NO_VLAN, key_masks
from l2fwd.rule_table import CompiledRules, compile_rules
from l2fwd.rule_words import ethertype_word, mac_word, proto_word, vlan_word
from l2fwd.rules import Action, Match, Rule, RuleTable

MAX_REFUSALS: Final = 10  # told of the rules ranked above the one that takes the frame
MISSES: Final = ("pass", "drop", "user")

_MAX_ENTRIES: Final = 1 << 32  # the classifier counts them in 32 bits
_ETHERNET_HEADER_BYTES: Final = 14
_HEX: Final = re.compile(r"[0-9a-fA-F]*")
_ANY_ACTION: Final = Action(kind="drop")


@dataclass(frozen=True, slots=True)
class Place:
    """A rule in its table: rank from 0, name or "", file and line, canonical text."""

    rank: int
    name: str
    where: str
    text: str

    def __str__(self) -> str:
        return f"rank {self.rank}, {self.where}: {self.text}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A rule that does not take the frame, and its first field that is not as the frame's.

    Attributes
    ----------
    rule : Place
    field, wanted : str
        Words of the rule; ``wanted`` is empty where it has no ``dst_mac``, but would need one.
    got : str
        What the frame shows, "none" where it has nothing of the kind.
    """

    rule: Place
    field: str
    wanted: str
    got: str

    def __str__(self) -> str:
        if not self.wanted:
            return f"{self.rule}  # {self.got} is link-local, and must be named"
        return f"{self.rule}  # {self.field} is {self.got}"


@dataclass(frozen=True, slots=True)
class Explanation:
    """What becomes of one frame, and why.

    Attributes
    ----------
    seen : dict of str to str
        What the frame shows, in the words of a rule, less the fields that it does not have.
    verdict : str
        "out", "drop", "pass" or "user".
    out_link : str or None
    rule : Place or None
        What takes the frame; None if no rule does.
    why : str
        Empty if the verdict is the rule's own.
    refusals : tuple of Refusal
        Of the rules ranked above, the first ``MAX_REFUSALS``.
    more : int
        How many rules above there are besides.
    before, after : bytes
        The frame as it came, and as it leaves.
    """

    seen: dict[str, str]
    verdict: str
    out_link: str | None
    rule: Place | None
    why: str
    refusals: tuple[Refusal, ...]
    more: int
    before: bytes
    after: bytes

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON, the frame in hex."""
        return asdict(self) | {"before": self.before.hex(), "after": self.after.hex()}

    def lines(self) -> Iterator[str]:
        """Yield it as text."""
        yield f"shows  {' '.join(f'{field} {word}' for field, word in self.seen.items())}"
        for refusal in self.refusals:
            yield f"not    {refusal}"
        if self.more:
            yield f"       and {self.more:,} more"
        if self.rule is not None:
            yield f"takes  {self.rule}"
        if self.why:
            yield f"why    {self.why}"
        yield f"then   {self.verdict}{f' {self.out_link}' if self.out_link else ''}"
        if self.after != self.before:
            yield from _changed(self.before, self.after)


class Explainer:
    """Explains frames by one table.

    Parameters
    ----------
    rules : RuleTable
    miss : str
        What becomes of a frame that no rule takes: "pass", "drop" or "user".
    in_link : str, optional
        Where the frames come from; if not given, the first link that an ``in`` names.

    Raises
    ------
    ConfigError
        If ``miss`` or ``in_link`` is unknown, or the table is too large.
    """

    def __init__(self, rules: RuleTable, miss: str = "pass", in_link: str | None = None) -> None:
        if miss not in MISSES:
            raise ConfigError(f"miss must be one of {', '.join(MISSES)}, got {miss!r}")
        named = [rule.match.in_link for rule in rules if rule.match.in_link is not None]
        if in_link is not None and named and in_link not in rules.links():
            raise ConfigError(f"in must be one of {', '.join(rules.links())}, got {in_link!r}")
        self._in_link = named[0] if named and in_link is None else in_link
        self._miss = miss
        self._rules = rules
        self._ranks = rules.ranks()
        self._ifindexes = _made_up(rules)
        compiled = compile_table(rules)
        self._classifier = Classifier(compiled.masks, compiled.entries, miss)

    def explain(self, frame: bytes) -> Explanation:
        """Tell what becomes of an Ethernet frame, given without its checksum."""
        in_ifindex = self._ifindexes.get(self._in_link or "", 0)
        key = self._classifier.key(frame, in_ifindex)
        verdict, after, rank = self._classifier.decide(frame, in_ifindex)
        seen = {} if self._in_link is None else {"in": self._in_link}
        refusals: tuple[Refusal, ...] = ()
        above = 0
        if key is not None:
            seen |= shown(key)
            above = len(self._rules) if rank is None else rank
            told = range(min(above, MAX_REFUSALS))
            refusals = tuple(self._refusal(other, key, seen) for other in told)
        return Explanation(
            seen=seen,
            verdict=verdict,
            out_link=None if rank is None or verdict != "out" else self._rule(rank).action.out_link,
            rule=None if rank is None else self._place(rank),
            why=self._why(frame, verdict, rank),
            refusals=refusals,
            more=above - len(refusals),
            before=frame,
            after=after,
        )

    def _rule(self, rank: int) -> Rule:
        return self._rules[self._ranks[rank]]

    def _place(self, rank: int) -> Place:
        rule = self._rule(rank)
        return Place(rank, rule.name, self._rules.where(self._ranks[rank]), str(rule))

    def _why(self, frame: bytes, verdict: str, rank: int | None) -> str:
        if len(frame) < _ETHERNET_HEADER_BYTES:
            return f"shorter than an Ethernet header ({len(frame)} bytes): no rule can take it"
        if rank is None:
            return f"no rule takes it: the miss policy is {self._miss}"
        if verdict != self._rule(rank).action.kind:
            return "its TTL or hop limit is spent: the host answers for it"
        return ""

    def _refusal(self, rank: int, key: bytes, seen: dict[str, str]) -> Refusal:
        match, place = self._rule(rank).match, self._place(rank)
        if match.dst_mac is None and not self._takes(Match(), key):
            return Refusal(place, "dst_mac", "", seen["dst_mac"])
        words = str(match).split()
        # With dst_mac first, as all that follows depends on it if it is link-local.
        fields = sorted(zip(words[::2], words[1::2], strict=False), key=lambda x: x[0] != "dst_mac")
        known: dict[str, Any] = {}
        for field, word in fields:
            attribute = "in_link" if field == "in" else field
            known[attribute] = getattr(match, attribute)
            if not self._takes(Match(**known), key):
                return Refusal(place, field, word, seen.get(field, "none"))
        raise AssertionError(f"{place} takes the frame, but the search did not find it")

    def _takes(self, match: Match, key: bytes) -> bool:
        number = int.from_bytes(key)
        return any(
            number & int.from_bytes(mask) == int.from_bytes(value)
            for mask, value in key_masks(Rule(match, _ANY_ACTION), self._ifindexes)
        )


def shown(key: bytes) -> dict[str, str]:
    """Return what a key of 64 bytes shows, in the words of a rule; not the link.

    >>> shown(bytes(16) + bytes.fromhex("08060007ffff") + bytes(42))["vlan"]
    '7'
    """
    _, dst_mac, src_mac, ethertype, *tags, proto, version, sport, dport, flags, src, dst = (
        KEY.unpack(key)
    )
    seen = {
        "src_mac": mac_word(src_mac),
        "dst_mac": mac_word(dst_mac),
        "ethertype": ethertype_word(ethertype),
        "vlan": vlan_word(tuple(vid for vid in tags if vid != NO_VLAN)),
    }
    if version:
        seen["proto"] = proto_word(proto)
        for field, address in (("src", src), ("dst", dst)):
            seen[field] = str(IPv4Address(address[:4]) if version == 4 else IPv6Address(address))
    if flags & HAS_PORTS:
        seen |= {"sport": str(sport), "dport": str(dport)}
    return seen


def read_frames(source: str) -> Iterator[tuple[bytes, int]]:
    """Yield frames and how many bytes each had on the wire.

    Parameters
    ----------
    source : str
        Hex bytes of one frame, colons and spaces between them allowed; else the path of a
        capture file, pcap or pcapng.

    Raises
    ------
    ConfigError
        If it is neither.
    """
    digits = re.sub(r"[\s:]", "", source)
    if not _HEX.fullmatch(digits):
        yield from read_capture(source)
        return
    if not digits or len(digits) % 2:
        raise ConfigError(
            f"FRAME must be hex bytes, two digits each, or a capture file, got {len(digits)} digits"
        )
    yield bytes.fromhex(digits), len(digits) // 2


def compile_table(rules: RuleTable) -> CompiledRules:
    """Compile a table for links that need not be here.

    Raises
    ------
    ConfigError
        If it has too many masks.
    """
    return compile_rules(rules.ranked(), _made_up(rules), _MAX_ENTRIES)


def _made_up(rules: RuleTable) -> dict[str, int]:
    return {link: ifindex for ifindex, link in enumerate(rules.links(), 1)}


def _changed(before: bytes, after: bytes) -> Iterator[str]:
    """Yield both without the end that they share; no header is shared."""
    shared, limit = 0, min(len(before), len(after)) - _ETHERNET_HEADER_BYTES
    while shared < limit and before[-1 - shared] == after[-1 - shared]:
        shared += 1
    for word, frame in (("was", before), ("is", after)):
        head = frame[: len(frame) - shared].hex(" ")
        yield f"{word:<5}  {head}{f' and {shared} bytes' if shared else ''}"
