"""The rule language: values, the one text form, and precedence.

Text
----
One rule is one line.  Words are separated by white space and are case-sensitive; hex digits are
not.  A word that starts with ``#`` begins a comment that runs to the end of the line::

    rule   = [NAME ":"] ["priority" 0..65535] match "->" action
    match  = "any" | field {field}            each field once, in any order
    field  = "in" LINK
           | "src_mac" MAC | "dst_mac" MAC    any six bytes, aa:bb:cc:dd:ee:ff or with "-"
           | "ethertype" TYPE                 a name of ETHERTYPES, or 0x0600..0xffff
           | "vlan" ("none" | VID | VID "." VID)         VID is 0..4094
           | "proto" PROTO                    a name of PROTOS, or 0..255
           | "src" PREFIX | "dst" PREFIX      IPv4 or IPv6 address, or prefix without host bits
           | "sport" PORTS | "dport" PORTS    PORT or PORT-PORT (both ends included), 0..65535
    action = "drop" | "pass" | "user" | "out" LINK {rewrite}
    rewrite = "swap_mac" | "set_src_mac" MAC | "set_dst_mac" MAC | "pop_vlan" | "push_vlan" VID
           | "dec_ttl"                        each once, in any order; VID is 1..4094

NAME is 1 to 63 letters, digits, ``_``, ``.`` and ``-``, and starts with neither ``.`` nor ``-``.
LINK is what the kernel takes as a name, but not ``->`` and nothing that starts with ``#``.
Words like 10.0.0.0/255.0.0.0, fe80::1%eth0 and 0x11 for a proto are refused.
``sport`` and ``dport`` need a ``proto`` that has ports: tcp, udp, sctp, udplite.  ``src`` and
``dst`` are of one family, and an ``ethertype`` beside ``src``, ``dst`` or ``proto`` is theirs.

What a frame shows to a rule is in rule_keys.py.

Precedence
----------
Higher priority, then more specific, then first given.  ``Match.specificity`` is the number of bits
a match fixes: ``in`` 32, each MAC 48, ``ethertype`` 16, ``vlan`` none or VID 12, VID.VID 24,
``proto`` 8, ``src`` and ``dst`` their prefix length, a range of n ports 16 - ceil(log2(n)).

Actions
-------
``out`` applies in this order, however written: ``dec_ttl``, ``swap_mac``, ``set_src_mac``,
``set_dst_mac``, ``pop_vlan``, ``push_vlan``.

- ``dec_ttl``: in a frame with IP (rule_keys.py), a TTL or hop limit of 0 or 1 sends the frame,
  unmodified, to the host stack (verdict ``pass``); otherwise it is one less and the IPv4 header
  checksum is updated as RFC 1624, equation 3 (a wrong one stays wrong).  Without IP: nothing.
  The host stack also gets, unmodified, what is too long for LINK: it can fragment, and answer.
- ``pop_vlan`` removes the outermost tag; without a tag: nothing.
- ``push_vlan`` adds a tag 0x8100 with priority 0 in front of the others.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import StringIO
from os import PathLike
from typing import Any, Final, overload

from l2fwd.errors import ConfigError
from l2fwd.rule_words import (
    ALLOWED,
    ETHERTYPES,
    MAX_PRIORITY,
    MAX_VID,
    PORT_PROTOS,
    Network,
    PortRange,
    bad,
    check_ethertype,
    check_link,
    check_mac,
    check_number,
    ethertype_word,
    mac_word,
    network_word,
    ports_word,
    proto_word,
    read_ethertype,
    read_link,
    read_network,
    read_number,
    read_ports,
    read_proto,
    read_vlan,
    vlan_word,
)
from l2fwd.words import check_unicast, parse_any_mac, parse_mac

MAX_RULE_CHARACTERS: Final = 4096
MAX_TEXT_BYTES: Final = 64 << 20
MAX_ERRORS: Final = 1000  # counted in one text; a file of garbage is refused quickly

_FAMILY_ETHERTYPE: Final = {4: ETHERTYPES["ip"], 6: ETHERTYPES["ip6"]}
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """What a frame must show; None is any.

    Attributes
    ----------
    in_link : str or None
        The link that the frame came from.
    src_mac, dst_mac : bytes or None
        Six bytes.
    ethertype : int or None
        After the tags, 0x0600 or more.
    vlan : tuple of int, or None
        VIDs from the outermost: ``()`` untagged, ``(7,)``, ``(7, 9)``.
    proto : int or None
        IP protocol number.
    src, dst : IPv4Network or IPv6Network or None
    sport, dport : (int, int) or None
        First and last port, both included.

    Raises
    ------
    ConfigError
        If a field is out of its range, or two contradict each other.
    """

    in_link: str | None = None
    src_mac: bytes | None = None
    dst_mac: bytes | None = None
    ethertype: int | None = None
    vlan: tuple[int, ...] | None = None
    proto: int | None = None
    src: Network | None = None
    dst: Network | None = None
    sport: PortRange | None = None
    dport: PortRange | None = None

    def __post_init__(self) -> None:
        if self.in_link is not None:
            check_link("in", self.in_link)
        if self.src_mac is not None:
            check_mac("src_mac", self.src_mac)
        if self.dst_mac is not None:
            check_mac("dst_mac", self.dst_mac)
        if self.ethertype is not None:
            check_ethertype(self.ethertype)
        if self.vlan is not None:
            if not isinstance(self.vlan, tuple) or len(self.vlan) > 2:
                raise bad("vlan", self.vlan)
            for vid in self.vlan:
                check_number("vlan", vid, 0, MAX_VID)
        if self.proto is not None:
            check_number("proto", self.proto, 0, 255)
        self._check_family()
        self._check_ports()

    def _check_family(self) -> None:
        for field, network in (("src", self.src), ("dst", self.dst)):
            if network is not None:
                if not isinstance(network, Network):
                    raise bad(field, network)
                if network.version == 6 and network.network_address.scope_id:
                    raise bad(field, str(network))
        if self.src is not None and self.dst is not None and self.src.version != self.dst.version:
            raise ConfigError(
                f"src and dst must be of one family, got '{self.src}' and '{self.dst}'"
            )
        family = self.family
        if self.ethertype is None or (family is None and self.proto is None):
            return
        wanted = [_FAMILY_ETHERTYPE[family]] if family else list(_FAMILY_ETHERTYPE.values())
        if self.ethertype not in wanted:
            raise ConfigError(
                f"ethertype must be {' or '.join(map(ethertype_word, wanted))} beside this "
                f"proto, src or dst, got '{ethertype_word(self.ethertype)}'"
            )

    def _check_ports(self) -> None:
        for field, ports in (("sport", self.sport), ("dport", self.dport)):
            if ports is None:
                continue
            if not isinstance(ports, tuple) or len(ports) != 2:
                raise bad(field, ports)
            check_number(field, ports[0], 0, 65535)
            if not isinstance(ports[1], int) or not ports[0] <= ports[1] <= 65535:
                raise bad(field, f"{ports[0]}-{ports[1]}")
            if self.proto not in PORT_PROTOS:
                got = "none" if self.proto is None else proto_word(self.proto)
                raise ConfigError(
                    f"{field} needs a proto with ports: tcp, udp, sctp or udplite; got {got}"
                )

    @property
    def family(self) -> int | None:
        """4 or 6 if an address says so, else None."""
        network = self.dst if self.src is None else self.src
        return None if network is None else network.version

    @property
    def specificity(self) -> int:
        """Number of bits this match fixes; see the module's text."""
        bits = 32 * (self.in_link is not None) + 16 * (self.ethertype is not None)
        bits += 48 * (self.src_mac is not None) + 48 * (self.dst_mac is not None)
        bits += 8 * (self.proto is not None)
        if self.vlan is not None:
            bits += 12 * max(1, len(self.vlan))
        for network in (self.src, self.dst):
            if network is not None:
                bits += network.prefixlen
        for ports in (self.sport, self.dport):
            if ports is not None:
                bits += 16 - (ports[1] - ports[0]).bit_length()
        return bits

    def __str__(self) -> str:
        words: list[str] = []
        for field, (attribute, _, write) in _FIELDS.items():
            value = getattr(self, attribute)
            if value is not None:
                words += (field, write(value))
        return " ".join(words) or "any"


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """What happens to a frame; see the module's text for the order of the rewrites.

    Attributes
    ----------
    kind : str
        "out", "drop", "pass" or "user".  The rest is for "out" only.
    out_link : str or None
    swap_mac : bool
    set_src_mac, set_dst_mac : bytes or None
        Six bytes, unicast, not zero.
    pop_vlan : bool
    push_vlan : int or None
        VID, 1 to 4094.
    dec_ttl : bool

    Raises
    ------
    ConfigError
    """

    kind: str
    out_link: str | None = None
    swap_mac: bool = False
    set_src_mac: bytes | None = None
    set_dst_mac: bytes | None = None
    pop_vlan: bool = False
    push_vlan: int | None = None
    dec_ttl: bool = False

    def __post_init__(self) -> None:
        if self.kind != "out":
            if self.kind not in ("drop", "pass", "user"):
                raise bad("action", self.kind)
            if self.out_link is not None or self.rewrites:
                raise ConfigError(f"{self.kind} takes nothing after it; only out does")
            return
        check_link("out", self.out_link)
        for field, mac in (("set_src_mac", self.set_src_mac), ("set_dst_mac", self.set_dst_mac)):
            if mac is not None:
                check_mac(field, mac)
                check_unicast(mac, field)
        if self.push_vlan is not None:
            check_number("push_vlan", self.push_vlan, 1, MAX_VID)

    @property
    def rewrites(self) -> bool:
        """Whether a frame leaves otherwise than it came."""
        return (
            self.swap_mac
            or self.set_src_mac is not None
            or self.set_dst_mac is not None
            or self.pop_vlan
            or self.push_vlan is not None
            or self.dec_ttl
        )

    def __str__(self) -> str:
        if self.kind != "out":
            return self.kind
        words = ["out", str(self.out_link)]
        for field, value_words in _REWRITES.items():
            value = getattr(self, field)
            if value is not None and value is not False:
                words.append(field)
                if value_words:
                    words.append(value_words[1](value))
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class Rule:
    """A match, its action, and how it is ranked.  ``str`` gives the canonical text.

    >>> rule = parse_rule("web: dport 80 proto tcp -> out eth1")
    >>> str(rule)
    'web: proto tcp dport 80 -> out eth1'
    """

    match: Match
    action: Action
    name: str = ""
    priority: int = 0

    def __post_init__(self) -> None:
        if self.name and not _NAME.fullmatch(self.name):
            raise bad("rule name", self.name)
        check_number("priority", self.priority, 0, MAX_PRIORITY)

    def __str__(self) -> str:
        name = f"{self.name}: " if self.name else ""
        priority = f"priority {self.priority} " if self.priority else ""
        return f"{name}{priority}{self.match} -> {self.action}"


Reader = Callable[[str, str], Any]
Writer = Callable[[Any], str]

# Field in the text, in canonical order -> attribute of Match, reader, writer.
_FIELDS: Final[dict[str, tuple[str, Reader, Writer]]] = {
    "in": ("in_link", read_link, str),
    "src_mac": ("src_mac", parse_any_mac, mac_word),
    "dst_mac": ("dst_mac", parse_any_mac, mac_word),
    "ethertype": ("ethertype", read_ethertype, ethertype_word),
    "vlan": ("vlan", read_vlan, vlan_word),
    "proto": ("proto", read_proto, proto_word),
    "src": ("src", read_network, network_word),
    "dst": ("dst", read_network, network_word),
    "sport": ("sport", read_ports, ports_word),
    "dport": ("dport", read_ports, ports_word),
}

# Rewrite, in the order of application -> reader and writer of its value, if it takes one.
_REWRITES: Final[dict[str, tuple[Reader, Writer] | None]] = {
    "dec_ttl": None,
    "swap_mac": None,
    "set_src_mac": (parse_mac, mac_word),
    "set_dst_mac": (parse_mac, mac_word),
    "pop_vlan": None,
    "push_vlan": (read_number, str),
}


def _value(words: Sequence[str], index: int, field: str) -> str:
    if index >= len(words):
        raise ConfigError(f"{field} needs a value: {ALLOWED[field]}")
    return words[index]


def _once(values: Mapping[str, object], attribute: str, field: str) -> None:
    if attribute in values:
        raise ConfigError(f"{field} is given twice")


def _parse_match(words: Sequence[str]) -> Match:
    if words == ["any"]:
        return Match()
    values: dict[str, Any] = {}
    for index in range(0, len(words), 2):
        field = words[index]
        if field not in _FIELDS:
            raise ConfigError(f"match field must be one of {', '.join(_FIELDS)}, got {field!r:.60}")
        attribute, read, _ = _FIELDS[field]
        _once(values, attribute, field)
        values[attribute] = read(_value(words, index + 1, field), field)
    if not values:
        raise ConfigError("match is empty; write any to take every frame")
    return Match(**values)


@lru_cache(maxsize=1024)  # a file of many rules has few actions
def _parse_action(*words: str) -> Action:
    kind = words[0] if words else ""
    if kind != "out":
        if len(words) > 1 and kind in ("drop", "pass", "user"):
            raise ConfigError(f"{kind} takes nothing after it, got {words[1]!r:.60}")
        return Action(kind=kind)
    values: dict[str, Any] = {"out_link": _value(words, 1, "out")}
    index = 2
    while index < len(words):
        field = words[index]
        if field not in _REWRITES:
            raise ConfigError(f"rewrite must be one of {', '.join(_REWRITES)}, got {field!r:.60}")
        _once(values, field, field)
        value_words = _REWRITES[field]
        index += 1
        values[field] = True
        if value_words:
            values[field] = value_words[0](_value(words, index, field), field)
            index += 1
    return Action(kind="out", **values)


def _words_of(line: str) -> list[str]:
    if len(line) > MAX_RULE_CHARACTERS:
        raise ConfigError(f"rule must have at most {MAX_RULE_CHARACTERS} characters")
    words = line.split()
    if "#" in line:
        for index, word in enumerate(words):
            if word.startswith("#"):
                return words[:index]
    return words


def _parse_words(words: list[str]) -> Rule:
    if "->" not in words:
        raise ConfigError(f"rule must be 'MATCH -> ACTION', got {' '.join(words)!r:.60}")
    arrow = words.index("->")
    head, name, priority = words[:arrow], "", 0
    if head and head[0].endswith(":"):
        name = head.pop(0)[:-1]
        if not name:
            raise bad("rule name", name)
    if head and head[0] == "priority":
        priority = read_number(_value(head, 1, "priority"), "priority")
        del head[:2]
    return Rule(_parse_match(head), _parse_action(*words[arrow + 1 :]), name, priority)


def parse_rule(text: str) -> Rule:
    """Return the rule that one line spells; ``parse_rule(str(rule)) == rule``.

    Raises
    ------
    ConfigError
        Naming the field, what is allowed, and the word that is not.
    """
    if "\n" in text.strip():
        raise ConfigError("a rule is one line")
    return _parse_words(_words_of(text))


class RuleTable(Sequence[Rule]):
    """Rules in the order given.  Immutable.  ``str`` gives a text that parses to it.

    Parameters
    ----------
    rules : iterable of Rule
    where : callable, optional
        Names the rule at an index, for errors; an attribute too.

    Raises
    ------
    ConfigError
        If two rules have one name, or one match at one priority has two actions.
    """

    __slots__ = ("_rules", "where")

    def __init__(
        self, rules: Iterable[Rule] = (), where: Callable[[int], str] = "rule {}".format
    ) -> None:
        self._rules = tuple(rules)
        self.where = where
        errors = list(self._conflicts(where))
        if errors:
            raise _first_of(errors[0], len(errors))

    def _conflicts(self, where: Callable[[int], str]) -> Iterator[str]:
        names: dict[str, int] = {}
        matches: dict[tuple[int, Match], int] = {}
        for index, rule in enumerate(self._rules):
            first = names.setdefault(rule.name, index) if rule.name else index
            if first != index:
                yield f"{where(index)}: rule name {rule.name!r} is taken by {where(first)}"
            first = matches.setdefault((rule.priority, rule.match), index)
            if self._rules[first].action != rule.action:
                yield (
                    f"{where(index)}: same match and priority as {where(first)}, another action: "
                    f"'{rule.action}', not '{self._rules[first].action}'"
                )

    def __len__(self) -> int:
        return len(self._rules)

    @overload
    def __getitem__(self, index: int) -> Rule: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Rule, ...]: ...
    def __getitem__(self, index: int | slice) -> Rule | tuple[Rule, ...]:
        return self._rules[index]

    def __iter__(self) -> Iterator[Rule]:
        return iter(self._rules)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RuleTable) and self._rules == other._rules

    def __hash__(self) -> int:
        return hash(self._rules)

    def __repr__(self) -> str:
        return f"<RuleTable of {len(self)} rules>"

    def __str__(self) -> str:
        return "\n".join(map(str, self._rules))

    def ranks(self) -> list[int]:
        """Return the indices of the rules in order of precedence."""
        keys = [(-rule.priority, -rule.match.specificity) for rule in self._rules]
        return sorted(range(len(keys)), key=keys.__getitem__)

    def ranked(self) -> tuple[Rule, ...]:
        """Return the rules in order of precedence: the first that matches takes the frame."""
        return tuple(self._rules[index] for index in self.ranks())

    def links(self) -> tuple[str, ...]:
        """Return every link that a match or an action names, in the order of first mention."""
        found: dict[str, None] = {}
        for rule in self._rules:
            for link in (rule.match.in_link, rule.action.out_link):
                if link is not None:
                    found[link] = None
        return tuple(found)


def _first_of(message: str, count: int) -> ConfigError:
    if count == 1:
        return ConfigError(message)
    total = f"more than {MAX_ERRORS}" if count > MAX_ERRORS else str(count)
    return ConfigError(f"{message}; {total} errors in all")


def _as_text(text: str | bytes, source: str) -> str:
    if len(text) > MAX_TEXT_BYTES:
        raise ConfigError(f"{source} must have at most {MAX_TEXT_BYTES >> 20} MiB")
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"{source} must be text in UTF-8, got byte 0x{error.object[error.start]:02x} "
                f"at offset {error.start}"
            ) from None
    if "\0" in text:
        raise ConfigError(f"{source} must be text, got a zero byte at offset {text.index(chr(0))}")
    return text


def parse_rules(text: str | bytes, source: str = "rules") -> RuleTable:
    """Return the table that a text of one rule per line spells: whole, or not at all.

    Parameters
    ----------
    text : str or bytes
        UTF-8, at most 64 MiB.  Empty lines and comments are skipped.
    source : str
        What the errors call the text: the name of the file.

    Raises
    ------
    ConfigError
        Naming the first error with its line, and how many there are; or that there is no rule.
    """
    rules: list[Rule] = []
    lines: list[int] = []
    first, errors = "", 0
    for number, line in enumerate(StringIO(_as_text(text, source)), 1):
        try:
            words = _words_of(line)
            if words:
                rules.append(_parse_words(words))
                lines.append(number)
        except ConfigError as error:
            first = first or f"{source} line {number}: {error}"
            errors += 1
            if errors > MAX_ERRORS:
                break
    if errors:
        raise _first_of(first, errors)
    if not rules:
        raise ConfigError(f"{source} holds no rule")
    return RuleTable(rules, lambda index: f"{source} line {lines[index]}")


def read_rules(path: str | PathLike[str]) -> RuleTable:
    """Return the table in a file; see ``parse_rules``.

    Raises
    ------
    ConfigError
        Also if the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"rules file {path}: {error.strerror}") from None
    return parse_rules(content, str(path))


def join_rules(lines: Sequence[str], path: str | PathLike[str] | None) -> RuleTable:
    """Return the rules of a command line, then those of a file, if one is given.

    Raises
    ------
    ConfigError
        Naming the option or the file, and the line.
    """
    given = parse_rules("\n".join(lines), "--rule") if lines else RuleTable()
    listed = read_rules(path) if path is not None else RuleTable()

    def where(index: int) -> str:
        ours = len(given)
        return given.where(index) if index < ours else listed.where(index - ours)

    return RuleTable((*given, *listed), where)
