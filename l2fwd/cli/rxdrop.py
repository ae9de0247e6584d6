"""``rxdrop LINK``: receive packets and forget them."""

import argparse
from typing import TYPE_CHECKING

from l2fwd.cli.options import add_tool_options, run_path, tool_config
from l2fwd.config import DEFAULT_COALESCE_US
from l2fwd.errors import EXIT_FAILED

if TYPE_CHECKING:
    from l2fwd.datapath import Notify
    from l2fwd.datapath.tools import ToolPath

HELP = "Receive packets and recycle their frames at once: how fast can this host receive?"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_tool_options(parser)
    parser.add_argument(
        "--verify",
        action="store_true",
        help="check packets of txonly --sequence; exit 1 unless all came, whole and in order",
    )


def run(args: argparse.Namespace) -> int:
    if args.verify and args.coalesce == DEFAULT_COALESCE_US:
        args.coalesce = 0  # the time a packet took would include the worker's nap
    config = tool_config(args, whole_packets=not args.verify)

    def make_path(notify: "Notify") -> "ToolPath":
        if args.verify:
            from l2fwd.datapath.verify import VerifierPath

            return VerifierPath(config, notify)
        from l2fwd._jobs import Drop
        from l2fwd.datapath.tools import ToolPath

        return ToolPath(config, notify, "rxdrop", lambda worker: Drop())

    summary = run_path(args, make_path)
    if not args.verify:
        return 0

    from l2fwd.verification import has_passed

    return 0 if has_passed(summary["verify"]) else EXIT_FAILED
