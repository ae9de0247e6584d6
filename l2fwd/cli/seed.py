"""The command line of fast_l2fwd, as users of it have it in their scripts.

``-inlink=eth0 -ipproto=1 -dstIp=192.168.0.1 -outlink=eth1 -dstMac=00:00:11:22:33:44`` is one rule;
Go's flags take one dash or two, and the value behind ``=`` or as the next word.
"""

from collections.abc import Sequence

from l2fwd.errors import ConfigError

# Flag -> the words of the rule it stands for.
_MATCH = {"inlink": "in", "ipproto": "proto", "dstIp": "dst"}
_ACTION = {"outlink": "out", "dstMac": "set_dst_mac"}


def is_seed(arguments: Sequence[str]) -> bool:
    """Tell whether these arguments are fast_l2fwd's."""
    first = arguments[0].lstrip("-").partition("=")[0] if arguments else ""
    return first in _MATCH | _ACTION and arguments[0].startswith("-")


def translate(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of ``forward`` that do the same.

    Raises
    ------
    ConfigError
        If a flag is unknown, given twice, or without a value, or a link is missing.
    """
    values = _values(arguments)
    for flag in ("inlink", "outlink"):
        if flag not in values:
            raise ConfigError(f"-{flag}=LINK is missing")
    match = " ".join(f"{word} {values[flag]}" for flag, word in _MATCH.items() if flag in values)
    action = " ".join(f"{word} {values[flag]}" for flag, word in _ACTION.items() if flag in values)
    rule = f"{match} -> {action}"
    return [values["inlink"], values["outlink"], "--data-path", "hybrid", "--rule", rule]


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
