"""Spread flows over back ends: a hash of addresses and ports chooses the destination MAC.

    python examples/load_balancer.py IN OUT --duration 10

is the same as

    python -m l2fwd forward IN OUT --data-path hybrid --miss user --policy examples/load_balancer.py

With ``hybrid`` the first packet of a flow is asked about, the kernel forwards the others.
"""

import sys

import numpy as np

from l2fwd import Policy
from l2fwd.__main__ import main
from l2fwd.rule_keys import LINK_LOCAL

BACK_ENDS = np.array([[2, 0, 0, 0, 1, n] for n in range(4)], np.uint8)  # MACs behind OUT
FLOW = np.r_[22, 24:28, 32:64]  # bytes of records.KEY: protocol, ports, addresses
# Odd numbers, the same in every run: a flow finds its back end again after a restart.
WEIGHTS = np.random.default_rng(1).integers(1 << 63, size=len(FLOW), dtype=np.uint64) * 2 + 1


def decide(batch):
    key = batch.packets["key"]
    actions = batch.actions()  # pass: what is meant for the next bridge stays on this link
    forwarded = key["flags"] & LINK_LOCAL == 0
    batch.out(actions, forwarded)
    # Only IP from IN is balanced.  Later fragments show no ports, and may go elsewhere.
    from_in = key["in_ifindex"] == next(iter(batch.links.values()))
    balanced = forwarded & from_in & (key["ip_version"] != 0)
    octets = key[balanced].view(np.uint8).reshape(-1, key.itemsize)
    hashed = octets[:, FLOW] @ WEIGHTS >> 32  # the upper bits depend on all of them
    batch.out(actions, balanced, set_dst_mac=BACK_ENDS[hashed % len(BACK_ENDS)])
    return actions


# No MACs among the fields: a flow is learned once, whoever its last hop was.
policy = Policy(decide, fields=("in", "src", "dst", "proto", "sport", "dport"))

if __name__ == "__main__":
    options = ["--data-path", "hybrid", "--miss", "user", "--policy", __file__]
    sys.exit(main(["forward", *options, *sys.argv[1:]]))
