"""The cases of the kernel's AF_XDP self-test, through the library, in copy mode on a veth.

Each names its case of ``tools/testing/selftests/bpf/prog_tests/test_xsk.h``.  Not here: unaligned
frames and packets of more than one frame, which the library does not have.
"""

import errno
import select
import subprocess
from contextlib import ExitStack

import numpy as np
import pytest

from l2fwd import ConfigError, KernelError, XdpSocket, link

pytestmark = [pytest.mark.privileged, pytest.mark.timeout(60)]

PACKETS = 4096
BATCH = 64
HEAD = bytes.fromhex("020000000002 020000000001 88b5")


@pytest.fixture(params=["native", "skb"])
def mode(request):
    return request.param


@pytest.fixture
def open_at(pair, mode):
    """Open sockets at the ``left`` or ``right`` end; all are closed with the test."""
    for netns, ifname in zip(pair, ("left", "right"), strict=True):
        with link.in_netns(netns):
            link.disable_ipv6(ifname)
            link.set_up(ifname)
    with ExitStack() as undo:

        def open_it(end, queue=0, **settings):
            with link.in_netns(pair[("left", "right").index(end)]):
                opened = XdpSocket(
                    end, queue, **{"mode": mode, "frames": 256, "ring_size": 256} | settings
                )
            assert opened.attach_mode == mode
            return undo.enter_context(opened)

        yield open_it


@pytest.fixture
def ends(open_at):
    return open_at("left"), open_at("right")


def numbered(count, length=64, first=0):
    """Make packets: uint8, shape (count, length); their number is in bytes 14 to 17."""
    rows = np.empty((count, length), np.uint8)
    numbers = np.arange(first, first + count)
    rows[:, :14] = np.frombuffer(HEAD, np.uint8)
    rows[:, 14:18] = numbers.astype(">u4").view(np.uint8).reshape(-1, 4)
    rows[:, 18:] = numbers[:, None] + np.arange(length - 18)
    return rows


def receive(receiver, count):
    """Return ``count`` packets as bytes, or as many as come."""
    found = []
    while len(found) < count:
        with receiver.read_batch(min(BATCH, count - len(found)), timeout=1) as batch:
            if not batch:
                break
            found += batch.tolist()
    return found


def carry(sender, receiver, rows):
    """Send in batches, each received before the next is sent; all must come, in order."""
    for first in range(0, len(rows), BATCH):
        part = rows[first : first + BATCH]
        assert sender.write_batch(part) == len(part)
        assert receive(receiver, len(part)) == [row.tobytes() for row in part]


def all_there(*sockets):
    """Tell whether every frame of a socket's own UMEM is somewhere, and none is lost."""
    for each in sockets:
        each.flush()
        frames = each.stats().frames
        assert sum(frames.values()) == each.umem.config.frame_count, frames
        assert frames["lost"] == frames["user"] == 0, frames
    return True


# What is sent is received


@pytest.mark.parametrize("frame_size", [2048, 4096])
def test_packets_come_in_order_and_unchanged(open_at, frame_size):
    """SEND_RECEIVE, SEND_RECEIVE_2K_FRAME"""
    left, right = open_at("left", frame_size=frame_size), open_at("right", frame_size=frame_size)
    carry(left, right, numbered(PACKETS))
    stats = right.stats()
    assert (stats.rx_packets, stats.rx_bytes) == (PACKETS, 64 * PACKETS)
    assert stats.drops == {}
    assert all_there(left, right)


def test_one_packet_does_not_wait_for_a_second(ends):
    """SEND_RECEIVE_SINGLE_PKT, R9"""
    left, right = ends
    left.write(numbered(1).tobytes())
    assert right.read(timeout=1) == numbered(1).tobytes()
    assert all_there(left, right)


def test_both_ways_at_once_and_then_the_other_way_round(ends):
    """BIDIRECTIONAL"""
    for sender, receiver in (ends, ends[::-1]):
        for first in range(0, PACKETS // 4, BATCH):
            rows = numbered(BATCH, first=first)
            expected = [row.tobytes() for row in rows]
            assert sender.write_batch(rows) == receiver.write_batch(rows) == BATCH
            assert receive(receiver, BATCH) == receive(sender, BATCH) == expected
    assert all_there(*ends)


def test_packets_begin_behind_the_headroom(open_at):
    """UMEM_HEADROOM"""
    left, right = open_at("left"), open_at("right", headroom=128)
    left.write_batch(numbered(10))
    with right.read_batch(10, timeout=1) as batch:
        assert set(batch.column.tolist()) == {256 + 128}
        assert batch.tolist() == [row.tobytes() for row in numbered(10)][: len(batch)]


# Waiting


def test_poll_tells_when_to_read_and_when_to_write(ends):
    """POLL_RX, POLL_TX"""
    left, right = ends
    to_write, to_read = select.poll(), select.poll()
    to_write.register(left, select.POLLOUT)
    to_read.register(right, select.POLLIN)
    for number in range(100):
        row = numbered(1, first=number)
        assert to_write.poll(1000) == [(left.fileno(), select.POLLOUT)]
        left.write_batch(row)
        assert to_read.poll(1000) == [(right.fileno(), select.POLLIN)]
        assert right.read(timeout=0) == row.tobytes()


def test_waiting_for_a_packet_that_never_comes_ends(ends):
    """POLL_RXQ_FULL"""
    poll = select.poll()
    poll.register(ends[1], select.POLLIN)
    assert poll.poll(50) == []
    with pytest.raises(BlockingIOError):
        ends[1].read(timeout=0.05)
    assert len(ends[1].read_batch(timeout=0.05)) == 0


def test_waiting_for_room_that_never_comes_ends_and_the_packets_leave_later(open_at, pair):
    """POLL_TXQ_FULL"""
    left, right = open_at("left", frames=128, ring_size=64), open_at("right")
    with link.in_netns(pair[0]):
        link.set_down("left")
    assert left.write_batch(numbered(100), timeout=0.05) == 64
    with pytest.raises(BlockingIOError, match="no room to send"):
        left.write(bytes(60), timeout=0.05)
    poll = select.poll()
    poll.register(left, select.POLLOUT)
    assert poll.poll(50) == []
    assert not left.flush(0.05)
    with link.in_netns(pair[0]):
        link.set_up("left")
    assert left.flush(2)
    assert receive(right, 64) == [row.tobytes() for row in numbered(64)]
    assert all_there(left, right)


def test_all_that_is_written_is_taken_with_few_calls(open_at):
    """TX_QUEUE_CONSUMER, R5: a call takes 32 packets, or what the socket may ask of new kernels."""
    left = open_at("left")
    for count in (33, 100, 256):
        before = left.stats()
        assert left.write_batch(numbered(count)) == count
        after = left.stats()
        assert after.frames["tx"] == 0
        assert 1 <= after.tx_wakeups - before.tx_wakeups <= -(-count // 32) + 1
        assert left.flush()


# What cannot be sent


def test_a_descriptor_that_is_wrong_never_reaches_the_ring(ends):
    """ALIGNED_INV_DESC, ALIGNED_INV_DESC_2K_FRAME, STAT_TX_INVALID: refused before the kernel."""
    left, right = ends
    size, area = 2048, right.umem.config.size
    left.write_batch(numbered(2))
    batch = right.read_batch(2, timeout=1)
    while len(batch) < 2:
        batch.release()
        left.write_batch(numbered(2))
        batch = right.read_batch(2, timeout=1)
    mine = int(batch.addr[0])
    bad = [
        (size - 30, 60),  # crosses its frame
        (mine, size + 1),  # longer than a frame
        (mine, size),  # ends after its frame
        (mine, 0),
        (mine, 13),
        (area, 60),  # starts where the UMEM ends
        (area - 30, 60),
        (1 << 63, 60),
        ((1 << 64) - size, 60),
        ((mine + 8 * size) % area, 60),  # the kernel's, or the pool's
    ]
    for addr, length in bad:
        with pytest.raises(ConfigError, match=r"bytes at|is not yours"):
            right.send_frames(np.array([addr], np.uint64), np.array([length], np.uint32))
    assert right.send_frames(batch.addr, batch.length) == 2
    assert receive(left, 2) == [row.tobytes() for row in numbered(2)]
    batch.release()
    assert right.stats().kernel["tx_invalid_descs"] == 0
    assert right.stats().tx_packets == 2
    assert all_there(left, right)


# What the kernel counts


def test_what_is_too_long_for_a_frame_is_dropped_and_counted(open_at, pair):
    """STAT_RX_DROPPED: exactly half"""
    left, right = open_at("left", frame_size=4096), open_at("right")
    for netns, ifname in zip(pair, ("left", "right"), strict=True):
        with link.in_netns(netns):
            link.set_mtu(ifname, 3000)
    for number in range(32):
        left.write_batch([numbered(1, 64, number).tobytes(), numbered(1, 2000, number).tobytes()])
    assert receive(right, 64) == [row.tobytes() for row in numbered(32)]
    assert right.stats().kernel["rx_dropped"] == 32
    assert sum(right.stats().drops.values()) == 32
    assert all_there(left, right)


def test_more_than_was_lent_is_dropped_and_counted_by_its_one_reason(open_at):
    """STAT_FILL_EMPTY; STAT_RX_FULL cannot be: no more is lent than the RX ring has slots."""
    left, right = open_at("left"), open_at("right", frames=64, ring_size=16)
    assert left.write_batch(numbered(64)) == 64
    assert left.flush()
    assert receive(right, 64) == [row.tobytes() for row in numbered(16)]
    stats = right.stats()
    assert stats.kernel["rx_fill_ring_empty_descs"] == 48
    assert stats.kernel["rx_ring_full"] == 0
    assert sum(stats.drops.values()) == 48
    carry(left, right, numbered(16, first=100))
    assert all_there(left, right)


# Programs


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Compile ``PROGRAMS``; return the object's path."""
    folder = tmp_path_factory.mktemp("programs")
    (folder / "cases.bpf.c").write_text(PROGRAMS)
    subprocess.run(
        ["clang", "-O2", "-g", "-target", "bpf", "-I/usr/include/x86_64-linux-gnu", "-c",
         "cases.bpf.c", "-o", "cases.o"],
        check=True, cwd=folder,
    )  # fmt: skip
    return folder / "cases.o"


def test_a_program_drops_every_other_packet(open_at, programs):
    """XDP_DROP_HALF"""
    left, right = open_at("left"), open_at("right", program=f"{programs}:drop_half")
    rows = numbered(PACKETS // 4)
    for first in range(0, len(rows), BATCH):
        left.write_batch(rows[first : first + BATCH])
        kept = [row.tobytes() for row in rows[first : first + BATCH : 2]]
        assert receive(right, BATCH // 2) == kept
    assert right.stats().rx_packets == len(rows) // 2
    assert right.stats().drops == {}
    assert all_there(left, right)


def test_what_a_program_puts_before_a_packet_is_before_it_in_the_frame(open_at, programs):
    """XDP_METADATA_COPY"""
    left, right = open_at("left"), open_at("right", program=f"{programs}:number")
    left.write_batch(numbered(8))
    seen = 0
    while seen < 8:
        with right.read_batch(8, timeout=1) as batch:
            assert batch
            for row, column in zip(batch.row, batch.column, strict=True):
                assert batch.window[row, column - 4 : column].view("<u4").tolist() == [seen]
                seen += 1


@pytest.mark.parametrize(("program", "change"), [("shrink", -4), ("grow", 4)])
def test_a_program_changes_the_length(open_at, programs, program, change):
    """XDP_ADJUST_TAIL_SHRINK, XDP_ADJUST_TAIL_GROW"""
    left, right = open_at("left"), open_at("right", program=f"{programs}:{program}")
    # Not a multiple of 64: a veth allocates what a packet needs, rounded up, and no more.
    rows = numbered(BATCH, 100)
    left.write_batch(rows)
    found = receive(right, BATCH)
    assert [len(packet) for packet in found] == [100 + change] * BATCH
    assert [packet[:96] for packet in found] == [row[:96].tobytes() for row in rows]


def test_a_second_socket_takes_the_place_of_the_first_in_the_map(open_at):
    """XDP_PROG_CLEANUP: the program stays, as another queue has a socket, too."""
    left, first = open_at("left"), open_at("right")
    open_at("right", queue=1, receive=False)
    carry(left, first, numbered(BATCH))
    first.close()
    assert left.write_batch(numbered(BATCH)) == BATCH  # to the host
    second = open_at("right")
    carry(left, second, numbered(BATCH))
    assert second.stats().rx_packets == BATCH


PROGRAMS = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
    __uint(type, BPF_MAP_TYPE_XSKMAP);
    __type(key, __u32);
    __type(value, __u32);
    __uint(max_entries, 4);
} xsks_map SEC(".maps");

__u32 seen;

static int give(struct xdp_md *ctx)
{
    return bpf_redirect_map(&xsks_map, ctx->rx_queue_index, XDP_PASS);
}

static int is_ours(struct xdp_md *ctx)
{
    unsigned char *data = (void *)(long)ctx->data;

    if (data + 14 > (unsigned char *)(long)ctx->data_end)
        return 0;
    return data[12] == 0x88 && data[13] == 0xb5;
}

SEC("xdp.frags")
int drop_half(struct xdp_md *ctx)
{
    return !is_ours(ctx) ? XDP_PASS : seen++ % 2 ? XDP_DROP : give(ctx);
}

SEC("xdp.frags")
int number(struct xdp_md *ctx)
{
    __u32 *meta;

    if (!is_ours(ctx) || bpf_xdp_adjust_meta(ctx, -4))
        return XDP_PASS;
    meta = (void *)(long)ctx->data_meta;
    if ((void *)(meta + 1) > (void *)(long)ctx->data)
        return XDP_DROP;
    *meta = seen++;
    return give(ctx);
}

SEC("xdp.frags")
int shrink(struct xdp_md *ctx)
{
    return !is_ours(ctx) || bpf_xdp_adjust_tail(ctx, -4) ? XDP_PASS : give(ctx);
}

SEC("xdp.frags")
int grow(struct xdp_md *ctx)
{
    return !is_ours(ctx) || bpf_xdp_adjust_tail(ctx, 4) ? XDP_PASS : give(ctx);
}

char LICENSE[] SEC("license") = "GPL";
"""


# Sockets


def test_two_sockets_of_one_umem_get_what_is_theirs(open_at):
    """XDP_SHARED_UMEM: even numbers to one, odd ones to the other; test_socket_queues has queues"""
    left = open_at("left")
    right = open_at("right", frames=128, umem=left.umem)
    rows = numbered(PACKETS // 4)
    for first in range(0, len(rows), BATCH):
        carry(left, right, rows[first : first + BATCH : 2])
        carry(right, left, rows[first + 1 : first + BATCH : 2])
    left.flush()
    frames = [each.stats().frames for each in (left, right)]
    lent = [sum(each.values()) - each["pool"] for each in frames]
    assert sum(lent) + frames[0]["pool"] == 512


@pytest.mark.parametrize("size", [1, 2, 64, 2048, 32768])
def test_a_ring_of_any_power_of_two(open_at, size):
    """HW_SW_MIN_RING_SIZE, HW_SW_MAX_RING_SIZE, R10: one, one less than all, all, eight less"""
    left, right = (open_at(end, frames=size, ring_size=size) for end in ("left", "right"))
    for count in {1, max(size - 1, 1), size, max(size - 8, 1)}:
        rows = numbered(min(count, 4096))
        assert not right.read_batch(timeout=0)  # lends what the last round gave back
        assert left.write_batch(rows) == len(rows)
        assert receive(right, len(rows)) == [row.tobytes() for row in rows]
    assert all_there(left, right)


@pytest.mark.parametrize("size", [0, 3, 48, -64, 1 << 25])
def test_a_ring_of_another_size_is_refused(open_at, size):
    """R10"""
    with pytest.raises(ConfigError, match="ring-size must be a power of two"):
        open_at("left", ring_size=size)


def test_sockets_are_opened_and_closed_ten_times(open_at):
    """TEARDOWN"""
    for turn in range(10):
        left, right = open_at("left"), open_at("right")
        carry(left, right, numbered(BATCH, first=turn))
        left.close()
        right.close()


def test_a_queue_has_one_socket(open_at):
    """S6: the second is refused, and the first goes on."""
    left, right = open_at("left"), open_at("right")
    with pytest.raises(KernelError, match="another AF_XDP socket owns this queue") as caught:
        open_at("right")
    assert caught.value.errno == errno.EBUSY
    with pytest.raises(ConfigError, match="right queue 0 has a socket of this UMEM already"):
        open_at("right", frames=64, umem=right.umem)
    carry(left, right, numbered(BATCH))
