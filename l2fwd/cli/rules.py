"""``rules test|check``: what a rule table does with a frame, and whether it is one."""

import argparse
import json
from collections import Counter

from l2fwd.errors import ConfigError
from l2fwd.rules import join_rules, read_rules

HELP = "Try rules on frames, without a link: which rule takes each, and why; or count them."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="action", metavar="test|check", required=True)
    test = verbs.add_parser("test", help="tell which rule takes a frame", allow_abbrev=False)
    add = test.add_argument
    add("frame", metavar="FRAME", help="hex bytes, or the path of a pcap or pcapng file")
    add("--rules", metavar="FILE", help="one rule a line")
    add("--rule", action="append", default=[], metavar="RULE",
        help="one more, before those of the file; may be repeated")  # fmt: skip
    add("--in", dest="in_link", metavar="LINK",
        help="where the frame comes from (default: the first link that an in names)")  # fmt: skip
    add("--miss", default="pass", help="what no rule takes: pass (default), drop or user")
    add("--json", action="store_true", help="one JSON object per frame")
    check = verbs.add_parser("check", help="read and count the rules", allow_abbrev=False)
    check.add_argument("rules", metavar="FILE", help="one rule a line")
    check.add_argument("--json", action="store_true", help="one JSON object")


def run(args: argparse.Namespace) -> int:
    return {"test": _test, "check": _check}[args.action](args)


def _test(args: argparse.Namespace) -> int:
    from l2fwd.explain import Explainer, read_frames

    if not args.rule and args.rules is None:
        raise ConfigError("rules are missing: give --rules FILE or --rule RULE")
    explainer = Explainer(join_rules(args.rule, args.rules), args.miss, args.in_link)
    verdicts: Counter[str] = Counter()
    for number, (frame, on_wire) in enumerate(read_frames(args.frame), 1):
        told = explainer.explain(frame)
        verdicts[told.verdict] += 1
        if args.json:
            head = {"event": "frame", "number": number, "length": len(frame), "on_wire": on_wire}
            print(json.dumps(head | told.as_dict()))
            continue
        cut = "" if on_wire == len(frame) else f" of {on_wire}, the capture has no more"
        print(f"frame {number}: {len(frame)} bytes{cut}", *told.lines(), sep="\n  ")
    if args.json:
        print(json.dumps({"event": "summary", "frames": verdicts.total(), "verdicts": verdicts}))
    elif verdicts.total() != 1:
        counts = ", ".join(f"{count:,} {verdict}" for verdict, count in verdicts.items())
        print(f"{verdicts.total():,} frames: {counts or 'the capture is empty'}")
    return 0


def _check(args: argparse.Namespace) -> int:
    from l2fwd.explain import compile_table

    rules = read_rules(args.rules)
    compiled = compile_table(rules)
    counts = {"rules": len(rules), "masks": len(compiled.masks), "entries": len(compiled.entries)}
    if args.json:
        print(json.dumps({"event": "summary", **counts}))
    else:
        print(", ".join(f"{count:,} {what}" for what, count in counts.items()))
    return 0
