"""``txonly LINK``: make packets and send them."""

import argparse
from typing import Any

from l2fwd.cli.options import add_tool_options, run_path, tool_config
from l2fwd.errors import ConfigError
from l2fwd.traffic import MAX_STREAM, Traffic
from l2fwd.words import parse_any_mac, parse_mac

BATCH_SIZE = 256  # by default: nobody waits for the first of them, and system calls are fewer
HELP = "Make UDP packets and send them: how fast can this host send, and what does the next lose?"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_tool_options(parser)
    _add_amount(parser.add_argument_group("how many, how fast"))
    _add_headers(parser.add_argument_group("headers"))
    _add_payload(parser.add_argument_group("payload"))


def _add_amount(group: Any) -> None:
    add = group.add_argument
    add("-C", "--tx-pkt-count", "--count", dest="count", type=int,
        help="packets by all sockets together, then end (default: no end)")  # fmt: skip
    add("-s", "--tx-pkt-size", "--size", dest="size", type=int, default=64,
        help="bytes of a packet, without check sequence (64)")  # fmt: skip
    pace = group.add_mutually_exclusive_group()
    pace.add_argument("--rate", type=float,
        help="packets a second by all sockets together (as fast as can be)")  # fmt: skip
    pace.add_argument("-T", "--tx-cycle", dest="cycle_us", type=int, metavar="US",
        help="a batch from each socket every so many microseconds")  # fmt: skip


def _add_headers(group: Any) -> None:
    add = group.add_argument
    add("-G", "--tx-dmac", dest="dst_mac", metavar="MAC", help="destination (02:00:00:00:00:02)")
    add("-H", "--tx-smac", dest="src_mac", metavar="MAC", help="source (the link's own)")
    add("-V", "--tx-vlan", dest="vlan", action="store_true", help="with an 802.1Q tag")
    add("-J", "--tx-vlan-id", dest="vlan_id", type=int, metavar="ID", help="its VLAN (1)")
    add("-K", "--tx-vlan-pri", dest="vlan_priority", type=int, metavar="N", help="priority (0)")
    add("--src-ip", help="first source address, IPv4 or IPv6 (198.18.0.1, 2001:2::1)")
    add("--dst-ip", help="destination address (198.19.0.1, 2001:2:0:1::1)")
    add("--src-port", type=int, default=4096, help="first source port (4096)")
    add("--dst-port", type=int, default=4096, help="destination port (4096)")
    add("--sources", type=int, default=1, metavar="N", help="source addresses that take turns (1)")
    add("--ports", type=int, default=1, metavar="N", help="source ports that take turns (1)")


def _add_payload(group: Any) -> None:
    add = group.add_argument
    add("-P", "--tx-pkt-pattern", dest="pattern", default="12345678", metavar="HEX",
        help="32 bits that fill it (0x12345678)")  # fmt: skip
    head = group.add_mutually_exclusive_group()
    head.add_argument("-y", "--tstamp", dest="payload", action="store_const", const="tstamp",
        default="pattern", help="begins with the kernel's pktgen header: number, time")  # fmt: skip
    head.add_argument("--sequence", dest="payload", action="store_const", const="sequence",
        help="begins with what rxdrop --verify checks")  # fmt: skip
    add("--stream", type=int, metavar="ID",
        help="what --verify tells the first socket's numbers by (by chance)")  # fmt: skip


def traffic_of(args: argparse.Namespace) -> Traffic:
    """Turn the options into checked traffic.

    Raises
    ------
    ConfigError
    """
    more: dict[str, Any] = {}
    if args.dst_mac is not None:
        more["dst_mac"] = parse_any_mac(args.dst_mac, "tx-dmac")
    if args.src_mac is not None:
        more["src_mac"] = parse_mac(args.src_mac, "tx-smac")
    if args.vlan or args.vlan_id is not None or args.vlan_priority is not None:
        more["vlan_id"] = 1 if args.vlan_id is None else args.vlan_id
        more["vlan_priority"] = args.vlan_priority or 0
    if args.stream is not None and not 0 <= args.stream <= MAX_STREAM:
        raise ConfigError(f"stream must be in [0, {MAX_STREAM}], got {args.stream}")
    same = ("size", "count", "rate", "cycle_us", "payload", "src_ip", "dst_ip", "src_port",
            "dst_port", "sources", "ports")  # fmt: skip
    more |= {name: getattr(args, name) for name in same}
    return Traffic(pattern=_parse_pattern(args.pattern), **more)


def _parse_pattern(text: str) -> int:
    try:
        return int(text, 16)
    except ValueError:
        raise ConfigError(
            f"tx-pkt-pattern must be hex of up to 32 bits like 0x12345678, got {text!r}"
        ) from None


def run(args: argparse.Namespace) -> int:
    traffic = traffic_of(args)
    if args.batch_size is None and traffic.cycle_us is None:
        args.batch_size = min(BATCH_SIZE, args.ring_size)
    config = tool_config(args, sends_only=True)

    from l2fwd.datapath.generate import GeneratorPath

    run_path(args, lambda notify: GeneratorPath(config, traffic, notify, args.stream))
    return 0
