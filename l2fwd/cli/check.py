"""``check``: what this host and its links can do."""

import argparse
import json
from collections import Counter
from dataclasses import asdict

from l2fwd.errors import EXIT_UNSUPPORTED

HELP = "Show what this host and its links can do, and the command that mends what is wrong."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    parser.add_argument(
        "links", nargs="*", metavar="LINK", help="links to look at (default: the host alone)"
    )
    parser.add_argument(
        "--frame-size",
        type=int,
        choices=(2048, 4096),
        default=2048,
        help="bytes per frame the MTU must fit (2048)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per line")


def run(args: argparse.Namespace) -> int:
    """Print the findings; return 0 unless one is an error."""
    from l2fwd.check import check_host, check_link

    findings = check_host()
    for name in dict.fromkeys(args.links):
        findings += check_link(name, frame_size=args.frame_size)
    levels = Counter(finding.level for finding in findings)
    if args.json:
        for finding in findings:
            print(json.dumps({"event": "finding", **asdict(finding)}))
        totals = {
            "ok": levels["ok"],
            "warnings": levels["warning"],
            "errors": levels["error"],
        }
        print(json.dumps({"event": "summary", **totals}))
    else:
        width = max(len(finding.subject) for finding in findings)
        for finding in findings:
            remedy = f" -> {finding.remedy}" if finding.remedy else ""
            print(f"{finding.level:<7}  {finding.subject:<{width}}  {finding.what}{remedy}")
    return EXIT_UNSUPPORTED if levels["error"] else 0
