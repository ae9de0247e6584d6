"""The forwarding loop against the fake kernel: what is sent, dropped, retried and counted."""

import errno
import threading
import time

import numpy as np
import pytest

from l2fwd._rings import Memory, Pool
from l2fwd._worker import Worker
from l2fwd.errors import ConfigError, KernelError
from l2fwd.testing import FakeQueue

TX_BATCH_SIZE = 32  # what one sendto moves in copy mode, net/xdp/xsk.c
LOCAL = bytes.fromhex("02aabbccddee")
REMOTE = bytes.fromhex("021122334455")
PACKET = REMOTE + LOCAL + b"\x08\x00" + bytes(range(46))


class Bed:
    """Two fake queues and a worker between them."""

    def __init__(self, size=16, frame_count=64, fill_target=16, **options):
        self.pool = Pool(Memory(frame_count, 2048))
        self.left = FakeQueue(self.pool, size=size, name="left", record=True)
        self.right = FakeQueue(self.pool, size=size, name="right", record=True)
        for queue in (self.left, self.right):
            queue.port.refill(fill_target)
        self.worker = Worker(self.left.port, self.right.port, **options)

    def check_books(self):
        frames = self.worker.frames()
        assert sum(frames.values()) == self.pool.frame_count, frames
        for src, dst in ((self.left, self.right), (self.right, self.left)):
            received, sent = src.port.counters(), dst.port.counters()
            assert received["rx_packets"] == (
                sent["tx_packets"] + sent["tx_full_drops"] + received["rx_invalid_drops"]
            )


@pytest.fixture
def bed():
    bed = Bed()
    yield bed
    bed.check_books()


def send_partly(queue, budget=TX_BATCH_SIZE):
    """Play the kernel in copy mode: at most ``budget`` descriptors, then EAGAIN."""

    def on_kick():
        queue.transmit(min(budget, queue.rings["completion"].room))
        queue.complete()
        return -errno.EAGAIN if queue.pending("tx") else 0

    return on_kick


def test_one_packet_leaves_in_the_turn_it_arrived(bed):
    """R9: a partial batch never waits for a full one."""
    bed.left.receive_packets([PACKET])
    assert bed.worker.turn() == 1
    assert bed.right.sent == [PACKET]


def test_both_directions_are_served_in_one_turn(bed):
    bed.left.receive_packets([PACKET])
    bed.right.receive_packets([PACKET[:20], PACKET[:30]])
    assert bed.worker.turn() == 3
    assert bed.right.sent == [PACKET]
    assert bed.left.sent == [PACKET[:20], PACKET[:30]]


def test_one_way_leaves_the_other_direction_alone():
    bed = Bed(both_ways=False)
    bed.right.receive(3)
    bed.left.receive(2)
    assert bed.worker.turn() == 2
    assert bed.right.pending("rx") == 3
    assert bed.left.port.counters()["tx_packets"] == 0


def test_a_turn_moves_at_most_one_batch_each_way():
    bed = Bed(batch_size=4)
    bed.left.receive(10)
    bed.right.receive(5)
    assert [bed.worker.turn() for _ in range(4)] == [8, 5, 2, 0]
    bed.check_books()


def test_packets_are_forwarded_in_order_and_byte_for_byte(bed):
    packets = [bytes([n]) * (14 + 97 * n) for n in range(16)]
    assert bed.left.receive_packets(packets) == 16
    bed.worker.turn()
    assert bed.right.sent == packets


def test_bytes_and_packets_are_counted_at_both_ends(bed):
    bed.left.receive([60, 1514, 14])
    bed.worker.turn()
    received, sent = bed.left.port.counters(), bed.right.port.counters()
    assert (received["rx_packets"], received["rx_bytes"]) == (3, 1588)
    assert (sent["tx_packets"], sent["tx_bytes"]) == (3, 1588)
    assert received["tx_packets"] == sent["rx_packets"] == 0


def test_what_does_not_fit_the_tx_ring_is_dropped_and_counted_at_once():
    bed = Bed(size={"fill": 16, "rx": 16, "tx": 4, "completion": 4})
    bed.right.on_kick = lambda: -errno.EAGAIN
    packets = [bytes([n]) * 60 for n in range(7)]
    bed.left.receive_packets(packets)
    assert bed.worker.turn() == 7
    assert bed.right.port.counters()["tx_full_drops"] == 3
    assert bed.left.port.frames()["fill"] == 16, "dropped frames are lent again in the same turn"
    assert [bed.right.payload(desc).tobytes() for desc in bed.right.transmit()] == packets[:4]
    bed.check_books()


@pytest.mark.parametrize("count", [33, 100, 256])
def test_a_socket_that_sends_32_at_a_time_is_drained_in_one_turn(count):
    """R5: at most one kick more than there are parts."""
    bed = Bed(size=256, frame_count=1024, fill_target=256, batch_size=256)
    bed.right.on_kick = send_partly(bed.right)
    bed.left.receive(count)
    bed.worker.turn()
    counters = bed.right.port.counters()
    assert bed.right.pending("tx") == 0
    assert counters["tx_wakeups"] <= -(-count // TX_BATCH_SIZE) + 1
    assert counters["tx_again"] == counters["tx_wakeups"] - 1
    bed.check_books()


def test_a_completion_ring_smaller_than_the_burst_does_not_stop_transmission():
    """R5: completions are taken between kicks."""
    bed = Bed(size={"fill": 64, "rx": 64, "tx": 64, "completion": 2}, fill_target=20)
    bed.right.on_kick = send_partly(bed.right)
    bed.left.receive(20)
    bed.worker.turn()
    assert bed.right.pending("tx") == 0
    assert bed.right.port.counters()["tx_wakeups"] <= 2 * 10
    bed.check_books()


@pytest.mark.parametrize(
    ("number", "counter"),
    [
        (errno.EAGAIN, "tx_again"),
        (errno.ENOBUFS, "tx_no_buffer"),
        (errno.ENOMEM, "tx_no_buffer"),
        (errno.EINTR, None),
        (errno.EBUSY, None),
    ],
)
def test_a_kick_that_moves_nothing_is_retried_a_few_times_and_again_next_turn(bed, number, counter):
    """X14: no spin, no loss, not dead on the first refusal."""
    bed.right.on_kick = lambda: -number
    bed.left.receive_packets([PACKET] * 3)
    assert bed.worker.turn() == 3
    kicks = bed.right.port.counters()["tx_wakeups"]
    assert 1 < kicks <= 8
    if counter:
        assert bed.right.port.counters()[counter] == kicks
    assert bed.right.port.counters()["tx_busy_drops"] == 0
    assert bed.right.pending("tx") == 3
    bed.right.on_kick = bed.right.send_all
    assert bed.worker.turn() == 0
    assert bed.right.sent == [PACKET] * 3


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EINTR, errno.ENOBUFS])
def test_a_refusal_followed_by_success_costs_one_kick(bed, number):
    """X14."""
    answers = [-number]
    bed.right.on_kick = lambda: answers.pop() if answers else bed.right.send_all()
    bed.left.receive_packets([PACKET])
    bed.worker.turn()
    assert bed.right.sent == [PACKET]
    assert bed.right.port.counters()["tx_wakeups"] == 2


def test_packets_completed_without_being_sent_are_counted_one_by_one(bed):
    """EBUSY: carrier lost at the peer; each call eats one descriptor."""

    def on_kick():
        bed.right.transmit(1)
        bed.right.complete()
        return -errno.EBUSY

    bed.right.on_kick = on_kick
    bed.left.receive(5)
    bed.worker.turn()
    counters = bed.right.port.counters()
    assert counters["tx_busy_drops"] == counters["tx_wakeups"] == 5
    assert bed.right.pending("tx") == 0


def test_packets_wait_for_a_link_that_is_down(bed):
    """ENETDOWN is asked once a turn and is no reason to give the port up."""
    bed.right.on_kick = lambda: -errno.ENETDOWN
    bed.left.receive_packets([PACKET] * 2)
    bed.worker.turn()
    bed.worker.turn()
    counters = bed.right.port.counters()
    assert counters["tx_wakeups"] == counters["tx_link_down"] == 2
    assert bed.right.pending("tx") == 2
    bed.right.on_kick = bed.right.send_all
    bed.worker.turn()
    assert bed.right.sent == [PACKET] * 2


@pytest.mark.parametrize("number", [errno.ENXIO, errno.EBADF, errno.EINVAL])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_dead_socket_ends_the_turn_with_the_ports_name(bed, number, side):
    getattr(bed, side).on_kick = lambda: -number
    bed.left.receive(1)
    bed.right.receive(1)
    assert bed.worker.failed is None
    with pytest.raises(KernelError, match=f"forward on {side}: {errno.errorcode[number]}") as error:
        bed.worker.turn()
    assert error.value.errno == number
    assert bed.worker.failed == side
    with pytest.raises(KernelError, match=side):
        bed.worker.run()


def test_no_system_call_is_made_unless_the_kernel_asks_for_it(bed):
    bed.right.rings["tx"].needs_wakeup = False
    bed.left.receive(3)
    bed.worker.turn()
    assert bed.right.port.counters()["tx_wakeups"] == 0
    assert bed.right.pending("tx") == 3
    bed.right.rings["tx"].needs_wakeup = True
    bed.worker.turn()
    assert bed.right.port.counters()["tx_wakeups"] == 1


def test_an_idle_turn_makes_no_system_call(bed):
    bed.worker.turn()
    assert bed.left.port.counters()["tx_wakeups"] == 0
    assert bed.right.port.counters()["tx_wakeups"] == 0


def test_a_direction_that_ran_out_of_frames_recovers_while_the_other_is_busy():
    """All frames stuck in TX, then completed: the empty fill ring must be seen."""
    bed = Bed(size=8, frame_count=16, fill_target=8)
    bed.right.on_kick = lambda: -errno.ENETDOWN
    bed.left.receive(8)
    bed.worker.turn()
    assert bed.left.pending("fill") == 0
    bed.right.on_kick = bed.right.send_all
    for _ in range(3):
        bed.right.receive(1)
        assert bed.worker.turn() == 1, "the other direction keeps the worker from idling"
    assert bed.left.pending("fill") == 8
    bed.check_books()


@pytest.mark.parametrize(
    ("options", "rightward", "leftward"),
    [
        ({}, REMOTE + LOCAL, REMOTE + LOCAL),
        ({"swap_mac": True}, LOCAL + REMOTE, LOCAL + REMOTE),
        ({"dst_mac": b"\x02next!"}, b"\x02next!" + LOCAL, REMOTE + LOCAL),
        ({"dst_mac": b"\x02next!", "swap_mac": True}, b"\x02next!" + REMOTE, LOCAL + REMOTE),
    ],
)
def test_only_the_mac_addresses_asked_for_are_rewritten(options, rightward, leftward):
    bed = Bed(**options)
    frames = np.asarray(bed.pool.memory)
    frames[:] = 0xA5
    bed.left.receive_packets([PACKET, PACKET[:14]])
    bed.right.receive_packets([PACKET])
    bed.worker.turn()
    assert bed.right.sent == [rightward + PACKET[12:], rightward + PACKET[12:14]]
    assert bed.left.sent == [leftward + PACKET[12:]]
    assert int((frames != 0xA5).sum()) <= 2 * len(PACKET) + 14, "bytes around packets are kept"


@pytest.mark.parametrize("mac", [b"", b"12345", b"1234567"])
def test_a_mac_address_of_the_wrong_length_is_refused(mac):
    with pytest.raises(ConfigError, match=f"6 bytes, got {len(mac)}"):
        Bed(dst_mac=mac)


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        Bed(batch_size=0)


def test_one_port_on_both_sides_is_refused():
    port = Bed().left.port
    with pytest.raises(ConfigError, match="one port or two different ones"):
        Worker(port, port)


def test_ports_of_different_pools_are_refused():
    with pytest.raises(ConfigError, match="share one frame pool"):
        Worker(Bed().left.port, Bed().right.port)


def test_stop_drains_what_was_received(bed):
    bed.left.receive_packets([PACKET] * 16)
    bed.worker.stop()
    bed.worker.run()
    assert bed.right.sent == [PACKET] * 16
    assert bed.worker.frames()["kernel_tx"] == bed.worker.frames()["completion"] == 0


def test_stop_ends_a_worker_whose_traffic_never_ends():
    """Packets that keep coming while draining are not waited for."""
    bed = Bed()

    def on_kick():
        bed.left.receive(16)
        return bed.right.send_all()

    bed.right.on_kick = on_kick
    bed.left.receive(16)
    bed.worker.stop()
    bed.worker.run()
    assert bed.left.port.counters()["rx_packets"] <= 3 * 16
    bed.check_books()


def test_stop_gives_up_on_frames_that_never_complete(bed):
    bed.right.on_kick = lambda: -errno.ENETDOWN
    bed.left.receive(3)
    bed.worker.stop()
    bed.worker.run()
    assert bed.worker.turns[1] <= 40  # MAX_DRAIN_SLEEPS
    assert bed.worker.frames()["tx"] == 3


def test_run_forwards_in_its_own_thread_and_sleeps_when_idle(bed):
    thread = threading.Thread(target=bed.worker.run)
    bed.left.receive_packets([PACKET] * 10)
    thread.start()
    time.sleep(0.25)
    bed.worker.stop()
    thread.join(1)
    assert not thread.is_alive()
    assert bed.right.sent == [PACKET] * 10
    turns, sleeps, _ = bed.worker.turns
    assert turns < 60, "polls are bounded by 5 ms, and by 100 ms once all frames are back"
    assert sleeps >= 1


def test_a_driver_that_ran_out_of_frames_is_woken(bed):
    bed.left.rings["fill"].needs_wakeup = True
    woken = []

    def on_kick_rx():
        woken.append(bed.left.prefetch(16))
        bed.left.rings["fill"].needs_wakeup = False
        bed.worker.stop()
        return 0

    bed.left.on_kick_rx = on_kick_rx
    bed.worker.run()
    assert woken == [16]
    assert bed.left.port.counters()["rx_wakeups"] == 1
    assert bed.right.port.counters()["rx_wakeups"] == 0
