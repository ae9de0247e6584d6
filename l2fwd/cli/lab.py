"""``lab up|down|demo``: a veth test bed in namespaces, no NIC needed."""

import argparse
import signal
from typing import Any

HELP = "Make or remove a test bed of veth pairs in namespaces, or show a forwarder at work in one."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="action", metavar="up|down|demo", required=True)
    up = verbs.add_parser("up", help="make the bed and leave it", allow_abbrev=False)
    up.add_argument("--name", default="l2fwd", help="prefix of the namespaces (l2fwd)")
    up.add_argument("--queues", type=int, default=1, help="RX and TX queues of every link (1)")
    down = verbs.add_parser("down", help="remove it, and what killed runs left", allow_abbrev=False)
    down.add_argument("--name", default="l2fwd", help="prefix of the namespaces (l2fwd)")
    demo = verbs.add_parser("demo", help="forward and check numbered frames", allow_abbrev=False)
    demo.add_argument("-d", "--duration", type=float, default=5.0, help="seconds to send (5)")
    demo.add_argument("--data-path", default="afxdp", help="afxdp (default), redirect or hybrid")
    demo.add_argument("-m", "--mode", default="auto", help="auto (default), native or skb")
    demo.add_argument("--queues", type=int, default=1, help="RX and TX queues of every link (1)")
    demo.add_argument("--both-ways", action="store_true", help="also from sink to generator")
    demo.add_argument("--links", nargs=4, metavar=("GEN", "IN", "OUT", "SINK"), default=(),
        help="over these NICs, cabled GEN to IN and OUT to SINK, not over veths")  # fmt: skip
    demo.add_argument("--bind", help="auto (default), copy or zero-copy")
    demo.add_argument(
        "-f", "--frame-size", help="bytes per frame: 2048 or 4096 (default: as forward)"
    )
    demo.add_argument("--json", action="store_true", help="one JSON object per line")


def run(args: argparse.Namespace) -> int:
    return {"up": _up, "down": _down, "demo": _demo}[args.action](args)


def _up(args: argparse.Namespace) -> int:
    from l2fwd.lab import SINK_IP, Bed

    bed = Bed(args.name, queues=args.queues)
    bed.up()
    option = "" if args.name == "l2fwd" else f" --name {args.name}"
    print(
        f"{bed.gen} [g0] - [f0] {bed.fwd} [f1] - [s0] {bed.sink}: up, {args.queues} queue(s)\n"
        f"forward:  nsenter --net=/run/netns/{bed.fwd} python -m l2fwd forward f0 f1\n"
        f"try it:   ip netns exec {bed.gen} ping {SINK_IP}\n"
        f"remove:   python -m l2fwd lab down{option}"
    )
    return 0


def _down(args: argparse.Namespace) -> int:
    from l2fwd.lab import Bed, remove_dead_demos

    bed = Bed(args.name)
    removed = bed.leftovers()
    bed.down()
    removed += remove_dead_demos()
    print(f"removed {', '.join(removed)}" if removed else f"lab {args.name} is not up")
    return 0


def _demo(args: argparse.Namespace) -> int:
    from l2fwd.cli.output import Printer
    from l2fwd.config import AttachMode, choose
    from l2fwd.lab import Demo, passed

    with Printer(json=args.json, quiet=False) as printer:

        def show(event: dict[str, Any]) -> None:
            if args.json or event["event"] != "summary":
                printer(event)

        demo = Demo(
            show,
            duration=args.duration,
            data_path=args.data_path,
            mode=choose(AttachMode, args.mode, "mode"),
            queues=args.queues,
            both_ways=args.both_ways,
            links=args.links,
            options=[
                f"--{name}={value}"
                for name, value in (("bind", args.bind), ("frame-size", args.frame_size))
                if value is not None
            ],
        )
        printer.on_closed = demo.stop
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: demo.stop())
        summary = demo.run()
    if not args.json:
        _print_summary(summary)
    return 0 if passed(summary) else 1


def _print_summary(summary: dict[str, Any]) -> None:
    from l2fwd.stats import drops_text

    print(
        f"sent {summary['sent']:,}, forwarded {summary['forwarded']:,} in "
        f"{summary['elapsed']:.1f} s ({summary['pps']:,.0f} a second); "
        f"lost {summary['lost']}, duplicated {summary['duplicated']}, "
        f"reordered {summary['reordered']}, corrupted {summary['corrupted']}\n"
        f"drops: {drops_text(summary['drops'])}; unaccounted {summary['unaccounted']}",
        flush=True,
    )
