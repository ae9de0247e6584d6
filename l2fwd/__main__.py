"""The command line: find the verb, run it, turn errors into one line and an exit code."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

from l2fwd.cli import silence_stdout
from l2fwd.cli.seed import translate
from l2fwd.errors import L2fwdError

VERSION: Final = "0.1.0"
VERBS: Final = {
    "forward": "forward frames between two links",
    "rxdrop": "receive packets and forget them",
    "txonly": "make packets and send them",
    "macswap": "send every packet back, its MAC addresses swapped",
    "l3fwd": "route packets between links by the kernel's FIB",
    "echo": "answer ping, ARP and neighbour solicitation for given addresses",
    "sample": "every n-th packet to the host, the others to the sockets",
    "rules": "test: which rule takes a frame, and why; check: read and count rules",
    "flows": "what a running hybrid engine has learned",
    "lab": "a veth test bed in namespaces: up, down, demo",
    "dump": "print what arrives on a link, or write it to a capture file",
    "check": "what this host and its links can do, and what mends the rest",
    "unload": "detach what a killed or pinned engine left on a link",
}


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = arguments[0] if arguments else "--help"
    try:
        if verb in VERBS:
            return _run_verb(verb, arguments[1:])
        line = translate(arguments)
        if line is not None:
            for note in line.notes:
                print(f"l2fwd: {note}", file=sys.stderr)
            verb = line.verb
            return _run_verb(line.verb, line.arguments)
        parser = _top_parser()
        if verb.startswith("-") and verb not in ("-h", "--help", "--version"):
            parser.error("no verb, and no -i LINK as xdpsock's lines have")
        parser.parse_args(arguments or ["--help"])
    except KeyboardInterrupt:
        return 130
    except L2fwdError as error:
        print(f"l2fwd {verb}: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        silence_stdout()
        return 0
    except OSError as error:
        silence_stdout()
        print(f"l2fwd {verb}: {error}", file=sys.stderr)
        return 1
    return 2


def _run_verb(verb: str, arguments: list[str]) -> int:
    module = importlib.import_module(f"l2fwd.cli.{verb}")  # imports nothing that is compiled
    parser = Parser(prog=f"l2fwd {verb}", description=module.HELP, allow_abbrev=False)
    parser.add_argument("-v", "--verbose", action="store_true", help="log what libbpf says")
    module.add_arguments(parser)
    args = _parse(parser, arguments)

    if args.verbose:
        import logging

        logging.basicConfig(format="%(name)s: %(message)s")
        logging.getLogger("l2fwd").setLevel(logging.DEBUG)
    try:
        code = int(module.run(args))
        print(end="", flush=True)
    except ImportError as error:
        print(f"l2fwd {verb}: not built here ({error}); run make build", file=sys.stderr)
        return 1
    return code


def _parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """Parse; links that are any number may stand before, between and behind options."""
    if any(action.nargs == "*" and not action.option_strings for action in parser._actions):
        return parser.parse_intermixed_args(arguments)
    return parser.parse_args(arguments)


def _top_parser() -> Parser:
    listing = "\n".join(f"  {verb:<10} {text}" for verb, text in VERBS.items())
    parser = Parser(
        prog="l2fwd",
        description="Forward Ethernet frames between NICs at line rate.",
        epilog=f"verbs:\n{listing}\n\nl2fwd VERB --help tells the rest",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="l2fwd VERB [options]",
    )
    parser.add_argument("--version", action="version", version=f"l2fwd {VERSION}")
    parser.add_argument("verb", choices=list(VERBS), help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
