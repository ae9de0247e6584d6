"""Rewrite packets in compiled code, at full rate: next hop by IPv4 destination, and a DSCP.

    python examples/numba_rewrite.py IN OUT --duration 10

is the same as

    python -m l2fwd forward IN OUT --data-path hybrid --miss user --policy examples/numba_rewrite.py

Numba makes a C function of ``rewrite``; the worker calls it for each packet, without the GIL.
"""

import sys

import numpy as np

from l2fwd import ConfigError, Policy
from l2fwd.__main__ import main
from l2fwd.abi import VERDICTS
from l2fwd.records import ACTION, NOT_LEARNED
from l2fwd.rule_keys import LINK_LOCAL

if __name__ == "__main__":  # first: that this file is a policy comes next, and needs Numba
    options = ["--data-path", "hybrid", "--miss", "user", "--policy", __file__]
    sys.exit(main(["forward", *options, *sys.argv[1:]]))

try:
    from numba import carray, cfunc, types
except ImportError:
    raise ConfigError("it needs Numba: pip install numba") from None

# Row n: the next hop to IPv4 addresses that end in n.
NEXT_HOPS = np.array([[2, 0, 0, 0, 2, n] for n in range(256)], np.uint8)
TOS = 46 << 2  # DSCP "expedited forwarding", RFC 3246
OUT = VERDICTS["out"]
# What is read of records.PACKET: Numba knows no big-endian numbers, as the whole has.
PACKET = np.dtype(
    {
        "names": ["length", "ip_version", "flags"],
        "formats": ["u4", "u1", "u1"],
        "offsets": [8, 39, 44],
        "itemsize": 80,
    }
)


@cfunc(types.void(types.voidptr, types.voidptr, types.CPointer(types.uint8)))
def rewrite(packet_pointer, action_pointer, data):
    packet = carray(packet_pointer, 1, PACKET)[0]
    action = carray(action_pointer, 1, ACTION)[0]
    frame = carray(data, packet.length)
    if packet.flags & LINK_LOCAL:
        return  # meant for the next bridge: pass
    action.verdict = OUT  # of the other link, where out_ifindex stays zero
    action.flags = NOT_LEARNED  # the kernel would not write these bytes
    if packet.ip_version != 4 or frame[12] != 0x08:
        return  # not IPv4, or tagged
    frame[0:6] = NEXT_HOPS[frame[33]]
    # RFC 1624: checksum' = ~(~checksum + ~word + word'), of the word that holds the TOS byte.
    before = np.uint32(frame[14]) << 8 | frame[15]
    frame[15] = TOS | frame[15] & 3
    after = np.uint32(frame[14]) << 8 | frame[15]
    total = (0xFFFF ^ (np.uint32(frame[24]) << 8 | frame[25])) + (0xFFFF ^ before) + after
    total = (total & 0xFFFF) + (total >> 16)
    total = 0xFFFF ^ ((total & 0xFFFF) + (total >> 16))
    frame[24], frame[25] = total >> 8, total & 0xFF


policy = Policy.from_function(rewrite, per="packet")
