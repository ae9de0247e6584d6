"""``unload LINK...``: detach a program of ours that outlived its engine, pinned or left."""

import argparse

HELP = "Detach programs of l2fwd from links, pinned or left.  Foreign ones and engines stay."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("links", metavar="LINK", nargs="+")
    parser.add_argument("--json", action="store_true", help="one JSON object per link")


def run(args: argparse.Namespace) -> int:
    import json
    import sys

    from l2fwd.bpf import unload
    from l2fwd.errors import L2fwdError
    from l2fwd.link import find_link

    code = 0
    for name in args.links:
        try:
            removed = unload(find_link(name).ifindex, name)
        except L2fwdError as error:
            print(f"l2fwd unload: {error}", file=sys.stderr)
            code = max(code, error.exit_code)
            continue
        if args.json:
            removed_id = removed.program_id if removed else None
            print(json.dumps({"event": "unload", "link": name, "program_id": removed_id}))
        else:
            print(f"{name}: {f'detached {removed}' if removed else 'nothing of ours attached'}")
    return code
