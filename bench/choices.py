"""Options that are lists of words or numbers: read, and refused in one line."""

import argparse
from collections.abc import Callable, Iterable
from typing import Any

from bench.settings import FCS_BYTES, IMIX_SIZE
from bench.socket_traffic import MAX_BYTES
from bench.traffic import MIN_BYTES
from l2fwd.errors import ConfigError


def listed(text: str, read: Callable[[str], Any]) -> list[Any]:
    """Return what is between the commas, each once."""
    try:
        return list(dict.fromkeys(read(word) for word in text.split(",")))
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def one_of(field: str, words: Iterable[str]) -> Callable[[str], str]:
    """Return what reads one of some words."""

    def read(word: str) -> str:
        if word not in words:
            raise ConfigError(f"{field} must be one of {', '.join(words)}, got {word!r}")
        return word

    return read


def number_in(field: str, least: int, most: int) -> Callable[[str], int]:
    """Return what reads a number within bounds."""

    def read(word: str) -> int:
        if not word.isdecimal() or not least <= int(word) <= most:
            raise ConfigError(f"{field} must be in [{least}, {most}], got {word!r}")
        return int(word)

    return read


def read_size(word: str) -> str:
    """Return a frame size as RFCs have it."""
    least, most = MIN_BYTES + FCS_BYTES, MAX_BYTES + FCS_BYTES
    if word == IMIX_SIZE:
        return word
    if not word.isdecimal() or not least <= int(word) <= most:
        raise ConfigError(
            f"size must be {IMIX_SIZE} or in [{least}, {most}] bytes on the wire, got {word!r}"
        )
    return str(int(word))
