"""The command line of the benches: find the suite, run it, turn errors into an exit code."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Final

from bench.options import add_common, links_of, settle
from bench.record import Record
from l2fwd.__main__ import Parser
from l2fwd.errors import EXIT_FAILED, L2fwdError

SUITES: Final = {
    "micro": "ring loop, classifier, programs: each beside its C or bare-kernel reference",
    "eleven": "the library's sockets: eleven ways to send and receive",
    "forward": "data path x mode x frame size x queues x batch x rules and flows",
    "rfc2544": "no-drop rate, latency, loss, back-to-back, recovery; address learning",
    "peers": "the same work for ours and for every peer found, in interleaved pairs",
    "scale": "cost against queues, rules, flows, batch, ring size and frame size",
    "soak": "hours of traffic, with the ledger and the leak probes at the end",
}
OTHERS: Final = {
    "all": "every suite but soak, one after the other, and the report",
    "report": "result files into one page with tables and pictures",
    "compare": "what changed between two result files, beyond the noise",
}
RESULTS: Final = Path("bench/results")
QUIET_SECONDS: Final = 3.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else "--help"
    try:
        if name in SUITES:
            return run_suite(name, arguments[1:])
        if name in OTHERS:
            return run_other(name, arguments[1:])
        _top_parser().parse_args(arguments or ["--help"])
    except KeyboardInterrupt:
        print(f"bench {name}: cut short; what was measured is kept", file=sys.stderr)
        return 130
    except (L2fwdError, OSError) as error:
        print(f"bench {name}: {error}", file=sys.stderr)
        return getattr(error, "exit_code", EXIT_FAILED)
    return 2


def run_suite(name: str, arguments: Sequence[str]) -> int:
    """Run one suite as its command line says."""
    from bench.preflight import require_root

    suite = importlib.import_module(f"bench.bench_{name}")
    parser = Parser(prog=f"bench {name}", description=suite.__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add_common(parser)
    suite.add_arguments(parser)
    options = settle(parser, parser.parse_args(arguments), suite.ROUNDS)
    require_root()
    return run(name, suite, options)


def run(name: str, suite: ModuleType, options: argparse.Namespace) -> int:
    """Run a suite with settled options, and write what it found."""
    from bench import preflight  # needs what is compiled; report and compare do without

    output = options.output or RESULTS / f"{name}.json"
    given = {key: value for key, value in vars(options).items() if _is_plain(value)}
    links = links_of(options)
    needs = suite.needs(options) if hasattr(suite, "needs") else preflight.Needs()
    quiet_seconds = 0.0 if options.level == "tiny" else QUIET_SECONDS
    with (
        Record(name, given, output=output, quiet=options.json, links=links) as record,
        preflight.ready(links, needs, record.note, quiet_seconds=quiet_seconds),
    ):
        suite.run(options, record)
    return 0


def run_other(name: str, arguments: Sequence[str]) -> int:
    module = importlib.import_module(f"bench.{name}")
    parser = Parser(prog=f"bench {name}", description=OTHERS[name], allow_abbrev=False)
    module.add_arguments(parser)
    return int(module.run(parser.parse_args(arguments)))


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, (str, int, float, list))


def _top_parser() -> Parser:
    listing = "\n".join(f"  {name:<8} {text}" for name, text in (SUITES | OTHERS).items())
    parser = Parser(
        prog="bench",
        description="Measure forwarding, as ratios against peers.",
        epilog=f"suites:\n{listing}\n\nbench SUITE --help tells the rest",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="python -m bench SUITE [options]",
    )
    parser.add_argument("suite", choices=[*SUITES, *OTHERS], help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
