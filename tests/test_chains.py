"""Packets in several frames, and unaligned UMEMs, against a fake kernel that does anything."""

import os
from collections import deque

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from l2fwd import _rings
from l2fwd._jobs import Drop
from l2fwd._rings import Memory, Pool
from l2fwd._worker import Worker
from l2fwd.abi import XDP_PACKET_HEADROOM, XDP_PKT_CONTD
from l2fwd.testing import XDP_DESC, FakeQueue

FRAME_SIZE = 2048
ROOM = FRAME_SIZE - XDP_PACKET_HEADROOM
FUZZ = os.environ.get("L2FWD_FUZZ") == "1"
SETTINGS = settings(
    max_examples=1500 if FUZZ else 200,
    stateful_step_count=150 if FUZZ else 50,
    deadline=None,
    derandomize=not FUZZ,
    suppress_health_check=[HealthCheck.too_slow],
)
SIDES = st.sampled_from(["left", "right"])
FEW = st.integers(0, 9)
SIZES = st.fixed_dictionaries(
    {name: st.sampled_from([1, 4, 8, 32]) for name in ("fill", "completion", "rx", "tx")}
)
LENGTHS = st.one_of(st.integers(18, ROOM), st.integers(ROOM, 6 * ROOM))
INVALID = [
    (2**63, 60, 0),  # outside the UMEM
    (XDP_PACKET_HEADROOM, FRAME_SIZE, 0),  # over the end of its frame
    (XDP_PACKET_HEADROOM, 0, 0),
    (XDP_PACKET_HEADROOM, 60, 2),  # an option that nobody knows
]

release_build_only = pytest.mark.skipif(
    _rings.DEBUG, reason="the debug build aborts on an illegal move"
)


def packet(number, length):
    return number.to_bytes(4, "big").ljust(length, bytes([number % 251]))


class Bed:
    """Two fake queues bound with XDP_USE_SG, and a worker between them."""

    def __init__(self, *, size=64, frame_count=128, target=64, max_fragments=18, **options):
        self.pool = Pool(Memory(frame_count, FRAME_SIZE))
        self.left, self.right = (
            FakeQueue(self.pool, size=size, name=name, record=True, max_fragments=max_fragments)
            for name in ("left", "right")
        )
        for queue in (self.left, self.right):
            queue.port.refill(target)
        self.worker = Worker(self.left.port, self.right.port, **options)

    def put(self, *descs):
        """Put descriptors on the rx ring, of frames that the kernel was lent."""
        self.left.rings["rx"].put(np.array(list(descs), XDP_DESC))

    def frames(self, count):
        """Take frames that the kernel was lent; return where a packet begins in each."""
        self.left.prefetch(count)
        taken, self.left.kernel_rx = self.left.kernel_rx[:count], self.left.kernel_rx[count:]
        return [int(addr) + XDP_PACKET_HEADROOM for addr in taken]


def test_a_jumbo_packet_leaves_as_it_came():
    bed = Bed()
    sent = [packet(n, length) for n, length in enumerate((60, ROOM, ROOM + 1, 9014, 60, 5 * ROOM))]
    assert bed.left.receive_packets(sent) == len(sent)
    bed.worker.turn()
    assert bed.right.sent == sent
    counters = bed.right.port.counters()
    assert (counters["tx_packets"], counters["tx_bytes"]) == (len(sent), sum(map(len, sent)))
    bed.worker.turn()  # reclaims
    assert bed.right.port.counters()["tx_completed"] == len(sent)
    assert bed.left.port.counters()["rx_packets"] == len(sent)
    assert bed.left.port.counters()["rx_bytes"] == sum(map(len, sent))
    assert bed.pool.free_count == 0


def test_a_packet_waits_on_the_rx_ring_until_its_end_is_there():
    """P22: a batch may end in the middle of a packet."""
    bed = Bed()
    addrs = bed.frames(4)
    bed.put((addrs[0], 60, 0), (addrs[1], ROOM, XDP_PKT_CONTD), (addrs[2], ROOM, XDP_PKT_CONTD))
    assert bed.left.port.waiting() == 1
    assert bed.worker.turn() == 1
    assert bed.worker.turn() == 0
    assert bed.left.port.frames()["rx"] == 2
    assert bed.left.port.waiting() == 0
    bed.put((addrs[3], 7, 0))
    assert bed.worker.turn() == 1
    assert [len(each) for each in bed.right.sent] == [60, 2 * ROOM + 7]
    assert sum(bed.worker.frames().values()) == bed.pool.frame_count


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("bad", INVALID)
def test_half_a_packet_is_never_sent(place, bad):
    """R12: one fragment that cannot be takes the packet with it, and nothing else."""
    bed = Bed()
    addrs = bed.frames(5)
    chain = [(addr, ROOM, XDP_PKT_CONTD) for addr in addrs[1:3]] + [(addrs[3], 60, 0)]
    addr, length, options = bad
    if addr < 2**32:
        addr = chain[place][0]
    chain[place] = (addr, length, options | chain[place][2])
    bed.put((addrs[0], 60, 0), *chain, (addrs[4], 64, 0))
    assert bed.worker.turn() == 3
    assert [len(each) for each in bed.right.sent] == [60, 64]
    assert bed.left.port.counters()["rx_invalid_drops"] == 1
    assert bed.pool.lost_count == 1, "its frame cannot be trusted; the others are recycled"
    assert sum(bed.worker.frames().values()) == bed.pool.frame_count


def test_a_short_first_fragment_is_no_ethernet_header():
    bed = Bed()
    addrs = bed.frames(2)
    bed.put((addrs[0], 13, XDP_PKT_CONTD), (addrs[1], 60, 0))
    bed.worker.turn()
    assert bed.right.sent == []
    assert bed.left.port.counters()["rx_invalid_drops"] == 1


def test_a_packet_without_an_end_does_not_hold_up_the_others():
    bed = Bed(size=128, frame_count=256, target=128)
    addrs = bed.frames(70)
    bed.put(*((addr, ROOM, XDP_PKT_CONTD) for addr in addrs[:-1]), (addrs[-1], 60, 0))
    bed.worker.turn()
    assert bed.left.port.counters()["rx_invalid_drops"] == 1, "64 frames are no packet"
    assert bed.left.port.frames()["rx"] == 0
    assert sum(bed.worker.frames().values()) == bed.pool.frame_count


def test_all_frames_of_a_packet_without_an_end_come_back():
    bed = Bed(size=8, frame_count=16, target=8)
    bed.put(*((addr, ROOM, XDP_PKT_CONTD) for addr in bed.frames(8)))
    bed.worker.turn()
    assert bed.left.port.counters()["rx_invalid_drops"] == 1
    assert bed.left.pending("fill") == 8


def test_what_does_not_fit_the_tx_ring_is_dropped_whole():
    bed = Bed(size={"fill": 64, "rx": 64, "tx": 4, "completion": 64})
    bed.right.on_kick = lambda: 0
    lengths = (2 * ROOM, 3 * ROOM, 2 * ROOM, 60)
    sent = [packet(n, length) for n, length in enumerate(lengths)]
    assert bed.left.receive_packets(sent) == 4
    bed.worker.turn()
    assert bed.right.pending("tx") == 4
    assert bed.right.port.counters()["tx_full_drops"] == 2
    bed.right.transmit()
    assert bed.right.sent == [sent[0], sent[2]]
    assert sum(bed.worker.frames().values()) == bed.pool.frame_count


@pytest.mark.parametrize(("fragments", "arrives"), [(17, True), (18, True), (19, False)])
def test_a_packet_in_too_many_frames_is_dropped_and_counted(fragments, arrives):
    """R12, TOO_MANY_FRAGS: the next one is sent."""
    bed = Bed()
    sent = [packet(1, fragments * ROOM), packet(2, 60)]
    assert bed.left.receive_packets(sent) == 2
    bed.worker.turn()
    assert bed.right.sent == sent[0 if arrives else 1 :]
    assert bed.right.port.counters()["tx_fragment_drops"] == (not arrives)


def test_the_kernel_may_stop_in_the_middle_of_a_packet():
    """XDP_MAX_TX_SKB_BUDGET counts descriptors; completions come one a fragment."""
    bed = Bed()
    bed.right.on_kick = lambda: 0
    sent = [packet(n, 3 * ROOM) for n in range(4)]
    bed.left.receive_packets(sent)
    bed.worker.turn()
    for expected in (0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4):
        bed.right.transmit(1)
        bed.right.complete(1)
        bed.right.port.reclaim()
        assert bed.right.port.counters()["tx_completed"] == expected
    assert bed.right.sent == sent


def test_only_the_first_frame_is_rewritten():
    bed = Bed(dst_mac=b"\x02\0\0\0\0\x09", swap_mac=False)
    sent = packet(7, 4 * ROOM)
    bed.left.receive_packets([sent])
    bed.worker.turn()
    assert bed.right.sent == [b"\x02\0\0\0\0\x09" + sent[6:]]


def test_a_job_drops_whole_packets():
    pool = Pool(Memory(64, FRAME_SIZE))
    queue = FakeQueue(pool, size=32, max_fragments=18)
    queue.port.refill(32)
    queue.receive_packets([packet(1, 9014), packet(2, 60), packet(3, 4000)])
    Worker(queue.port, job=Drop()).turn()
    assert queue.port.counters()["consumed_packets"] == 3
    assert queue.pending("fill") == 32


class Chained(RuleBasedStateMachine):
    """Two queues and a worker; ``arrived`` holds what may still be sent, in order."""

    is_hostile = False

    @initialize(
        frame_count=st.integers(4, 64),
        sizes=st.tuples(SIZES, SIZES),
        before_wrap=st.integers(0, 12),
        batch_size=st.integers(1, 9),
        fill_targets=st.tuples(st.integers(0, 32), st.integers(0, 32)),
        frame_size=st.sampled_from([2048, 2048, 3000, 4001]),
        max_fragments=st.sampled_from([1, 3, 18]),
    )
    def build(
        self, frame_count, sizes, before_wrap, batch_size, fill_targets, frame_size, max_fragments
    ):
        self.pool = Pool(Memory(frame_count, frame_size), unaligned=frame_size != 2048)
        self.frame_size = frame_size
        self.room = frame_size - XDP_PACKET_HEADROOM if max_fragments == 1 else 10**9
        self.queues = {}
        for side, ring_sizes, target in zip(("left", "right"), sizes, fill_targets, strict=True):
            queue = FakeQueue(
                self.pool, size=ring_sizes, start=2**32 - before_wrap, name=side,
                record=not self.is_hostile, max_fragments=max_fragments,
            )  # fmt: skip
            queue.port.refill(min(target, ring_sizes["fill"]))
            queue.on_kick = lambda: 0
            self.queues[side] = queue
        ports = [queue.port for queue in self.queues.values()]
        self.worker = Worker(*ports, batch_size=batch_size)
        self.arrived = {"left": deque(), "right": deque()}
        self.serial = 0

    @rule(side=SIDES, lengths=st.lists(LENGTHS, min_size=1, max_size=6))
    def receive(self, side, lengths):
        for length in lengths:
            self.serial += 1
            one = packet(self.serial, min(length, self.room))
            if self.queues[side].receive_packets([one]):
                self.arrived[side].append(one)

    @rule(side=SIDES, keep=FEW)
    def show_only_some_of_what_arrived(self, side, keep):
        """Cut anywhere: the kernel's index may stop within a packet."""
        ring = self.queues[side].rings["rx"]
        end = ring.producer
        back = min(keep, ring.pending) if ring.pending <= ring.size else 0
        ring.producer = end - back
        self.turn(1)
        ring.producer = end

    @rule(side=SIDES, count=FEW)
    def transmit(self, side, count):
        self.queues[side].transmit(count)

    @rule(side=SIDES, count=FEW)
    def complete(self, side, count):
        self.queues[side].complete(count)

    @rule(side=SIDES)
    def complete_backwards(self, side):
        """Nothing promises an order."""
        queue = self.queues[side]
        queue.kernel_tx = queue.kernel_tx[::-1]
        queue.complete()

    @rule(turns=st.integers(1, 3))
    def turn(self, turns):
        for _ in range(turns):
            self.worker.turn()

    @invariant()
    def every_frame_is_counted_once(self):
        frames = self.worker.frames()
        assert sum(frames.values()) == self.pool.frame_count, frames

    @invariant()
    def every_frame_is_in_one_place(self):
        if self.is_hostile:
            return
        addrs = []
        for queue in self.queues.values():
            held = queue.held()
            assert not (queue.rings["fill"].peek() % self.frame_size).any()
            assert queue.port.frames() == {place: len(found) for place, found in held.items()}
            addrs.extend(addr for found in held.values() for addr in found.tolist())
        assert len(addrs) == len(set(addrs)) == self.pool.frame_count - self.pool.free_count
        assert self.pool.lost_count == 0

    @invariant()
    def whole_packets_leave_in_order_and_unchanged(self):
        for side, other in (("left", "right"), ("right", "left")):
            for one in self.queues[side].sent:
                while self.arrived[other] and self.arrived[other][0] != one:
                    self.arrived[other].popleft()
                assert self.arrived[other], "sent what never arrived, or out of order, or changed"
                self.arrived[other].popleft()
            self.queues[side].sent.clear()

    @invariant()
    def the_books_balance(self):
        left, right = (self.queues[side].port.counters() for side in ("left", "right"))
        for src, dst in ((left, right), (right, left)):
            assert src["rx_packets"] == (
                dst["tx_packets"] + dst["tx_full_drops"] + dst["tx_fragment_drops"]
                + src["rx_invalid_drops"]
            )  # fmt: skip
            assert dst["tx_completed"] <= dst["tx_packets"]

    @invariant()
    def all_are_completed_once_nothing_is_out(self):
        if self.is_hostile:
            return
        for queue in self.queues.values():
            held = queue.port.frames()
            if held["tx"] + held["kernel_tx"] + held["completion"] == 0:
                counters = queue.port.counters()
                assert counters["tx_completed"] == counters["tx_packets"]


class HostileChains(Chained):
    """The same with a kernel that writes nonsense."""

    is_hostile = True

    @rule(
        side=SIDES,
        descs=st.lists(
            st.tuples(
                st.one_of(st.integers(0, 40 * FRAME_SIZE), st.integers(0, 2**64 - 1)),
                st.one_of(st.integers(0, 2 * FRAME_SIZE), st.integers(0, 2**32 - 1)),
                st.sampled_from([0, 0, 1, 1, 1, 2, 2**31]),
            ),
            max_size=9,
        ),
    )
    def invent_received_descriptors(self, side, descs):
        self.queues[side].rings["rx"].put(np.array(descs, XDP_DESC))

    @rule(side=SIDES, addrs=st.lists(st.integers(0, 2**64 - 1), max_size=9))
    def invent_completions(self, side, addrs):
        self.queues[side].rings["completion"].put(np.array(addrs, np.uint64))

    @rule(side=SIDES, ring=st.sampled_from(["completion", "rx"]), jump=st.integers(-9, 9))
    def move_the_kernels_index(self, side, ring, jump):
        self.queues[side].rings[ring].producer += jump


def test_no_sequence_of_events_splits_a_packet_or_loses_a_frame():
    """Conservation, one place per frame, whole packets, order and books after every step."""
    run_state_machine_as_test(Chained, settings=SETTINGS)


@release_build_only
def test_no_sequence_of_hostile_chains_breaks_the_books():
    """R4: no crash, no spin, and every frame counted once."""
    run_state_machine_as_test(HostileChains, settings=SETTINGS)
