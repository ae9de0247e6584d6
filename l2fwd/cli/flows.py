"""``flows LINK``: what a running hybrid engine has learned from the packets of a link."""

import argparse

HELP = "List the flows that a running engine has learned from packets of LINK."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("link", metavar="LINK")
    parser.add_argument("-n", "--limit", type=int, default=0, metavar="N",
                        help="only the N with most packets (default: all)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="one JSON object per flow")


def run(args: argparse.Namespace) -> int:
    import json
    from dataclasses import asdict
    from itertools import islice

    from l2fwd.errors import ConfigError
    from l2fwd.flow_list import list_flows
    from l2fwd.link import find_link

    if args.limit < 0:
        raise ConfigError(f"limit must be 0 (all) or more, got {args.limit}")
    found = list_flows(find_link(args.link).ifindex, args.link)
    flows = list(islice(found, args.limit or None))
    for flow in flows:
        if args.json:
            print(json.dumps({"event": "flow", **asdict(flow)}))
            continue
        state = "kernel" if flow.is_settled else "user space"
        print(
            f"{flow.packets:>12,} packets {flow.bytes:>15,} bytes  {flow.age:6.1f} s ago  {state}  "
            f"queue {flow.queue}  {flow.match} -> {flow.action}  ({flow.by})"
        )
    if args.json:
        print(json.dumps({"event": "summary", "flows": len(flows)}))
    else:
        print(f"{len(flows):,} flows")
    return 0
