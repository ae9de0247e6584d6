"""``echo LINK --address A``: answer ping, ARP and neighbour solicitation."""

import argparse
from typing import TYPE_CHECKING

from l2fwd.cli.options import SOCKETS_ONLY, add_tool_options, refuse, run_path, tool_settings
from l2fwd.config import AttachMode
from l2fwd.tool_config import EchoConfig

if TYPE_CHECKING:
    from l2fwd.cli.output import Printer
    from l2fwd.datapath import DataPath

HELP = "Answer ICMP echo, ARP and neighbour solicitation; the host keeps everything else."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_tool_options(parser)
    add = parser.add_argument
    add("--address", action="append", default=[], metavar="A",
        help="IPv4 or IPv6 address to answer for; may be repeated")  # fmt: skip
    add("--any-address", action="store_true",
        help="answer echo for any address, but ARP and solicitations for A only")  # fmt: skip
    add("--in-kernel", action="store_true", help="answer in the XDP program, without sockets")


def run(args: argparse.Namespace) -> int:
    if args.in_kernel:
        refuse(args, SOCKETS_ONLY, "is about sockets; --in-kernel has none")
    config = EchoConfig(
        **tool_settings(args),
        addresses=tuple(args.address),
        any_address=args.any_address,
        in_kernel=args.in_kernel,
    )

    from l2fwd.check import check_packets
    from l2fwd.datapath.echo import make_echo_path

    def prepare(notify: "Printer") -> "DataPath":
        path = make_echo_path(config, notify)
        is_native = config.mode is AttachMode.NATIVE  # with auto, it falls back by itself
        for name in config.links if config.in_kernel and is_native else ():
            for finding in check_packets(name, redirect=True):
                notify({"event": "warning", "message": str(finding)})
        return path

    run_path(args, prepare)
    return 0
