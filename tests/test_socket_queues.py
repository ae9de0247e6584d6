"""Many queues, many waits, and many packets: what the library carries while others run."""

import asyncio
import select
import threading
import time

import numpy as np
import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from l2fwd import Batch, MultiQueueSocket, XdpSocket, ethtool, link

pytestmark = [pytest.mark.privileged, pytest.mark.timeout(60)]

QUEUES = 4


@pytest.fixture
def veth(make_bed):
    """Return two namespaces joined by a veth of four queues: ``g0`` in one, ``f0`` in the other."""
    bed = make_bed(queues=QUEUES)
    return bed.gen, bed.fwd


@pytest.fixture
def both(veth):
    """Objects over all queues of both ends, a UMEM per queue."""
    with link.in_netns(veth[0]):
        left = MultiQueueSocket("g0", threads=True, frames=256, ring_size=256)
    with left, link.in_netns(veth[1]):
        with MultiQueueSocket("f0", frames=256, ring_size=256, block=False) as right:
            yield left, right


def frames(count, first=0):
    head = bytes.fromhex("020000000002 020000000001 88b5")
    return [head + (first + i).to_bytes(4, "big") + bytes(42) for i in range(count)]


def collect(many, count):
    """Read until ``count`` packets have come, or none for a second."""
    found = []
    while len(found) < count:
        batch = many.read_batch(timeout=1)
        if not batch:
            break
        found += batch.tolist()
    return found


# All queues as one


def test_all_queues_are_read_and_the_total_comes_first(both):
    left, right = both
    for queue, sender in enumerate(left.sockets):
        assert sender.write_batch(frames(10 + queue, 100 * queue)) == 10 + queue
    sent = [each for queue in range(QUEUES) for each in frames(10 + queue, 100 * queue)]
    found = collect(right, len(sent))
    assert sorted(found) == sorted(sent)
    for queue in range(QUEUES):  # each queue keeps its order
        mine = frames(10 + queue, 100 * queue)
        assert [each for each in found if each in mine] == mine
    total, *each = right.stats()
    assert [one.queue for one in (total, *each)] == [-1, 0, 1, 2, 3]
    assert [one.rx_packets for one in each] == [10, 11, 12, 13]
    assert total.rx_packets == 46
    assert total.rx_bytes == 46 * 60


@pytest.mark.parametrize("kind", ["list", "rows", "lengths", "batch"])
def test_what_is_written_is_spread_in_shares(both, kind):
    left, right = both
    sent = frames(103)
    rows = np.stack([np.frombuffer(each, np.uint8) for each in sent])
    with collected(left, 103) as found:
        if kind == "batch":
            assert right.write_batch(Batch.of(sent)) == 103
        elif kind == "lengths":
            assert right.write_batch(rows, np.full(103, 50, np.uint32)) == 103
            sent = [each[:50] for each in sent]
        else:
            assert right.write_batch(sent if kind == "list" else rows) == 103
    assert sorted(found) == sorted(sent)
    assert sorted(one.tx_packets for one in right.stats()[1:]) == [25, 26, 26, 26]


class collected:  # noqa: N801
    """Read ``count`` packets of all sockets, one thread each, during a ``with``."""

    def __init__(self, many, count):
        self.many, self.count, self.found = many, count, []

    def read(self, socket):
        while len(self.found) < self.count:
            batch = socket.read_batch(copy=True, timeout=0.5)
            if not batch:
                return
            self.found += batch.tolist()

    def __enter__(self):
        self.threads = [
            threading.Thread(target=self.read, args=(each,)) for each in self.many.sockets
        ]
        for thread in self.threads:
            thread.start()
        return self.found

    def __exit__(self, *error):
        for thread in self.threads:
            thread.join()


def test_the_frames_of_all_queues_add_up_to_the_umem(both):
    left, right = both
    left.sockets[1].write_batch(frames(20))
    time.sleep(0.05)
    batches = right.read_batches()
    total = right.stats()[0]
    assert total.frames["user"] == sum(map(len, batches)) > 0
    assert sum(total.frames.values()) == right.sockets[0].umem.config.frame_count
    for batch in batches:
        batch.release()
    alone = left.stats()
    assert sum(alone[0].frames.values()) == QUEUES * 512
    for each in alone[1:]:
        assert sum(each.frames.values()) == 512


def test_nothing_on_any_queue_is_an_empty_batch_after_one_timeout(both):
    assert len(both[1].read_batch(timeout=0.01)) == 0
    assert both[1].read_batches() == []


def test_a_thread_per_queue_sends_while_one_thread_reads_all(both):
    left, right = both

    def send(queue):
        for turn in range(50):
            left.sockets[queue].write_batch(frames(4, 1000 * queue + 4 * turn))
            time.sleep(0.001)

    threads = [threading.Thread(target=send, args=(queue,)) for queue in range(QUEUES)]
    for thread in threads:
        thread.start()
    found = collect(right, QUEUES * 200)
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(
        each for queue in range(QUEUES) for each in frames(200, 1000 * queue)
    )


# Waiting


def test_epoll_tells_which_socket_has_packets(both):
    left, right = both
    with select.epoll() as epoll:
        for each in right.sockets:
            epoll.register(each, select.EPOLLIN)
        assert epoll.poll(0.02) == []
        left.sockets[2].write_batch(frames(3))
        assert epoll.poll(1) == [(right.sockets[2].fileno(), select.EPOLLIN)]
        assert select.select(right.sockets, [], [], 1)[0] == [right.sockets[2]]
        with right.sockets[2].read_batch() as batch:
            assert batch.tolist() == frames(3)
        assert epoll.poll(0.02) == []


def test_asyncio_waits_for_several_sockets_at_once(both):
    left, right = both
    found = {queue: [] for queue in range(QUEUES)}

    async def read(queue):
        async for batch in right.sockets[queue]:
            found[queue] += batch.tolist()
            if len(found[queue]) == 40:
                return

    async def write(queue):
        for first in range(0, 40, 8):
            assert await left.sockets[queue].write_batch_async(frames(8, first)) == 8
            await asyncio.sleep(0.001)

    async def main():
        work = [run(queue) for run in (read, write) for queue in range(QUEUES)]
        await asyncio.wait_for(asyncio.gather(*work), 10)

    asyncio.run(main())
    assert found == {queue: frames(40) for queue in range(QUEUES)}


def test_asyncio_can_be_cancelled_and_a_closed_socket_ends_its_wait(both):
    _, right = both
    first, second, *_ = right.sockets

    async def main():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(first.read_batch_async(), 0.05)
        task = asyncio.create_task(second.read_batch_async())
        await asyncio.sleep(0.05)
        second.close()
        with pytest.raises(ValueError, match="is closed"):
            await asyncio.wait_for(task, 5)

    asyncio.run(main())


def test_python_runs_while_a_socket_waits(both):
    """The GIL is free: another thread counts on while this one is in one call of read."""
    left, right = both
    turns = [0]
    is_done = threading.Event()

    def count():
        while not is_done.is_set():
            turns[0] += 1
        left.sockets[0].write_batch(frames(1))

    thread = threading.Thread(target=count)
    timer = threading.Timer(0.3, is_done.set)
    thread.start()
    before = turns[0]
    timer.start()
    assert right.sockets[0].read(timeout=10) == frames(1)[0]
    thread.join()
    assert turns[0] > before + 1000


# 10^5 packets each way at once

PACKETS = 100_000
KINDS = 500  # packets that scapy built: the others differ in their number
BURST = 500


def templates(there):
    """Build packets of many lengths with scapy, four bytes left for a number: rows, lengths."""
    ends = ("02:00:00:00:00:01", "02:00:00:00:00:02"), ("10.0.0.1", "10.0.0.2")
    (src, dst), (source, target) = ends if there else [pair[::-1] for pair in ends]
    rows, lengths = np.zeros((KINDS, 1514), np.uint8), np.zeros(KINDS, np.uint32)
    for i in range(KINDS):
        load = bytes(4) + bytes((i + j) & 0xFF for j in range(14 + i * 1454 // (KINDS - 1)))
        packet = bytes(
            Ether(src=src, dst=dst)
            / IP(src=source, dst=target, id=i)
            / UDP(sport=i + 1, dport=9, chksum=0)
            / Raw(load)
        )
        rows[i, : len(packet)] = np.frombuffer(packet, np.uint8)
        lengths[i] = len(packet)
    return rows, lengths


def burst(rows, first):
    """Number the templates, in place, from ``first`` on."""
    numbers = np.arange(first, first + len(rows)).astype(">u4")
    rows[:, 42:46] = numbers.view(np.uint8).reshape(-1, 4)
    return rows


@pytest.mark.parametrize("mode", ["native", "skb"])
def test_a_hundred_thousand_packets_each_way_at_once(veth, mode):
    """F1, F2: all bytes are scapy's; what scapy says of them is asked for every thousandth."""
    settings = {"mode": mode, "frames": 1024, "ring_size": 1024}
    for netns, ifname in zip(veth, ("g0", "f0"), strict=True):
        with link.in_netns(netns):
            ethtool.set_features(ifname, {"rx-gro": False})
    with link.in_netns(veth[0]):
        left = XdpSocket("g0", **settings)
    with left, link.in_netns(veth[1]), XdpSocket("f0", **settings) as right:
        ways = [(left, right, *templates(True)), (right, left, *templates(False))]
        for first in range(0, PACKETS, BURST):
            for sender, _, rows, lengths in ways:
                assert sender.write_batch(burst(rows, first), lengths) == BURST
            for _, receiver, rows, lengths in ways:
                check(receiver, rows, lengths, first)
        for each in (left, right):
            assert each.flush()
            stats = each.stats()
            assert stats.rx_packets == stats.tx_packets == stats.tx_completed == PACKETS
            assert stats.drops == {}
            assert sum(stats.frames.values()) == 2048
            assert stats.frames["lost"] == stats.frames["user"] == 0


def check(receiver, rows, lengths, first):
    """Receive a burst and compare it with what was sent, byte by byte."""
    done = 0
    while done < BURST:
        with receiver.read_batch(BURST - done, timeout=2) as batch:
            assert batch, f"{BURST - done} packets from {first + done} on did not come"
            for i, packet in enumerate(batch.tolist(), done):
                assert packet == rows[i, : lengths[i]].tobytes()
                if (first + i) % 1000 == 0:
                    ask_scapy(packet, first + i)
            done += len(batch)


def ask_scapy(packet, number):
    """Dissect: lengths and checksum are right, and the number is there."""
    dissected = Ether(packet)
    ip = dissected[IP]
    told = ip.chksum
    ip.chksum = None
    assert IP(bytes(ip)).chksum == told
    assert ip.len == len(packet) - 14
    assert dissected[UDP].len == len(packet) - 34
    assert int.from_bytes(bytes(dissected[UDP].payload)[:4], "big") == number
