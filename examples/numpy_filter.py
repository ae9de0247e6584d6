"""Drop UDP packets by the first bytes of their payload, and forward everything else.

    python examples/numpy_filter.py IN OUT --duration 10

is the same as

    python -m l2fwd forward IN OUT --data-path hybrid --miss user --policy examples/numpy_filter.py

A payload tells nothing about the next packet: each answer is for ``once``.  What no filter needs
to see is worth a rule, so that it stays in the kernel: ``--rule 'proto udp -> user'
--rule 'in IN -> out OUT'``.
"""

import sys

import numpy as np

from l2fwd import Policy
from l2fwd.__main__ import main
from l2fwd.rule_keys import LINK_LOCAL

MARK = np.frombuffer(b"DROPME", np.uint8)
ETHERNET, IPV4, UDP = 14, 20, 8  # bytes: of an untagged packet without IP options
PAYLOAD = ETHERNET + IPV4 + UDP


def decide(batch):
    key = batch.packets["key"]
    actions = batch.actions()  # pass: what is meant for the next bridge stays on this link
    batch.out(actions, key["flags"] & LINK_LOCAL == 0)
    # Long enough first: behind a packet's end are bytes of an earlier one.
    long_enough = batch.packets["length"] >= PAYLOAD + len(MARK)
    asked = np.flatnonzero(long_enough & (key["proto"] == 17) & (key["ip_version"] == 4))
    row, column = batch.row[asked, None], batch.column[asked, None]
    plain = batch.frames[row, column + ETHERNET] == 0x45  # version 4, five words of header
    marked = batch.frames[row, column + PAYLOAD + np.arange(len(MARK))] == MARK
    batch.drop(actions, asked[(plain & marked).all(axis=1)])
    batch.once(actions)
    return actions


policy = Policy(decide)

if __name__ == "__main__":
    options = ["--data-path", "hybrid", "--miss", "user", "--policy", __file__]
    sys.exit(main(["forward", *options, *sys.argv[1:]]))
