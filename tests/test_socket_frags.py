"""The library's sockets and jumbo frames: packets are joined when read, and split when sent."""

import numpy as np
import pytest

from l2fwd import link
from l2fwd.errors import ConfigError
from l2fwd.sockets import MultiQueueSocket, XdpSocket

pytestmark = pytest.mark.privileged

LENGTHS = (14, 60, 1792, 1793, 2048, 2049, 4096, 8999, 9014)


def packet(number, length):
    head = bytes.fromhex("02000000000202000000000188b5")
    return (head + bytes((number + i) & 0xFF for i in range(length)))[:length]


@pytest.fixture
def cable(pair):
    """A cable of MTU 9000; ``open(side)`` makes a socket at one end."""
    for netns, ifname in zip(pair, ("left", "right"), strict=True):
        with link.in_netns(netns):
            link.disable_ipv6(ifname)
            link.set_up(ifname)
            link.set_mtu(ifname, 9000)
    sockets = []

    def open_at(side, kind=XdpSocket, **options):
        with link.in_netns(pair[side == "right"]):
            sockets.append(kind(side, **({"poll_timeout": 1.0, "block": False} | options)))
        return sockets[-1]

    yield open_at
    for each in reversed(sockets):
        each.close()


@pytest.fixture
def ends(cable):
    return cable("left"), cable("right")


def assert_all_frames_are_there(*sockets):
    for each in sockets:
        each.flush()
        assert sum(each.stats().frames.values()) == each.umem.config.frame_count
        assert each.stats().tx_packets == each.stats().tx_completed
        assert each.stats().drops == {}


def test_one_packet_at_a_time(ends):
    left, right = ends
    for number, length in enumerate(LENGTHS):
        left.write(packet(number, length))
        assert right.read() == packet(number, length)
    assert right.stats().rx_packets == left.stats().tx_packets == len(LENGTHS)
    assert right.stats().rx_bytes == left.stats().tx_bytes == sum(LENGTHS)
    assert_all_frames_are_there(left, right)


def test_batches_have_memory_of_their_own(ends):
    left, right = ends
    sent = [packet(number, length) for number, length in enumerate(LENGTHS * 3)]
    received = []
    for first in range(0, len(sent), 9):
        assert left.write_batch(sent[first : first + 9]) == 9
        while len(received) < first + 9:
            batch = right.read_batch(5)
            assert 0 < len(batch) <= 5
            received += batch.tolist()
            row, column = batch.row[0], batch.column[0]
            assert (
                batch.window[row, column : column + batch.length[0]].tobytes() == batch[0].tobytes()
            )
            batch.release()
    assert received == sent
    assert_all_frames_are_there(left, right)


def test_rows_of_an_array(ends):
    left, right = ends
    rows = np.zeros((3, 9014), np.uint8)
    lengths = np.array([60, 5000, 9014], np.uint32)
    for number, length in enumerate(lengths):
        rows[number, :length] = np.frombuffer(packet(number, int(length)), np.uint8)
    assert left.write_batch(rows[:, ::1], lengths) == 3
    assert [right.read() for _ in range(3)] == [
        rows[i, :n].tobytes() for i, n in enumerate(lengths)
    ]
    with pytest.raises(ConfigError, match="packet 0 has 9015 bytes, its row 9014"):
        left.write_batch(rows, np.array([9015, 60, 60], np.uint32))


def test_a_buffer_too_small_leaves_the_packet(ends):
    left, right = ends
    left.write(packet(1, 9014))
    buffer = bytearray(9014)
    while True:
        try:
            with pytest.raises(ConfigError, match="the packet has 9014 bytes, the buffer 9000"):
                right.read_into(memoryview(buffer)[:9000])
            break
        except BlockingIOError:
            continue
    assert right.read_into(buffer) == 9014
    assert buffer == packet(1, 9014)
    assert_all_frames_are_there(left, right)


def test_packets_beyond_eighteen_frames_are_refused_by_their_index(ends):
    left, _ = ends
    with pytest.raises(ConfigError, match=r"packet 1 has 36865 bytes; it must have 14 to 36864"):
        left.write_batch([packet(0, 60), bytes(18 * 2048 + 1)])
    with pytest.raises(ConfigError, match="packet 0 has 13 bytes"):
        left.write(bytes(13))
    left.flush()
    assert left.stats().tx_packets == 1


def test_what_finds_no_room_is_not_sent_in_part(cable):
    left = cable("left", ring_size=32, frames=32, poll_timeout=0.01)
    right = cable("right", poll_timeout=0.02)
    sent = 0
    for _ in range(20):
        sent += left.write_batch([packet(n, 9014) for n in range(10)])
    received = sum(len(right.read_batch()) for _ in range(20))
    assert 0 < received <= sent
    left.flush()
    assert left.stats().tx_packets == left.stats().tx_completed == sent


def test_queues_share_a_umem(cable):
    left = cable("left", MultiQueueSocket)
    right = cable("right", MultiQueueSocket)
    sent = [packet(n, 9014) for n in range(8)]
    assert left.write_batch(sent) == 8
    received = []
    while len(received) < 8:
        received += right.read_batch().tolist()
    assert sorted(received) == sorted(sent)


def test_without_frags_jumbo_frames_are_refused(cable):
    with pytest.raises(ConfigError, match="left: MTU 9000 needs 9018 bytes, a frame of 2048 holds"):
        cable("left", frags=False)
    with pytest.raises(ConfigError, match="4 frames of 2048 hold 7168"):
        cable("left", frames=4)


def test_frags_may_be_asked_for_at_any_mtu(cable):
    left, right = cable("left", frags=True), cable("right", frags=True)
    left.write(packet(1, 60))
    assert right.read() == packet(1, 60)
