"""Write what arrives on a link to a capture file; the host does not get it meanwhile.

python examples/capture.py LINK FILE
"""

import sys

from l2fwd import MultiQueueSocket
from l2fwd.pcap import CaptureWriter


def main(link, path):
    with open(path, "wb") as file, MultiQueueSocket(link) as sockets:
        writer = CaptureWriter(file, "pcapng", link=link)
        print(f"{link}: to {path}", flush=True)
        try:
            while True:
                for batch in sockets.read_batches():
                    with batch:
                        times = batch.timestamp_ns.tolist()
                        for packet, time_ns in zip(batch.tolist(), times, strict=True):
                            writer.write(packet, time_ns)
        except KeyboardInterrupt:
            total = sockets.stats()[0]
            print(f"{total.rx_packets} packets; lost: {total.drops or 'none'}")


if __name__ == "__main__":
    main(*sys.argv[1:])
