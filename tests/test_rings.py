"""Rings, pool and memory against the fake kernel.  R1..R10: docs of each test name the case."""

import errno
import gc
import random
import subprocess
import sys
from collections import deque

import numpy as np
import pytest

from l2fwd import _rings
from l2fwd._rings import Memory, Pool, Port
from l2fwd._worker import Worker
from l2fwd.errors import ConfigError, KernelError
from l2fwd.testing import XDP_DESC, FakeQueue

FRAME_SIZE = 2048

release_build_only = pytest.mark.skipif(
    _rings.DEBUG, reason="the debug build aborts on an illegal move; see test_debug_build_aborts"
)


def make_queues(frame_count=16, size=8, start=0, fill_target=0):
    pool = Pool(Memory(frame_count, FRAME_SIZE))
    queues = [FakeQueue(pool, size=size, start=start, name=name) for name in ("left", "right")]
    for queue in queues:
        queue.port.refill(fill_target)
    return pool, *queues


def desc(addr, length=60, options=0):
    return np.array([(addr, length, options)], XDP_DESC)


def assert_every_frame_is_accounted_for(worker):
    frames = worker.frames()
    assert sum(frames.values()) == worker.ports[0].pool.frame_count, frames


@pytest.mark.parametrize("size", [1, 2, 4, 8, 64])
@pytest.mark.parametrize("before_wrap", [0, 1, 2, 5, 64, 66])
def test_rings_keep_order_and_count_while_their_indices_wrap(size, before_wrap):
    """R1: indices started at 2**32 - k, against a deque."""
    _, left, right = make_queues(2 * size, size, 2**32 - before_wrap, fill_target=size)
    right.on_kick = lambda: 0
    worker = Worker(left.port, right.port, batch_size=3)
    rng = random.Random(size * 100 + before_wrap)
    expected: deque[int] = deque()
    length = 60
    for _ in range(120):
        for _ in range(rng.randrange(size + 2)):
            expected.extend([length] * left.receive([length]))
            length = 60 + (length - 59) % 1400
        worker.turn()
        assert right.pending("tx") <= size
        drops = right.port.counters()["tx_full_drops"]
        assert drops == 0, "a frame lent to TX cannot be received: the ring is never full"
        for sent in right.transmit(rng.randrange(size + 2)):
            assert sent["len"] == expected.popleft()
        right.complete(rng.randrange(size + 2))
        assert_every_frame_is_accounted_for(worker)
    assert (
        left.rings["rx"].consumer
        == (2**32 - before_wrap + left.port.counters()["rx_packets"]) % 2**32
    )


def test_a_reserve_sees_slots_freed_after_its_index_was_cached():
    """R2: the consumer moved, our copy is old."""
    _, left, right = make_queues(size={"fill": 8, "rx": 8, "tx": 2, "completion": 8}, fill_target=8)
    right.on_kick = lambda: 0
    worker = Worker(left.port, right.port)
    left.receive(3)
    worker.turn()
    assert right.port.counters()["tx_full_drops"] == 1
    right.transmit()
    left.receive(2)
    worker.turn()
    assert right.pending("tx") == 2
    assert right.port.counters()["tx_full_drops"] == 1


def test_a_peek_sees_slots_filled_after_its_index_was_cached():
    """R2: the producer moved, our copy is old; and a copy that is enough is not refreshed."""
    _, left, right = make_queues(fill_target=8)
    worker = Worker(left.port, right.port, batch_size=2)
    left.receive(3)
    assert worker.turn() == 2
    left.receive(2)
    assert [worker.turn() for _ in range(3)] == [2, 1, 0]


def test_a_full_fill_ring_takes_no_more_frames_until_the_kernel_consumed_some():
    """R2: as many frames as asked are lent, never more than the ring has slots."""
    pool, left, _ = make_queues(frame_count=16, size=8)
    assert left.port.refill(8) == 8
    assert left.pending("fill") == 8
    assert left.port.refill(8) == 0
    assert left.prefetch(5) == 5
    assert left.port.refill(8) == 0, "prefetched frames are still lent"
    assert pool.free_count == 8


@release_build_only
@pytest.mark.parametrize(
    "bad",
    [
        desc(16 * FRAME_SIZE),
        desc(2**64 - 1),
        desc(2**63 + 256),
        desc(FRAME_SIZE - 14, 15),
        desc(256, FRAME_SIZE - 255),
        desc(256, 2**32 - 1),
        desc(256, 0),
        desc(256, 13),
        desc(256, 60, 1),
        desc(256, 60, 1 << 31),
    ],
    ids=lambda bad: "addr={}-len={}-options={}".format(*bad[0]),
)
def test_a_hostile_rx_descriptor_is_counted_and_its_frame_never_used_again(bad):
    """R4: out of the UMEM, over its frame, shorter than a header, unknown options."""
    pool, left, right = make_queues(fill_target=8)
    left.rings["fill"].take(1)
    left.rings["rx"].put(bad)
    worker = Worker(left.port, right.port)
    assert worker.turn() == 1
    assert left.port.counters()["rx_invalid_drops"] == 1
    assert right.port.counters()["tx_packets"] == 0
    assert pool.lost_count == 1
    assert_every_frame_is_accounted_for(worker)
    left.receive(1)
    worker.turn()
    assert right.port.counters()["tx_packets"] == 1, "the next valid packet goes through"


@release_build_only
def test_valid_neighbours_of_a_hostile_descriptor_are_sent_without_a_gap():
    """R4: only as many slots are submitted as were written."""
    _, left, right = make_queues(fill_target=8)
    right.on_kick = lambda: 0
    good = left.rings["fill"].take(5)[:4] + np.uint64(256)
    descs = np.concatenate([desc(addr, 60 + i) for i, addr in enumerate(good)])
    left.rings["rx"].put(np.concatenate([descs[:1], desc(2**40), descs[1:]]))
    worker = Worker(left.port, right.port)
    assert worker.turn() == 5
    assert right.transmit()["addr"].tolist() == good.tolist()
    assert_every_frame_is_accounted_for(worker)


def test_a_packet_that_just_fits_its_frame_is_forwarded():
    """R4: the bounds themselves are valid."""
    _, left, right = make_queues(fill_target=8)
    worker = Worker(left.port, right.port)
    left.receive([14, FRAME_SIZE - 256])
    worker.turn()
    assert right.port.counters()["tx_packets"] == 2


@release_build_only
def test_more_rx_descriptors_than_frames_lent_are_not_read():
    """R4: a kernel that repeats a frame cannot make two of it."""
    _, left, right = make_queues(frame_count=4, fill_target=2)
    left.rings["rx"].put(np.repeat(desc(256), 8))
    worker = Worker(left.port, right.port, batch_size=8)
    assert worker.turn() == 2
    assert_every_frame_is_accounted_for(worker)


@pytest.mark.parametrize("ring", ["rx", "completion"])
@pytest.mark.parametrize("jump", [9, 1000, 2**31, 2**32 - 1])
def test_a_producer_out_of_range_stops_that_ring_until_it_makes_sense(ring, jump):
    """R4: producer - consumer > size, or a consumer ahead of its producer."""
    _, left, right = make_queues(fill_target=8)
    left.receive(3)
    worker = Worker(left.port, right.port)
    right.on_kick = lambda: 0
    worker.turn()
    queue = left if ring == "rx" else right
    good = queue.rings[ring].producer
    queue.rings[ring].producer = good + jump
    for _ in range(3):
        assert worker.turn() == 0
        assert_every_frame_is_accounted_for(worker)
    queue.rings[ring].producer = good
    right.transmit()
    right.complete()
    left.receive(2)
    assert worker.turn() == 2
    assert right.port.counters()["completion_invalid"] == 0
    assert_every_frame_is_accounted_for(worker)


@pytest.mark.parametrize("jump", [1, 9, 2**31, 2**32 - 1000])
def test_a_consumer_ahead_of_its_producer_makes_tx_drop_until_it_makes_sense(jump):
    """R4: nothing is written over slots the kernel may still read."""
    _, left, right = make_queues(frame_count=32, fill_target=8)
    right.on_kick = lambda: 0
    worker = Worker(left.port, right.port)
    left.receive(8)
    worker.turn()
    right.rings["tx"].consumer = right.rings["tx"].producer + jump
    left.receive(2)
    assert worker.turn() == 2
    assert right.port.counters()["tx_full_drops"] == 2
    right.rings["tx"].consumer = right.rings["tx"].producer
    left.receive(3)
    worker.turn()
    assert right.port.counters()["tx_packets"] == 8 + 3
    assert_every_frame_is_accounted_for(worker)


def test_a_completion_outside_the_umem_is_counted_and_costs_one_frame():
    """R4: the kernel echoes whatever address TX had."""
    pool, left, right = make_queues(fill_target=8)
    right.on_kick = lambda: 0
    worker = Worker(left.port, right.port)
    left.receive(3)
    worker.turn()
    right.transmit()
    right.rings["completion"].put(np.array([16 * FRAME_SIZE, 2**64 - 1], np.uint64))
    right.complete(1)
    assert right.port.reclaim() == 3
    assert right.port.counters()["completion_invalid"] == 2
    assert pool.lost_count == 2
    assert_every_frame_is_accounted_for(worker)


@release_build_only
def test_frames_completed_twice_cannot_overfill_the_pool():
    """R6: no more completions are taken than frames are out."""
    pool, left, right = make_queues(frame_count=8, fill_target=4)
    worker = Worker(left.port, right.port)
    left.receive(2)
    right.on_kick = lambda: 0
    worker.turn()
    descs = right.transmit()
    for _ in range(3):
        right.rings["completion"].put(descs["addr"])
    assert right.port.reclaim() == 2
    assert right.port.reclaim() == 0
    assert pool.free_count == 2
    assert_every_frame_is_accounted_for(worker)


@pytest.mark.skipif(not _rings.DEBUG, reason="a build without L2FWD_DEBUG=1 keeps no frame states")
def test_debug_build_aborts_on_an_illegal_move():
    """R6: a frame completed twice, in a process of its own."""
    script = """
import numpy as np
from l2fwd._rings import Memory, Pool
from l2fwd._worker import Worker
from l2fwd.testing import FakeQueue
pool = Pool(Memory(8, 2048))
left, right = FakeQueue(pool, size=8), FakeQueue(pool, size=8)
left.port.refill(4)
left.receive(2)
right.on_kick = lambda: 0
Worker(left.port, right.port).turn()
addrs = right.transmit()["addr"]
right.rings["completion"].put(np.repeat(addrs[:1], 2))
right.port.reclaim()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == -6, done.stderr
    assert "moved from tx to pool, but it is in pool" in done.stderr


@pytest.mark.parametrize("size", [0, 3, 48])
def test_a_ring_size_that_is_no_power_of_two_is_refused(size):
    """R10."""
    with pytest.raises(ConfigError, match=f"power of two, got {size}"):
        make_queues(size=size)


def test_a_frame_size_that_is_no_power_of_two_is_refused():
    with pytest.raises(ConfigError, match="frame_size must be a power of two, got 3000"):
        Pool(Memory(4, 3000))


def test_memory_the_kernel_does_not_have_is_an_error_that_names_what_was_asked():
    with pytest.raises(KernelError, match="map memory for 8388608 frames of 1073741824") as caught:
        Memory(2**23, 2**30)
    assert caught.value.errno == errno.ENOMEM


def test_a_view_outlives_everything_it_was_taken_from():
    """R6: late views show stale bytes, never a fault."""
    pool, left, right = make_queues()
    frames = np.asarray(pool.memory)
    assert frames.shape == (16, FRAME_SIZE)
    assert frames.dtype == np.uint8
    assert not frames.flags.owndata
    frames[3, 5] = 42
    row = frames[3]
    del pool, left, right, frames
    gc.collect()
    assert row[5] == 42
    row[:] = 7
    assert int(row.sum()) == 7 * FRAME_SIZE


def test_refill_lends_no_more_than_the_ring_and_no_fewer_than_are_out():
    _, left, _ = make_queues(size=8)
    with pytest.raises(ConfigError, match="fill_target 9 exceeds the fill ring's 8 slots"):
        left.port.refill(9)
    left.port.refill(8)
    with pytest.raises(ConfigError, match="8 frames are lent already, asked 7"):
        left.port.refill(7)


def test_an_empty_pool_is_lent_as_far_as_it_goes_and_topped_up_later():
    pool, left, right = make_queues(frame_count=4, size=8)
    assert right.port.refill(3) == 3
    assert left.port.refill(8) == 1
    assert pool.free_count == 0
    right.receive(3)
    worker = Worker(right.port, left.port)
    worker.turn()
    worker.turn()
    assert_every_frame_is_accounted_for(worker)
    assert left.port.frames()["fill"] + right.port.frames()["fill"] == 4


def test_a_closed_port_refuses_work_keeps_its_counters_and_loses_its_frames():
    _, left, right = make_queues(frame_count=32, fill_target=8)
    worker = Worker(left.port, right.port)
    left.receive(1)
    worker.turn()
    left.port.close()
    for action in (worker.turn, worker.run, left.port.reclaim, lambda: left.port.refill(8)):
        with pytest.raises(ConfigError, match="closed"):
            action()
    assert left.port.counters()["rx_packets"] == 1
    assert worker.frames()["lost"] == 8
    assert_every_frame_is_accounted_for(worker)


def test_the_rings_memory_lives_as_long_as_its_port():
    pool = Pool(Memory(8, FRAME_SIZE))
    ports: list[Port] = [FakeQueue(pool, size=8).port for _ in range(2)]
    gc.collect()
    assert ports[0].refill(4) == 4
    assert Worker(*ports).turn() == 0
    assert ports[0].frames()["fill"] == 4


def test_a_worker_takes_one_entry_of_progress_a_port():
    _, left, right = make_queues()
    with pytest.raises(ConfigError, match="one entry a port"):
        Worker(left.port, right.port, progress=[0] * 17)
