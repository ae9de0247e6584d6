"""The library's sockets: what is read and written, lent and given back, and refused."""

import asyncio
import select
import socket
import subprocess
import threading
import time

import numpy as np
import pytest

from l2fwd import Batch, ConfigError, KernelError, MultiQueueSocket, XdpSocket, link
from l2fwd.bpf import Program
from tests.conftest import Wire

pytestmark = [pytest.mark.privileged, pytest.mark.timeout(30)]


@pytest.fixture
def inside(bed):
    """Run the test in the bed's middle namespace."""
    with link.in_netns(bed.fwd):
        yield bed


@pytest.fixture
def wire(bed, open_wire):
    return open_wire(bed)


@pytest.fixture(params=["native", "skb"])
def xsk(inside, request):
    with XdpSocket("f0", mode=request.param, frames=64, ring_size=64) as opened:
        assert opened.attach_mode == request.param
        yield opened


@pytest.fixture
def pair(inside):
    """Sockets on both links that share a UMEM."""
    with (
        XdpSocket("f0", frames=128, ring_size=128) as left,
        XdpSocket("f1", frames=32, ring_size=128, umem=left.umem) as right,
    ):
        yield left, right


def ledger(*sockets):
    """Return the frames of one UMEM that are somewhere; what a batch holds is not."""
    frames = [each.channel.frames() for each in sockets]
    pool = sockets[0].umem.pool
    return pool.free_count + pool.lost_count + sum(sum(each.values()) for each in frames)


# Receive


def test_one_packet_at_a_time_is_copied(xsk, wire):
    sent = wire.send(3, length=90)
    assert [xsk.read() for _ in range(3)] == sent
    assert ledger(xsk) == 128


def test_a_packet_is_read_into_a_buffer_and_stays_if_it_does_not_fit(xsk, wire):
    (sent,) = wire.send(1, length=90)
    with pytest.raises(ConfigError, match="has 90 bytes, the buffer 60"):
        xsk.read_into(bytearray(60))
    buffer = bytearray(100)
    assert xsk.read_into(buffer) == 90
    assert bytes(buffer[:90]) == sent


def test_a_batch_shows_packets_where_they_are(xsk, wire):
    sent = wire.send(10)
    time.sleep(0.1)
    before = time.time_ns()
    with xsk.read_batch(8) as batch:
        assert len(batch) == 8
        assert batch.length.tolist() == [60] * 8
        assert [bytes(batch[i]) for i in range(8)] == sent[:8]
        assert batch.tolist() == sent[:8]
        numbers = batch.window[batch.row, batch.column + 17]
        assert numbers.tolist() == list(range(8))
        assert abs(batch.timestamp_ns - before).max() < 10e9
        assert ledger(xsk) == 128 - 8
        with pytest.raises(ValueError, match="read-only"):
            batch.addr[0] = 1
    assert ledger(xsk) == 128
    assert xsk.read_batch(copy=True).tolist() == sent[8:]
    assert ledger(xsk) == 128


def test_a_released_batch_is_refused_and_so_is_a_release_under_a_view(xsk, wire):
    """Z8: never another packet's bytes."""
    wire.send(2)
    time.sleep(0.1)
    batch = xsk.read_batch()
    view = batch[0]
    with pytest.raises(BufferError, match="views of the batch are alive"):
        batch.release()
    assert bytes(view)[:6] == bytes(batch[0])[:6]
    part = view[:4]
    del view
    with pytest.raises(BufferError):
        batch.release()
    del part
    batch.release()
    batch.release()
    for use in (len, lambda b: b[0], lambda b: b.addr, lambda b: b.window, Batch.tolist):
        with pytest.raises(ConfigError, match="was released"):
            use(batch)
    assert ledger(xsk) == 128


def test_a_batch_that_nobody_holds_gives_its_frames_back(xsk, wire):
    wire.send(3)
    time.sleep(0.1)
    assert len(xsk.read_batch()) == 3
    assert ledger(xsk) == 128


def test_frames_that_come_back_after_close_do_no_harm(inside, wire):
    xsk = XdpSocket("f0", frames=64, ring_size=64)
    (sent,) = wire.send(1)
    time.sleep(0.1)
    batch = xsk.read_batch()
    view = batch[0]
    xsk.close()
    assert bytes(view) == sent
    del view
    batch.release()


def test_nothing_there_is_an_empty_batch_or_an_error_of_its_own(inside):
    with XdpSocket("f0", frames=64, ring_size=64, block=False, poll_timeout=0.01) as xsk:
        assert len(xsk.read_batch()) == 0
        with pytest.raises(BlockingIOError, match="no packet on f0 queue 0"):
            xsk.read()
        with pytest.raises(BlockingIOError):
            xsk.read_into(bytearray(100))


def test_a_socket_that_blocks_waits_and_lets_other_threads_run(xsk, wire):
    timer = threading.Timer(0.3, wire.send, (1,))
    timer.start()
    assert xsk.read() == wire.frame(0)
    timer.join()


def test_more_packets_than_frames_come_as_they_are_read(xsk, wire):
    for turn in range(30):
        sent = wire.send(20, first=20 * turn)
        assert [xsk.read() for _ in range(20)] == sent
    assert xsk.stats().rx_packets == 600
    assert xsk.stats().drops == {}


# Send


@pytest.mark.parametrize("kind", ["list", "rows", "batch"])
def test_packets_are_sent_in_order_whatever_they_come_in(inside, wire, kind):
    sent = [Wire.frame(i, 60 + i % 40) for i in range(500)]
    batch = Batch.of(sent)
    arguments = {"list": (sent,), "rows": (batch.window, batch.length), "batch": (batch,)}[kind]
    with XdpSocket("f1", frames=64, ring_size=64) as xsk:
        assert xsk.write_batch(*arguments) == 500
        assert xsk.flush()
        assert wire.receive(500) == sent
        stats = xsk.stats()
        assert stats.tx_packets == stats.tx_completed == 500
        assert stats.tx_bytes == sum(map(len, sent))
        assert ledger(xsk) == 128


def test_one_packet_is_sent_from_any_buffer(inside, wire):
    packet = Wire.frame(7)
    with XdpSocket("f1", frames=8, ring_size=8) as xsk:
        for kind in (bytes, bytearray, memoryview):
            xsk.write(kind(packet))
        assert wire.receive(3) == [packet] * 3


@pytest.mark.parametrize(
    ("packets", "lengths", "said"),
    [
        ([bytes(60), b""], None, "packet 1 has 0 bytes; it must have 14 to 2048"),
        ([bytes(60), bytes(13)], None, "packet 1 has 13 bytes"),
        ([bytes(60), bytes(2049)], None, "packet 1 has 2049 bytes"),
        (np.zeros((2, 60), np.int8), None, "must be uint8 of shape"),
        (np.zeros(60, np.uint8), None, "must be uint8 of shape"),
        (np.zeros((2, 60), np.uint8), np.array([60, 61]), "packet 1 has 61 bytes, its row 60"),
        (np.zeros((2, 60), np.uint8), np.array([60]), r"lengths must have shape \(2,\)"),
        ([bytes(60)], np.array([60]), "lengths are for an array"),
    ],
)
def test_what_cannot_be_sent_is_named_and_costs_no_frame(inside, packets, lengths, said):
    with XdpSocket("f1", frames=8, ring_size=8) as xsk:
        with pytest.raises(ConfigError, match=said):
            xsk.write_batch(packets, lengths)
        with pytest.raises(TypeError):
            xsk.write(60)
        xsk.flush()
        assert ledger(xsk) == 16


def test_frames_are_sent_on_without_a_copy(pair, wire):
    left, right = pair
    sent = wire.send(20)
    time.sleep(0.1)
    batch = left.read_batch(32)
    batch.window[batch.row, batch.column + 20] = 0xEE
    batch.length[:] = 40
    assert batch.send_on(right) == 20
    with pytest.raises(ConfigError, match="was released"):
        len(batch)
    expected = [(frame[:20] + b"\xee" + frame[21:])[:40] for frame in sent]
    assert wire.receive(20) == expected
    right.flush()
    assert ledger(left, right) == 256


def test_a_batch_is_sent_on_to_its_own_umem_only(inside, wire):
    with (
        XdpSocket("f0", frames=8, ring_size=8) as left,
        XdpSocket("f1", frames=8, ring_size=8) as right,
    ):
        wire.send(1)
        with left.read_batch() as batch:
            with pytest.raises(ConfigError, match="needs a socket of the batch's UMEM"):
                batch.send_on(right)
            batch.length[0] = 5000
            with pytest.raises(ConfigError, match="packet 0 has 5000 bytes"):
                batch.send_on(left)
        assert ledger(left) == 16


# Many


def test_full_duplex_on_one_link_and_both_ways_at_once(pair, wire):
    left, right = pair
    for turn in range(20):
        there = wire.send(10, first=100 * turn)
        back = wire.send(10, first=100 * turn, source=wire.sink)
        time.sleep(0.01)
        for source, target in ((left, right), (right, left)):
            got = 0
            while got < 10:
                got += source.read_batch(timeout=1).send_on(target)
        assert wire.receive(10) == there
        assert wire.receive(10, end=wire.gen) == back
    left.flush()
    right.flush()
    assert ledger(left, right) == 256


def test_one_object_over_all_queues(make_bed, open_wire):
    bed = make_bed(queues=2)
    wire = open_wire(bed)
    with link.in_netns(bed.fwd), MultiQueueSocket("f0", block=False, poll_timeout=1) as many:
        assert [each.queue for each in many.sockets] == [0, 1]
        sent = wire.send(10)
        time.sleep(0.1)
        assert sorted(many.read_batch().tolist()) == sorted(sent)
        assert many.write_batch(sent) == 10
        assert sorted(wire.receive(10, end=wire.gen)) == sorted(sent)
        total, first, second = many.stats()
        assert (total.queue, total.rx_packets, total.tx_packets) == (-1, 10, 10)
        assert first.tx_packets == second.tx_packets == 5
        assert first.rx_packets + second.rx_packets == 10


def test_a_thread_a_queue(make_bed, open_wire):
    bed = make_bed(queues=2)
    wire = open_wire(bed)
    found = []

    def read(each):
        while True:
            batch = each.read_batch(timeout=1.0)
            if not batch:
                return
            with batch:
                found.extend(batch.tolist())

    with link.in_netns(bed.fwd), MultiQueueSocket("f0", threads=True) as many:
        threads = [threading.Thread(target=read, args=(each,)) for each in many.sockets]
        for thread in threads:
            thread.start()
        sent = wire.send(200)
        for thread in threads:
            thread.join()
    assert sorted(found) == sorted(sent)


def test_a_second_thread_is_refused_until_the_socket_is_handed_over(xsk, wire):
    xsk.read_batch(timeout=0)
    errors = []

    def use():
        try:
            xsk.read_batch(timeout=0)
        except ConfigError as error:
            errors.append(str(error))

    for turn in range(2):
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        if turn == 0:
            xsk.hand_over()
    assert len(errors) == 1
    assert "is used by another thread" in errors[0]


# Waiting elsewhere


def test_select_tells_when_a_packet_is_there(xsk, wire):
    assert select.select([xsk], [], [], 0.05)[0] == []
    wire.send(1)
    assert select.select([xsk], [], [], 2)[0] == [xsk]
    assert xsk.read() == wire.frame(0)


def test_asyncio_reads_and_writes(pair, wire):
    left, right = pair

    async def bridge(count):
        done = 0
        async for batch in left:
            done += await right.write_batch_async(batch)
            if done == count:
                return

    async def main():
        task = asyncio.create_task(bridge(50))
        for first in range(0, 50, 10):
            wire.send(10, first=first)
            await asyncio.sleep(0.01)
        await asyncio.wait_for(task, 5)

    asyncio.run(main())
    assert wire.receive(50) == [wire.frame(i) for i in range(50)]


# Open and close


def test_packets_that_nobody_is_there_for_go_to_the_host(inside, wire):
    listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
    listener.bind(("f0", 0x88B5))
    listener.settimeout(2)
    with listener:
        with XdpSocket("f0", receive=False) as xsk:
            wire.send(1)
            assert listener.recv(100) == wire.frame(0)
            with pytest.raises(BlockingIOError):
                xsk.read(timeout=0)
        assert link.find_link("f0").xdp_mode == "none"


def test_the_program_stays_until_the_last_socket_of_the_link_has_gone(make_bed):
    bed = make_bed(queues=2)
    with link.in_netns(bed.fwd):
        first = XdpSocket("f0", 0, mode="skb")
        second = XdpSocket("f0", 1, mode="skb")
        with pytest.raises(ConfigError, match="open this one alike"):
            XdpSocket("f0", 1, mode="native")
        first.close()
        assert link.find_link("f0").xdp_mode == "skb"
        second.close()
        assert link.find_link("f0").xdp_mode == "none"


def test_a_closed_socket_is_refused(xsk):
    xsk.close()
    xsk.close()
    for use in (xsk.read, xsk.read_batch, xsk.fileno, xsk.stats, xsk.flush,
                lambda: xsk.write(bytes(60)), lambda: xsk.write_batch([bytes(60)])):  # fmt: skip
        with pytest.raises(ConfigError, match="closed"):
            use()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"link": "f9"}, "f9"),
        ({"queue": 7}, r"queue must be in \[0, 1\) of f0, got 7"),
        ({"ring_size": 100}, "ring-size must be a power of two"),
        ({"frames": 0}, "frames must be at least 1"),
        ({"mode": "warp"}, "mode must be one of"),
        ({"bind": "warp"}, "bind must be one of"),
        ({"frame_size": 1024}, "frame-size must be 2048 or 4096"),
        ({"poll_timeout": -1}, "poll_timeout must be"),
        ({"program": "/nonexistent.o"}, "no such file"),
        ({"program": "a", "xsks_map": "b"}, "exclude each other"),
    ],
)
def test_a_wrong_setting_is_named_and_nothing_is_attached(inside, settings, said):
    with pytest.raises(ConfigError, match=said):
        XdpSocket(**{"link": "f0"} | settings)
    assert link.find_link("f0").xdp_mode == "none"


def test_a_busy_queue_and_a_missing_map_have_the_kernels_word(inside):
    with XdpSocket("f0"):
        with pytest.raises(KernelError, match="EBUSY"):
            XdpSocket("f0")
    with pytest.raises(KernelError, match="ENOENT"):
        XdpSocket("f0", xsks_map="/sys/fs/bpf/nonexistent")
    with pytest.raises(KernelError):
        XdpSocket("f0", bind="zero-copy")
    assert link.find_link("f0").xdp_mode == "none"


def test_a_program_of_ones_own_and_its_map_pinned(inside, wire, tmp_path):
    source = tmp_path / "own.bpf.c"
    source.write_text(OWN_PROGRAM)
    target = tmp_path / "own.o"
    subprocess.run(
        ["clang", "-O2", "-g", "-target", "bpf", "-I/usr/include/x86_64-linux-gnu", "-c",
         str(source), "-o", str(target)],
        check=True,
    )  # fmt: skip
    with XdpSocket("f0", program=f"{target}:own_program") as xsk:
        sent = wire.send(4)
        assert [xsk.read(), xsk.read()] == sent[::2]
    with XdpSocket("f0", program=str(target)) as xsk:
        sent = wire.send(2)
        assert xsk.read() == sent[0]
    program = Program.from_file(str(target))
    program.close()


OWN_PROGRAM = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
    __uint(type, BPF_MAP_TYPE_XSKMAP);
    __type(key, __u32);
    __type(value, __u32);
    __uint(max_entries, 4);
} xsks_map SEC(".maps");

__u32 seen;

SEC("xdp")
int own_program(struct xdp_md *ctx)
{
    return seen++ % 2 ? XDP_PASS : bpf_redirect_map(&xsks_map, ctx->rx_queue_index, XDP_PASS);
}

char LICENSE[] SEC("license") = "GPL";
"""
