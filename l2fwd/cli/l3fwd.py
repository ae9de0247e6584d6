"""``l3fwd LINK LINK...``: route packets between links, as the kernel's routing table says."""

import argparse

from l2fwd.cli.forward import SOCKETS_ONLY, run_config
from l2fwd.cli.options import (
    add_links,
    add_report_options,
    add_socket_options,
    check_times,
    links_of,
    refuse,
    socket_settings,
)
from l2fwd.config import ForwardConfig
from l2fwd.errors import ConfigError

HELP = "Route IPv4 and IPv6 between links by the kernel's FIB; what needs an answer the host gets."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_links(parser)
    parser.add_argument("--data-path", default="afxdp",
        help="afxdp (default), redirect (the kernel's FIB is asked for each packet) or "
        "hybrid")  # fmt: skip
    add_socket_options(parser, "frames per queue, for all links (2 x ring size x links)")
    add_report_options(parser)


def config_from(args: argparse.Namespace) -> ForwardConfig:
    """Turn arguments into a checked configuration.

    Raises
    ------
    ConfigError
    """
    check_times(args)
    if args.data_path == "redirect":
        refuse(args, SOCKETS_ONLY, "is about sockets; --data-path redirect has none")
    names = links_of(args)
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(f"{twice[0]} is named twice; name each link once")
    return ForwardConfig(
        in_link=names[0],
        out_link=names[-1],  # alone, a router on a stick
        more_links=names[1:-1],
        routed=True,
        force=args.force,
        data_path=args.data_path,
        **socket_settings(args, 2 * len(names)),
    )


def run(args: argparse.Namespace) -> int:
    return run_config(args, config_from(args))
