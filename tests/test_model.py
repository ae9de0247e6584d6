"""The worker against a fake kernel that does anything a kernel may do, in any order.

``L2FWD_FUZZ=1`` in the environment runs many more and longer sequences.
"""

import errno
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
from l2fwd._rings import Memory, Pool
from l2fwd._worker import Worker
from l2fwd.errors import KernelError
from l2fwd.testing import XDP_DESC, FakeQueue

FRAME_SIZE = 2048
FUZZ = os.environ.get("L2FWD_FUZZ") == "1"
SETTINGS = settings(
    max_examples=1500 if FUZZ else 300,
    stateful_step_count=150 if FUZZ else 50,
    deadline=None,
    derandomize=not FUZZ,
    suppress_health_check=[HealthCheck.too_slow],
)

SIDES = st.sampled_from(["left", "right"])
RINGS = st.sampled_from(["fill", "completion", "rx", "tx"])
SIZES = st.fixed_dictionaries(
    {name: st.sampled_from([1, 2, 4, 8]) for name in ("fill", "completion", "rx", "tx")}
)
FEW = st.integers(0, 9)
ERRNOS = st.sampled_from(
    [0, errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ENOBUFS, errno.ENETDOWN, errno.ENXIO]
)
# What the next kicks do: descriptors sent, frames completed, errno.
KICKS = st.lists(st.tuples(FEW, FEW, ERRNOS), max_size=6)
DESCS = st.tuples(
    st.one_of(st.integers(0, 20 * FRAME_SIZE), st.integers(0, 2**64 - 1)),
    st.one_of(st.integers(0, 2 * FRAME_SIZE), st.integers(0, 2**32 - 1)),
    st.sampled_from([0, 0, 0, 1, 2**31]),
)


class Forwarding(RuleBasedStateMachine):
    """Two queues and a worker; ``arrived`` holds what may still be sent, in order."""

    is_hostile = False

    @initialize(
        frame_count=st.integers(1, 16),
        sizes=st.tuples(SIZES, SIZES),
        before_wrap=st.integers(0, 12),
        batch_size=st.integers(1, 9),
        both_ways=st.booleans(),
        fill_targets=st.tuples(FEW, FEW),
    )
    def build(self, frame_count, sizes, before_wrap, batch_size, both_ways, fill_targets):
        self.pool = Pool(Memory(frame_count, FRAME_SIZE))
        self.queues = {}
        self.kicks = {}
        for side, ring_sizes, target in zip(("left", "right"), sizes, fill_targets, strict=True):
            queue = FakeQueue(
                self.pool,
                size=ring_sizes,
                start=2**32 - before_wrap,
                name=side,
                record=not self.is_hostile,
            )
            queue.port.refill(min(target, ring_sizes["fill"]))
            queue.on_kick = lambda side=side: self.kick(side)
            self.queues[side] = queue
            self.kicks[side] = deque()
        self.both_ways = both_ways
        self.worker = Worker(
            self.queues["left"].port,
            self.queues["right"].port,
            batch_size=batch_size,
            both_ways=both_ways,
        )
        self.arrived = {"left": deque(), "right": deque()}
        self.serial = 0
        self.kick_count = 0

    def kick(self, side):
        self.kick_count += 1
        sent, completed, error = self.kicks[side].popleft() if self.kicks[side] else (9, 9, 0)
        self.queues[side].transmit(sent)
        self.queues[side].complete(completed)
        return -error

    @rule(side=SIDES, lengths=st.lists(st.integers(18, FRAME_SIZE - 256), min_size=1, max_size=9))
    def receive(self, side, lengths):
        packets = []
        for length in lengths:
            self.serial += 1
            packets.append(self.serial.to_bytes(4, "big").ljust(length, bytes([self.serial % 251])))
        count = self.queues[side].receive_packets(packets)
        self.arrived[side].extend(packets[:count])

    @rule(side=SIDES, count=FEW)
    def prefetch(self, side, count):
        self.queues[side].prefetch(count)

    @rule(side=SIDES, count=FEW)
    def transmit(self, side, count):
        self.queues[side].transmit(count)

    @rule(side=SIDES, count=FEW)
    def complete(self, side, count):
        self.queues[side].complete(count)

    @rule(side=SIDES, kicks=KICKS)
    def plan_kicks(self, side, kicks):
        self.kicks[side] = deque(kicks)

    @rule(side=SIDES, asked=st.booleans())
    def ask_for_wakeup(self, side, asked):
        self.queues[side].rings["tx"].needs_wakeup = asked

    @rule(turns=st.integers(1, 3))
    def turn(self, turns):
        self.kick_count = 0
        for _ in range(turns):
            try:
                self.worker.turn()
            except KernelError as error:
                if error.errno != errno.ENXIO:
                    raise
        assert self.kick_count <= turns * 2 * (8 + 4), "one turn may not spin on sendto"

    @rule(side=SIDES)
    def reclaim(self, side):
        self.queues[side].port.reclaim()

    @invariant()
    def every_frame_is_counted_once(self):
        frames = self.worker.frames()
        assert sum(frames.values()) == self.pool.frame_count, frames
        assert 0 <= self.pool.free_count <= self.pool.frame_count

    @invariant()
    def every_frame_is_in_one_place(self):
        if self.is_hostile:
            return
        addrs = []
        for queue in self.queues.values():
            held = queue.held()
            lent = queue.rings["fill"].peek()
            assert not (lent % FRAME_SIZE).any(), "a frame is lent from its first byte on"
            assert queue.port.frames() == {place: len(found) for place, found in held.items()}
            addrs.extend(addr for found in held.values() for addr in found.tolist())
        assert len(addrs) == len(set(addrs)) == self.pool.frame_count - self.pool.free_count
        assert self.pool.lost_count == 0

    @invariant()
    def packets_leave_in_order_and_unchanged(self):
        for side, other in (("left", "right"), ("right", "left")):
            for packet in self.queues[side].sent:
                # Packets dropped for a full TX ring are missing, but never out of order.
                while self.arrived[other] and self.arrived[other][0] != packet:
                    self.arrived[other].popleft()
                assert self.arrived[other], "sent what never arrived, or out of order, or changed"
                self.arrived[other].popleft()
            self.queues[side].sent.clear()

    @invariant()
    def the_books_balance(self):
        left, right = (self.queues[side].port.counters() for side in ("left", "right"))
        for src, dst in ((left, right), (right, left)):
            assert src["rx_packets"] == (
                dst["tx_packets"] + dst["tx_full_drops"] + src["rx_invalid_drops"]
            )
        assert self.both_ways or right["rx_packets"] == 0
        lost = sum(port["rx_invalid_drops"] + port["completion_invalid"] for port in (left, right))
        assert lost == self.pool.lost_count


class Hostile(Forwarding):
    """The same with a kernel that writes nonsense: the counts must hold all the same."""

    is_hostile = True

    @rule(side=SIDES, descs=st.lists(DESCS, max_size=9))
    def invent_received_descriptors(self, side, descs):
        self.queues[side].rings["rx"].put(np.array(descs, XDP_DESC))

    @rule(side=SIDES, addrs=st.lists(DESCS.map(lambda desc: desc[0]), max_size=9))
    def invent_completions(self, side, addrs):
        self.queues[side].rings["completion"].put(np.array(addrs, np.uint64))

    @rule(side=SIDES, ring=RINGS, jump=st.one_of(st.integers(-9, 9), st.integers(0, 2**32 - 1)))
    def move_the_kernels_index(self, side, ring, jump):
        rings = self.queues[side].rings
        if ring in ("fill", "tx"):
            rings[ring].consumer += jump
        else:
            rings[ring].producer += jump


def test_no_sequence_of_events_loses_or_doubles_a_frame():
    """Conservation, one place per frame, order, payload and books after every step."""
    run_state_machine_as_test(Forwarding, settings=SETTINGS)


@pytest.mark.skipif(_rings.DEBUG, reason="the debug build aborts on an illegal move")
def test_no_sequence_of_hostile_ring_entries_breaks_the_books():
    """R4: no crash, no spin, and every frame counted once."""
    run_state_machine_as_test(Hostile, settings=SETTINGS)
