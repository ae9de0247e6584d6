"""Options that all suites have in common."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

LEVELS: Final = ("tiny", "quick", "normal", "full")
# By level: rounds of every contender, and seconds of a sample.
Rounds = Mapping[str, tuple[int, float]]
_MAX_SECONDS: Final = 3600.0


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add what every suite takes."""
    add = parser.add_argument
    level = parser.add_mutually_exclusive_group()
    for name, text in (
        ("tiny", "run once, without a meaning: nothing rots"),
        ("quick", "fewer rounds, fewer cases"),
        ("full", "all cases, and the times and counts of the RFCs"),
    ):
        level.add_argument(
            f"--{name}", dest="level", action="store_const", const=name, help=text
        )  # fmt: skip
    parser.set_defaults(level="normal")
    add("--rounds", type=int, help="samples of each contender, by turns")
    add("--seconds", type=float, help="of a sample")
    add("--in", dest="in_link", metavar="LINK", default="", help="a NIC where frames come in")
    add("--out", dest="out_link", metavar="LINK", default="", help="the NIC where they go out")
    add("--gen", dest="gen_link", metavar="LINK", default="", help="cabled to IN; sends")
    add("--sink", dest="sink_link", metavar="LINK", default="", help="cabled to OUT; counts")
    add("--only", action="append", default=[], metavar="TEXT", help="cases with TEXT in the name")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    add("--output", type=Path, help="the result file (bench/results/SUITE.json)")


def settle(
    parser: argparse.ArgumentParser, options: argparse.Namespace, rounds: Rounds
) -> argparse.Namespace:
    """Fill in what the level says, and refuse what makes no sense."""
    count, seconds = rounds[options.level]
    options.rounds = count if options.rounds is None else options.rounds
    options.seconds = seconds if options.seconds is None else options.seconds
    if options.rounds < 1:
        parser.error(f"rounds must be at least 1, got {options.rounds}")
    if not 0 < options.seconds <= _MAX_SECONDS:
        parser.error(f"seconds must be in (0, {_MAX_SECONDS:g}], got {options.seconds:g}")
    _check_links(parser, options)
    return options


def options_of(
    rounds: Rounds, add_arguments: Callable[[argparse.ArgumentParser], None], *words: str
) -> argparse.Namespace:
    """Return what a suite gets from such a command line."""
    parser = argparse.ArgumentParser()
    add_common(parser)
    add_arguments(parser)
    return settle(parser, parser.parse_args(words), rounds)


def _check_links(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Two NICs cabled to each other, or four; none at all means veths."""
    if bool(options.in_link) != bool(options.out_link):
        parser.error("--in and --out go together")
    if bool(options.gen_link) != bool(options.sink_link):
        parser.error("--gen and --sink go together: cabled to IN and to OUT")
    if options.gen_link and not options.in_link:
        parser.error("--gen and --sink need --in and --out")
    names = links_of(options)
    if len(set(names)) != len(names):
        parser.error(f"the same link twice: {' '.join(names)}")


def links_of(options: argparse.Namespace) -> tuple[str, ...]:
    """Return the NICs: GEN IN OUT SINK; or IN OUT, cabled to each other; or none: veths."""
    if not options.in_link:
        return ()
    if not options.gen_link:
        return options.in_link, options.out_link
    return options.gen_link, options.in_link, options.out_link, options.sink_link


def is_patient(options: argparse.Namespace) -> bool:
    """Tell whether to wait for a quiet machine, and to take disturbed samples again."""
    return options.level in ("normal", "full")


def wanted(options: argparse.Namespace, name: str) -> bool:
    """Tell whether ``--only`` lets a case of that name run."""
    return not options.only or any(each in name for each in options.only)
