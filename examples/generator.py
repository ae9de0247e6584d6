"""Send numbered packets as fast as it goes: rows of one array, of which only a column changes.

python examples/generator.py LINK [COUNT]
"""

import sys
import time

import numpy as np

from l2fwd import XdpSocket

HEAD = bytes.fromhex("02000000000202000000000188b5")  # to, from, an ethertype to try things
BURST = 64


def main(link, count=0):
    rows = np.zeros((BURST, 60), np.uint8)
    rows[:, :14] = np.frombuffer(HEAD, np.uint8)
    numbers = rows[:, 14:18].view(">u4")[:, 0]  # the same memory, as 64 numbers
    sent, start = 0, time.monotonic()
    with XdpSocket(link, receive=False) as socket:
        try:
            while not count or sent < count:
                size = min(BURST, count - sent) if count else BURST
                numbers[:] = np.arange(sent, sent + BURST) & 0xFFFFFFFF
                sent += socket.write_batch(rows[:size])
        except KeyboardInterrupt:
            pass
        socket.flush()
        print(f"{sent:,} packets, {sent / (time.monotonic() - start):,.0f} a second")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
