"""Every suite but soak, one after the other, each in a process of its own; then the report."""

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Final

from bench.__main__ import RESULTS, SUITES
from bench.report import DEFAULT_PAGE
from bench.report import write as write_report
from bench.result import load
from l2fwd.errors import EXIT_FAILED

LEFT_OUT: Final = ("soak",)  # it takes hours
_LEVELS: Final = ("tiny", "quick", "full")
_LINKS: Final = ("in", "out", "gen", "sink")
_PEERS: Final = ("xdpsock", "xsk-fwd")
_ONCE: Final = {"peers": ("--rates-only",)}  # the rest of its table is of other suites here
# All of them together are to take half an hour, and three minutes: less than each one's own form.
_CUTS: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "normal": {
        "eleven": ("--rounds", "5"),
        "forward": ("--seconds", "0.4"),
        "micro": ("--seconds", "0.02"),
        "peers": ("--seconds", "0.4"),
        "rfc2544": ("--resolution", "0.05"),
        "scale": ("--rounds", "1", "--seconds", "0.3"),
    },
    "quick": {
        "forward": ("--ways", "1", "--paths", "afxdp,redirect,hybrid"),
        "peers": ("--rounds", "1"),
        "rfc2544": ("--engine", "afxdp"),
        "scale": ("--sweeps", "rules"),
    },
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    level = parser.add_mutually_exclusive_group()
    for name in _LEVELS:
        level.add_argument(f"--{name}", dest="level", action="store_const", const=name,
                           help=f"every suite with --{name}")  # fmt: skip
    for name in _LINKS:
        parser.add_argument(f"--{name}", metavar="LINK", help="as in every suite")
    for name in _PEERS:
        parser.add_argument(f"--{name}", metavar="PATH", help="for the suites that run it")


def run(options: argparse.Namespace) -> int:
    """Run the suites, then write the report; return 1 if a suite failed."""
    from bench.preflight import require_root

    require_root()
    failed = [name for name in suites() if not run_one(name, arguments_for(name, options))]
    results = [RESULTS / f"{name}.json" for name in suites()]
    found = [load(path) for path in results if path.exists()]
    if found:
        write_report(found, DEFAULT_PAGE)
        print(f"report: {DEFAULT_PAGE}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return EXIT_FAILED if failed else 0


def suites() -> list[str]:
    return [name for name in SUITES if name not in LEFT_OUT]


def run_one(name: str, arguments: Sequence[str]) -> bool:
    """Run a suite and say how long it took; tell whether it succeeded."""
    output = RESULTS / f"{name}.json"
    output.unlink(missing_ok=True)  # what an earlier run wrote is no result of this one
    print(f"=== {name}", flush=True)
    began = time.monotonic()
    code = _wait(subprocess.Popen(command_of(name, [*arguments, "--output", str(output)])))
    said = "" if code == 0 else f", FAILED with exit code {code}"
    print(f"=== {name}: {time.monotonic() - began:.0f} s{said}", flush=True)
    return code == 0


def command_of(name: str, arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "bench", name, *arguments]


def arguments_for(name: str, options: argparse.Namespace) -> list[str]:
    """Return the options of a suite; those of peers only where it has them."""
    arguments = [f"--{options.level}"] if options.level else []
    arguments += _ONCE.get(name, ())
    arguments += _CUTS.get(options.level or "normal", {}).get(name, ())
    for link in _LINKS:
        value = getattr(options, link)
        arguments += [f"--{link}", value] if value else []
    peers = {peer: getattr(options, peer.replace("-", "_")) for peer in _PEERS}
    if any(peers.values()):
        text = _help_of(name)
        for peer, value in peers.items():
            arguments += [f"--{peer}", value] if value and f"--{peer} " in text else []
    return arguments


def _help_of(name: str) -> str:
    """Return what a suite says of its options; nothing if it cannot even be asked."""
    command = command_of(name, ["--help"])
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _wait(child: "subprocess.Popen[bytes]") -> int:
    """Wait; on Ctrl-C, which the child hears too, give it the time to put things back."""
    with child:
        try:
            return child.wait()
        except KeyboardInterrupt:
            held = signal.signal(signal.SIGINT, signal.SIG_IGN)
            try:
                child.wait()
            finally:
                signal.signal(signal.SIGINT, held)
            raise
