"""``forward IN OUT``: move frames between two links until stopped."""

import argparse
from typing import TYPE_CHECKING

from l2fwd.cli import options
from l2fwd.cli.options import (
    add_bind_options,
    add_memory_options,
    add_mode_options,
    add_report_options,
    add_sleep_options,
    check_times,
    refuse,
    run_path,
    socket_settings,
)
from l2fwd.config import DEFAULT_RING_SIZE, FlowConfig, ForwardConfig, Rewrite
from l2fwd.errors import ConfigError
from l2fwd.policy import load_policy
from l2fwd.rules import join_rules
from l2fwd.words import parse_mac

if TYPE_CHECKING:
    from l2fwd.cli.output import Printer
    from l2fwd.datapath import DataPath

HELP = "Forward Ethernet frames between two links, both ways, unmodified."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("in_link", metavar="IN", help="link that frames come from")
    add("out_link", metavar="OUT", help="link that they leave by, and the other way round")
    add("--data-path", default="afxdp",
        help="afxdp (default), redirect (in the kernel) or hybrid (learned)")  # fmt: skip
    add("--rule", action="append", default=[], metavar="RULE",
        help="forward by rule, as 'in eth0 proto icmp -> out eth1'; may be repeated")  # fmt: skip
    add("--rules", metavar="FILE", help="the same, one rule a line")
    add("--miss", default="pass",
        help="what no rule takes: pass to the host (default), drop, or user")  # fmt: skip
    add("--policy", metavar="FILE[:NAME]",
        help="Python file whose NAME (policy) decides for rules '-> user'")  # fmt: skip
    add("--flow-timeout", type=float, default=300.0,
        help="hybrid: seconds without a packet until a flow is forgotten (300)")  # fmt: skip
    add("--flow-table-size", type=int, default=65536,
        help="hybrid: flows the kernel holds (65536)")  # fmt: skip
    add("--flow-rate", type=int, default=50_000,
        help="hybrid: flows a queue's worker may insert a second (50000)")  # fmt: skip
    add("--one-way", action="store_true", help="only from IN to OUT")
    add("-q", "--queues", "--queue", default="all",
        help="queue ids, as 0,2 or 0-3, or all (default)")  # fmt: skip
    add("--cpus", help="CPU of each queue's worker, as 1,2 (default: any)")
    add_mode_options(parser, "-m")
    add("--strict", action="store_true", help="fail rather than fall back")
    add("--pin", metavar="DIR", help="redirect goes on after exit, held by DIR, until unload")
    add("--chain", action="store_true", help="attach by libxdp's dispatcher, beside others")
    add("--force", action="store_true", help="remove another XDP program from the link")
    add_bind_options(parser)
    add("-b", "--batch-size", type=int, help="packets per burst (64, or the ring size if less)")
    add("--frames", type=int, help="frames per worker (4 x ring size)")
    add("--headroom", type=int, default=0, help="bytes kept free before each packet (0)")
    add_memory_options(parser)
    add("--ring-size", type=int, default=DEFAULT_RING_SIZE, help="slots per ring (2048)")
    add_sleep_options(parser)
    add("--need-wakeup", action=argparse.BooleanOptionalAction, default=True,
        help="let the driver say when it needs a system call")  # fmt: skip
    add("--set-dst-mac", metavar="MAC", help="write this destination to frames sent on OUT")
    add("--swap-mac", action="store_true", help="swap source and destination MAC")
    add_report_options(parser)


SOCKETS_ONLY = {**options.SOCKETS_ONLY, "headroom": 0, "policy": None}
HYBRID_ONLY = {
    "flow_timeout": 300.0,
    "flow_table_size": 65536,
    "flow_rate": 50_000,
}


def config_from(args: argparse.Namespace) -> ForwardConfig:
    """Turn arguments into a checked configuration.

    Raises
    ------
    ConfigError
    """
    check_times(args)
    if args.data_path == "redirect":
        refuse(args, SOCKETS_ONLY, "is about sockets; --data-path redirect has none")
    if args.data_path != "hybrid":
        refuse(args, HYBRID_ONLY, "is about learned flows; only --data-path hybrid has them")
    rules = join_rules(args.rule, args.rules)
    asks = args.miss == "user" or any(rule.action.kind == "user" for rule in rules)
    if args.policy is not None and not asks:
        raise ConfigError("policy is never asked: add --miss user, or a rule '... -> user'")
    return ForwardConfig(
        in_link=args.in_link,
        out_link=args.out_link,
        data_path=args.data_path,
        rules=rules,
        miss=args.miss,
        policy=load_policy(args.policy) if args.policy is not None else None,
        flows=FlowConfig(
            table_size=args.flow_table_size,
            timeout=args.flow_timeout,
            per_second=args.flow_rate,
        ),
        one_way=args.one_way,
        chain=args.chain,
        force=args.force,
        pin=args.pin,
        **socket_settings(args, 4),
        rewrite=Rewrite(
            dst_mac=parse_mac(args.set_dst_mac, "set-dst-mac")
            if args.set_dst_mac is not None
            else None,
            swap_mac=args.swap_mac,
        ),
    )


def run(args: argparse.Namespace) -> int:
    return run_config(args, config_from(args))


def run_config(args: argparse.Namespace, config: ForwardConfig) -> int:
    """Forward as ``config`` says; first warn of what would spoil packets on their way."""
    from l2fwd.check import check_packets
    from l2fwd.datapath.choose import make_path

    def prepare(notify: "Printer") -> "DataPath":
        path = make_path(config, notify)
        for name in config.links:
            for finding in check_packets(name, redirect=config.data_path != "afxdp"):
                notify({"event": "warning", "message": str(finding)})
        return path

    run_path(args, prepare)
    return 0
