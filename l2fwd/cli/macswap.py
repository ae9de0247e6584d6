"""``macswap LINK``: send every packet back, its MAC addresses swapped."""

import argparse

from l2fwd.cli.options import add_tool_options, run_path, tool_config

HELP = "Send every packet back by the queue it came from, source and destination MAC swapped."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_tool_options(parser)


def run(args: argparse.Namespace) -> int:
    config = tool_config(args, whole_packets=True)

    from l2fwd.datapath.tools import ToolPath

    run_path(args, lambda notify: ToolPath(config, notify, "macswap"))
    return 0
