"""Command lines of other programs, as users of those have them in their scripts.

fast_l2fwd  ``-inlink=eth0 -ipproto=1 -dstIp=192.168.0.1 -outlink=eth1 -dstMac=00:00:11:22:33:44``
            is one rule; Go's flags take one dash or two, the value behind ``=`` or as a word.
af_xdp_user ``-d eth0 -S --filename af_xdp_kern.o`` passes every other packet of a queue to the
            host and answers ping by the rest; no other line has a link behind ``-d``.
xdpsock     ``-l -i eth0 -q 0 -n 5 -S``: the mode is a verb, and the verbs know the other letters.
"""

import getopt
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from l2fwd.errors import ConfigError

# fast_l2fwd: flag -> the words of the rule it stands for.
_MATCH: Final = {"inlink": "in", "ipproto": "proto", "dstIp": "dst"}
_ACTION: Final = {"outlink": "out", "dstMac": "set_dst_mac"}

# af_xdp_user: flag -> ours; None: told by itself.
_TUTORIAL: Final = {
    ("-d", "--dev"): None,
    ("-Q", "--queue"): None,
    ("--filename",): None,
    ("--progname",): None,
    ("-S", "--skb-mode"): ("--mode", "skb"),
    ("-N", "--native-mode"): ("--mode", "native"),
    ("-A", "--auto-mode"): ("--mode", "auto"),
    ("-F", "--force"): ("--force",),
    ("-c", "--copy"): ("--bind", "copy"),
    ("-z", "--zero-copy"): ("--bind", "zero-copy"),
    ("-p", "--poll-mode"): ("--poll",),
    ("-q", "--quiet"): ("--quiet",),
}
_DEVICE_LETTER: Final = re.compile("-[SNAFczpq]*d")
_TUTORIAL_OBJECT: Final = "af_xdp_kern.o"  # its default one, which ours stands in for

# xdpsock: flag -> verb.
_XDPSOCK_MODES: Final = {
    "-l": "macswap", "--l2fwd": "macswap", "-r": "rxdrop", "--rxdrop": "rxdrop",
    "-t": "txonly", "--txonly": "txonly", "--l3fwd": "l3fwd",
}  # fmt: skip
# xdpsock: letters, those with a value before those without.
_XDPSOCK_VALUED: Final = "iqnOfdwbCsPJKGHTWUI"
_XDPSOCK_PLAIN: Final = "rtlpSNmczxaQuMFBRVy"
_XDPSOCK_LINK: Final = ("-i", "--interface")
_XDPSOCK_QUEUE: Final = ("-q", "--queue", "--queues")
# xdpsock: flag we have not -> what to do instead.
_XDPSOCK_REFUSED: Final = {
    ("-I", "--irq-string"): "see /proc/interrupts",
    ("-W", "--policy"): "run it under chrt",
    ("-U", "--schpri"): "run it under chrt",
    ("-w", "--clock"): "leave it out, the clock is the monotonic one",
    ("-R", "--reduce-cap"): "run it under setpriv --bounding-set",
    ("-O", "--retries"): "leave it out, a worker never waits for a ring",
    ("-M", "--shared-umem"): "leave it out, each queue has a UMEM of its own",
}


@dataclass(frozen=True, slots=True)
class Line:
    """What a foreign command line is in our words, and what is to be said about it."""

    verb: str
    arguments: list[str]
    notes: tuple[str, ...] = ()


def translate(arguments: Sequence[str]) -> Line | None:
    """Return the verb and arguments that do the same, or None if these are nobody's.

    Raises
    ------
    ConfigError
        If a flag is unknown, given twice, or without a value, or a link is missing.
    """
    if not arguments or not arguments[0].startswith("-"):
        return None
    if arguments[0].lstrip("-").partition("=")[0] in _MATCH | _ACTION:
        return _from_fast_l2fwd(arguments)
    if _names_device(arguments):
        return _from_af_xdp_user(arguments)
    words = [each for word in arguments for each in _letters_apart(word)]
    if any(_key(word) in (*_XDPSOCK_MODES, *_XDPSOCK_LINK, "-f") for word in words):
        return _from_xdpsock(words)
    return None


# fast_l2fwd


def _from_fast_l2fwd(arguments: Sequence[str]) -> Line:
    values = _values(arguments)
    for flag in ("inlink", "outlink"):
        if flag not in values:
            raise ConfigError(f"-{flag}=LINK is missing")
    match = " ".join(f"{word} {values[flag]}" for flag, word in _MATCH.items() if flag in values)
    action = " ".join(f"{word} {values[flag]}" for flag, word in _ACTION.items() if flag in values)
    links = [values["inlink"], values["outlink"]]
    return Line("forward", [*links, "--data-path", "hybrid", "--rule", f"{match} -> {action}"])


def _values(arguments: Sequence[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    words = iter(arguments)
    for word in words:
        flag, equals, value = word.lstrip("-").partition("=")
        if flag not in _MATCH | _ACTION or not word.startswith("-"):
            known = ", ".join(f"-{name}" for name in _MATCH | _ACTION)
            raise ConfigError(f"{word!r} is none of {known}")
        if flag in values:
            raise ConfigError(f"-{flag} is given twice")
        values[flag] = value if equals else next(words, "")
        if not values[flag]:
            raise ConfigError(f"-{flag} needs a value")
    return values


# af_xdp_user


def _names_device(arguments: Sequence[str]) -> bool:
    """Tell whether a link is behind -d, where ours and xdpsock's have a number of seconds."""
    for word, value in zip(arguments, [*arguments[1:], ""], strict=True):
        if word.partition("=")[0] == "--dev":
            return True
        if _DEVICE_LETTER.fullmatch(word) and value and not _is_number(value):
            return True
    return False


def _from_af_xdp_user(arguments: Sequence[str]) -> Line:
    values: dict[str, str] = {}
    ours: list[str] = []
    for flag, value in _tutorial_flags(arguments):
        names = next(names for names in _TUTORIAL if flag in names)
        words = _TUTORIAL[names]
        if words is not None:
            ours += words
        elif not value:
            raise ConfigError(f"{flag} needs a value")
        else:
            values[names[-1]] = value
    if "--dev" not in values:
        raise ConfigError("-d LINK is missing")
    program, notes = _tutorial_program(values)
    queue = values.get("--queue", "0")
    return Line("sample", [values["--dev"], "--answer", "--queues", queue, *ours, *program], notes)


def _tutorial_flags(arguments: Sequence[str]) -> list[tuple[str, str]]:
    letters = "".join(
        names[0][1:] + ":" * (words is None) for names, words in _TUTORIAL.items() if len(names) > 1
    )
    long_names = [names[-1][2:] + "=" * (words is None) for names, words in _TUTORIAL.items()]
    try:
        found, rest = getopt.gnu_getopt(list(arguments), letters, long_names)
    except getopt.GetoptError as error:
        raise ConfigError(f"{error}; af_xdp_user has no such") from None
    if rest:
        raise ConfigError(f"{rest[0]!r} is no flag of af_xdp_user")
    return found


def _tutorial_program(values: dict[str, str]) -> tuple[list[str], tuple[str, ...]]:
    """Return the user's own program where it exists, and what is said where it does not."""
    file, name = values.get("--filename", ""), values.get("--progname", "")
    if name and not file:
        raise ConfigError("--progname names a program of --filename FILE, which is missing")
    if file and Path(file).is_file():
        return ["--program", f"{file}:{name}" if name else file], ()
    if file and Path(file).name != _TUTORIAL_OBJECT:
        raise ConfigError(f"--filename {file}: no such file")
    note = f"{file} is not here: the built-in program, which does the same, is used"
    return ["--every", "2"], (note,) if file else ()


# xdpsock


def _from_xdpsock(arguments: Sequence[str]) -> Line:
    verbs: list[str] = []
    ours: list[str] = []
    notes: tuple[str, ...] = ()
    for word, value in zip(arguments, [*arguments[1:], ""], strict=True):
        key = _key(word)
        for names, remedy in _XDPSOCK_REFUSED.items():
            if key in names:
                raise ConfigError(f"{key} of xdpsock is not here: {remedy}")
        if word == "-f" and not _is_number(value):
            verbs.append("l3fwd")
            notes = ("-f without a number is taken as l3fwd; xdpsock's -f takes a frame size",)
        elif word in _XDPSOCK_MODES:
            verbs.append(_XDPSOCK_MODES[word])
        else:
            ours.append(word)
    if len(set(verbs)) > 1:
        raise ConfigError(f"{' and '.join(dict.fromkeys(verbs))}: name one of the modes")
    if not any(_key(word) in _XDPSOCK_QUEUE for word in ours):
        ours += ["-q", "0"]
    return Line(verbs[0] if verbs else "rxdrop", ours, notes)


def _letters_apart(word: str) -> list[str]:
    """Return the flags of a word of letters that stand together, as getopt takes them.

    >>> _letters_apart("-lSi"), _letters_apart("-lq0"), _letters_apart("--l2fwd")
    (['-l', '-S', '-i'], ['-l', '-q0'], ['--l2fwd'])
    """
    plain = re.match(f"-([{_XDPSOCK_PLAIN}]+)(.*)", word)
    if plain is None or (plain[2] and plain[2][0] not in _XDPSOCK_VALUED):
        return [word]
    return [f"-{letter}" for letter in plain[1]] + [f"-{plain[2]}"] * bool(plain[2])


def _key(word: str) -> str:
    """Return the flag of a word that may hold its value, too: ``-q0``, ``--queue=0``."""
    return word.partition("=")[0] if word.startswith("--") else word[:2]


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\d+(\.\d*)?", text) is not None
