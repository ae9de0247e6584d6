"""``sample LINK --every N``: leave every n-th packet to the host, take the others."""

import argparse

from l2fwd.cli.options import add_tool_options, run_path, tool_settings
from l2fwd.errors import ConfigError
from l2fwd.tool_config import SampleConfig

HELP = "Pass every n-th packet of a queue to the host, and take the others off it."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_tool_options(parser)
    add = parser.add_argument
    add("--every", type=int, metavar="N", help="which packets the host gets: the N-th ones (2)")
    add("--answer", action="store_true",
        help="answer echo requests among those taken, whatever address they ask")  # fmt: skip
    add("--program", default="", metavar="FILE[:NAME]",
        help="your own BPF object decides, by an XSKMAP xsks_map")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    if args.program and args.every is not None:
        raise ConfigError("every is of the built-in program; --program brings its own")
    config = SampleConfig(
        **tool_settings(args),
        every=2 if args.every is None else args.every,
        answer=args.answer,
        program=args.program,
    )

    from l2fwd.datapath.sample import make_sample_path

    run_path(args, lambda notify: make_sample_path(config, notify))
    return 0
