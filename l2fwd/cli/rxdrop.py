"""``rxdrop LINK``: receive packets and forget them."""

import argparse

from l2fwd.cli.options import add_tool_options, run_path, tool_config

HELP = "Receive packets and recycle their frames at once: how fast can this host receive?"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_tool_options(parser)


def run(args: argparse.Namespace) -> int:
    config = tool_config(args)

    from l2fwd._jobs import Drop
    from l2fwd.datapath.tools import ToolPath

    run_path(args, lambda notify: ToolPath(config, notify, "rxdrop", lambda worker: Drop()))
    return 0
