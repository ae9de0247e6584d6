"""Join two links: two sockets on one packet memory, so that packets move without a copy.

python examples/bridge.py LINK LINK

A socket receives what is addressed to its link; ``ip link set LINK promisc on`` for the rest.
"""

import select
import sys

from l2fwd import XdpSocket


def main(left_link, right_link):
    with (
        XdpSocket(left_link, frames=2048) as left,
        XdpSocket(right_link, umem=left.umem) as right,
    ):
        print(f"{left_link} - {right_link}", flush=True)
        ways = {left: right, right: left}
        try:
            while True:
                for source in select.select([left, right], [], [])[0]:
                    source.read_batch(timeout=0).send_on(ways[source])
        except KeyboardInterrupt:
            for socket in ways:
                stats = socket.stats()
                print(f"{stats.link}: {stats.rx_packets} in, {stats.tx_packets} out, {stats.drops}")


if __name__ == "__main__":
    main(*sys.argv[1:])
