"""Count what arrives on each queue of a link, one thread a queue.

python examples/queue_threads.py LINK
"""

import sys
import threading

from l2fwd import MultiQueueSocket


def count(socket, stopping, totals):
    """Run in the one thread that uses this socket; the wait lets the others run."""
    while not stopping.is_set():
        with socket.read_batch(256, timeout=0.1) as batch:
            totals[socket.queue] += int(batch.length.sum())


def main(link):
    stopping = threading.Event()
    with MultiQueueSocket(link, threads=True) as sockets:
        totals = {socket.queue: 0 for socket in sockets.sockets}
        threads = [
            threading.Thread(target=count, args=(socket, stopping, totals))
            for socket in sockets.sockets
        ]
        for thread in threads:
            thread.start()
        print(f"{link}: {len(threads)} threads", flush=True)
        try:
            stopping.wait()
        except KeyboardInterrupt:
            stopping.set()
        for thread in threads:
            thread.join()
        for stats in sockets.stats()[1:]:
            print(f"queue {stats.queue}: {stats.rx_packets} packets, {totals[stats.queue]} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
