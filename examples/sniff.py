"""Print who talks to whom on a link.  The host does not get these packets meanwhile.

python examples/sniff.py LINK
"""

import sys

import numpy as np

from l2fwd import MultiQueueSocket


def heads(batch):
    """Copy the Ethernet headers alone, all at once: the window shows packets where they are."""
    return map(bytes, batch.window[batch.row[:, None], batch.column[:, None] + np.arange(14)])


def main(link):
    with MultiQueueSocket(link) as sockets:
        print(
            f"{link}: {len(sockets.sockets)} queues, {sockets.sockets[0].attach_mode} XDP",
            flush=True,
        )
        while True:
            for batch in sockets.read_batches():
                with batch:
                    for head, length in zip(heads(batch), batch.length, strict=True):
                        ethertype = int.from_bytes(head[12:])
                        macs = f"{head[6:12].hex(':')} > {head[:6].hex(':')}"
                        print(f"{macs} 0x{ethertype:04x} {length} bytes", flush=True)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        print("done")
