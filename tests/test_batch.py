"""Batches of their own memory: what is copied out of one, and into one."""

import numpy as np
import pytest

from l2fwd import Batch, ConfigError

PACKETS = [bytes([i]) * (14 + i) for i in range(100)]


def test_a_copy_has_the_same_packets_and_its_own_memory():
    batch = Batch.of(PACKETS, timestamp_ns=7)
    copy = batch.copy()
    batch.window[:] = 0xEE
    assert copy.tolist() == [bytes(packet) for packet in copy] == PACKETS
    assert copy.timestamp_ns.tolist() == [7] * len(PACKETS)
    assert not copy.window[0, 14:].any()


def test_batches_are_joined_in_order_whatever_their_longest_packets():
    parts = [Batch.of(PACKETS[:3]), Batch.of([]), Batch.of(PACKETS[50:]), Batch.of(PACKETS[3:9])]
    joined = Batch.joined(parts, timestamp_ns=1)
    assert joined.tolist() == PACKETS[:3] + PACKETS[50:] + PACKETS[3:9]
    assert joined.addr.tolist() == (np.arange(59) * 113).tolist()
    assert Batch.joined([], timestamp_ns=1).tolist() == []


@pytest.mark.parametrize("packets", [[], [b""], [b"", b"x"]])
def test_packets_without_bytes_are_copied_too(packets):
    assert Batch.of(packets).copy().tolist() == Batch.of(packets).tolist() == packets


def test_a_length_that_was_made_too_long_ends_with_the_row():
    batch = Batch.of([b"a" * 20, b"b" * 20])
    batch.length[:] = 5000
    copy = batch.copy()
    assert batch.tolist() == copy.tolist() == [b"a" * 20, b"b" * 20]
    assert copy.length.tolist() == [20, 20]


def test_a_released_batch_is_not_copied():
    batch = Batch.of(PACKETS)
    batch.release()
    for use in (Batch.tolist, Batch.copy, lambda each: Batch.joined([each], 0)):
        with pytest.raises(ConfigError, match="was released"):
            use(batch)
