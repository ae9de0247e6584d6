"""Send every packet back to where it came from, and say how many there were, under asyncio.

python examples/asyncio_echo.py LINK
"""

import asyncio
import signal
import sys

from l2fwd import XdpSocket


async def echo(socket):
    async for batch in socket:
        for packet in batch:
            packet[:12] = packet[[6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 5]]  # swap the MACs
        del packet  # a view that is alive would keep the batch from being released
        await socket.write_batch_async(batch)


async def report(socket):
    while True:
        await asyncio.sleep(1)
        print(f"{socket.stats().rx_packets} packets", flush=True)


async def main(link):
    with XdpSocket(link) as socket:
        tasks = asyncio.gather(echo(socket), report(socket))
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, tasks.cancel)
        print(f"{link}: echo", flush=True)
        try:
            await tasks
        except asyncio.CancelledError:
            print(f"{socket.stats().tx_packets} packets sent back")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
