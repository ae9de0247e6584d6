"""A kernel made of numpy: the other end of the four rings, to test without a NIC or root.

>>> from l2fwd._rings import Memory, Pool
>>> from l2fwd._worker import Worker
>>> pool = Pool(Memory(64, 2048))
>>> left, right = FakeQueue(pool, size=16, name="left"), FakeQueue(pool, size=16, record=True)
>>> left.port.refill(16)
16
>>> left.receive_packets([b"sixty bytes, more or less".ljust(60)])
1
>>> Worker(left.port, right.port).turn()
1
>>> right.sent[0][:11]
b'sixty bytes'

Nothing here is locked: call it between turns of a worker, or from ``on_kick``, which the
worker's own thread calls.
"""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from l2fwd._rings import Pool, Port, RingMemory
from l2fwd.abi import UNALIGNED_OFFSET_SHIFT, XDP_PACKET_HEADROOM, XDP_PKT_CONTD

XDP_DESC: Final = np.dtype([("addr", np.uint64), ("len", np.uint32), ("options", np.uint32)])
RING_DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "fill": np.dtype(np.uint64),
    "completion": np.dtype(np.uint64),
    "rx": XDP_DESC,
    "tx": XDP_DESC,
}

_NEED_WAKEUP: Final = 1  # XDP_RING_NEED_WAKEUP
_INDEX_MASK: Final = 2**32 - 1  # ring indices are u32 and wrap
_LINE_BYTES: Final = 64  # struct xdp_ring keeps producer, consumer and flags this far apart
_KICK: Final = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)

Addrs = NDArray[np.uint64]
Descs = NDArray[np.void]


class FakeRing:
    """One ring, seen from the kernel's side.

    Parameters
    ----------
    size : int
        Slots.
    dtype : numpy.dtype
        uint64 or ``XDP_DESC``.
    start : int
        First value of both indices; near 2**32 they wrap soon.

    Attributes
    ----------
    slots : numpy.ndarray, dtype, shape (size,)
    memory : RingMemory
        For ``Port``; valid as long as this object lives.
    """

    def __init__(self, size: int, dtype: np.dtype[Any], start: int = 0) -> None:
        raw = np.zeros(4 * _LINE_BYTES + size * dtype.itemsize, np.uint8)
        raw = raw[-raw.ctypes.data % _LINE_BYTES :][: 3 * _LINE_BYTES + size * dtype.itemsize]
        self._words = raw[: 3 * _LINE_BYTES].view(np.uint32)[:: _LINE_BYTES // 4]
        self._words[:2] = start & _INDEX_MASK
        self.size = size
        self.slots = raw[3 * _LINE_BYTES :].view(dtype)
        address = raw.ctypes.data
        self.memory = RingMemory(
            address, address + _LINE_BYTES, address + 2 * _LINE_BYTES, self.slots.ctypes.data, size
        )

    @property
    def producer(self) -> int:
        """The shared index; set it to any value to play a broken kernel."""
        return int(self._words[0])

    @producer.setter
    def producer(self, index: int) -> None:
        self._words[0] = index & _INDEX_MASK

    @property
    def consumer(self) -> int:
        """The shared index; set it to any value to play a broken kernel."""
        return int(self._words[1])

    @consumer.setter
    def consumer(self, index: int) -> None:
        self._words[1] = index & _INDEX_MASK

    @property
    def needs_wakeup(self) -> bool:
        """The flag by which the kernel asks for a system call."""
        return bool(self._words[2] & _NEED_WAKEUP)

    @needs_wakeup.setter
    def needs_wakeup(self, value: bool) -> None:
        self._words[2] = _NEED_WAKEUP if value else 0

    @property
    def pending(self) -> int:
        """Slots between consumer and producer; more than ``size`` if an index is broken."""
        return (self.producer - self.consumer) & _INDEX_MASK

    @property
    def room(self) -> int:
        """Free slots; 0 if an index is broken."""
        return max(0, self.size - self.pending)

    def peek(self) -> NDArray[Any]:
        """Copy all readable slots, in order; none if an index is broken."""
        count = self.pending if self.pending <= self.size else 0
        return self.slots[self._masked(self.consumer, count)]

    def take(self, max_count: int) -> NDArray[Any]:
        """Consume up to ``max_count`` slots and return them."""
        taken = self.peek()[:max_count]
        self.consumer += len(taken)
        return taken

    def put(self, values: NDArray[Any]) -> None:
        """Produce ``values`` as they are, valid or not, whether there is room or not."""
        self.slots[self._masked(self.producer, len(values))] = values
        self.producer += len(values)

    def _masked(self, first: int, count: int) -> NDArray[np.int64]:
        return np.arange(first, first + count) & (self.size - 1)


class FakeQueue:
    """One NIC queue with its socket: what the kernel does with the rings of a ``Port``.

    Parameters
    ----------
    pool : Pool
        Frames, shared with the other queues of the same worker.
    size : int or Mapping[str, int]
        Slots, of all rings or of each by name.
    start : int
        First value of all ring indices.
    name : str
        The port's name.
    record : bool
        Keep a copy of every transmitted packet in ``sent``.
    kick_tx : int
        Address of ``int kick(int fd)`` to call in place of ``on_kick``.
    max_fragments : int
        Most frames of a packet; above 1 the queue is as if bound with XDP_USE_SG.

    Attributes
    ----------
    port : Port
        Our side of the rings.  Its file descriptor is -1, which ``poll`` ignores.
    rings : dict[str, FakeRing]
        ``fill``, ``completion``, ``rx`` and ``tx``.
    kernel_rx, kernel_tx : numpy.ndarray, uint64
        Addresses the kernel holds outside the rings: taken from fill but not received yet,
        and taken from tx but not completed yet.
    on_kick : Callable[[], int]
        Stands for ``sendto``: returns 0 or -errno.  By default all is sent and completed.
    on_kick_rx : Callable[[], int]
        Stands for ``recvfrom``.  By default nothing happens.
    sent : list[bytes]
        Transmitted packets, with ``record``.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        size: int | Mapping[str, int] = 2048,
        start: int = 0,
        name: str = "fake queue 0",
        record: bool = False,
        kick_tx: int = 0,
        max_fragments: int = 1,
    ) -> None:
        sizes = dict.fromkeys(RING_DTYPES, size) if isinstance(size, int) else size
        self.rings = {
            ring: FakeRing(sizes[ring], dtype, start) for ring, dtype in RING_DTYPES.items()
        }
        # Copy mode: the kernel asks for a system call after every submit.
        self.rings["tx"].needs_wakeup = True
        self.kernel_rx: Addrs = np.empty(0, np.uint64)
        self.kernel_tx: Addrs = np.empty(0, np.uint64)
        self.sent: list[bytes] = []
        self.on_kick: Callable[[], int] = self.send_all
        self.on_kick_rx: Callable[[], int] = lambda: 0
        self._record = record
        frames: NDArray[np.uint8] = np.asarray(pool.memory)
        self._bytes = frames.reshape(-1)
        self._frame_size = frames.shape[1]
        self._room = frames.shape[1] - XDP_PACKET_HEADROOM
        self._is_unaligned = pool.is_unaligned
        self._begun = b""  # what was transmitted of a packet that goes on
        self._callbacks = (_KICK(lambda _: self.on_kick()), _KICK(lambda _: self.on_kick_rx()))
        kicks = [ctypes.cast(kick, ctypes.c_void_p).value or 0 for kick in self._callbacks]
        self.port = Port(
            pool,
            {ring: fake.memory for ring, fake in self.rings.items()},
            -1,
            name,
            owner=self,
            kick_tx=kick_tx or kicks[0],
            kick_rx=kicks[1],
            max_fragments=max_fragments,
        )

    def pending(self, ring: str) -> int:
        """Count the slots in use of the ring with this name."""
        return self.rings[ring].pending

    def prefetch(self, max_count: int) -> int:
        """Take frames off the fill ring ahead of packets, as drivers do; return how many."""
        taken = self.rings["fill"].take(max_count)
        self.kernel_rx = np.concatenate([self.kernel_rx, self._frames_of(taken)])
        return len(taken)

    def receive(self, lengths: int | Sequence[int] | NDArray[Any], length: int = 60) -> int:
        """Let packets arrive, leaving the frames' bytes as they are.

        Parameters
        ----------
        lengths : int or sequence of int
            How many packets of ``length`` bytes, or the bytes of each.
        length : int
            Bytes of each packet, if ``lengths`` is a count.

        Returns
        -------
        int
            How many found a frame and room on the rx ring.
        """
        if isinstance(lengths, int):
            lengths = np.full(lengths, length)
        descs = self._new_descs(lengths)
        self.rings["rx"].put(descs)
        return len(descs)

    def receive_packets(self, packets: Sequence[bytes]) -> int:
        """Let these packets arrive; return how many found frames and room on the rx ring."""
        return sum(self._receive_packet(packet) for packet in packets)

    def _receive_packet(self, packet: bytes) -> bool:
        """Receive one packet, in as many frames as it takes, or drop it (``__xsk_rcv``)."""
        pieces = [packet[i : i + self._room] for i in range(0, len(packet), self._room)]
        if len(pieces) > self.rings["rx"].room:
            return False
        self.prefetch(len(pieces) - min(len(pieces), len(self.kernel_rx)))
        if len(pieces) > len(self.kernel_rx):
            return False
        descs = self._new_descs([len(piece) for piece in pieces])
        descs["options"][:-1] = XDP_PKT_CONTD
        for desc, piece in zip(descs, pieces, strict=True):
            self.payload(desc)[:] = np.frombuffer(piece, np.uint8)
        self.rings["rx"].put(descs)
        return True

    def transmit(self, max_count: int = _INDEX_MASK) -> Descs:
        """Consume tx descriptors, in order, and hold their frames until ``complete``.

        Returns
        -------
        numpy.ndarray, XDP_DESC
            What was sent.
        """
        descs = self.rings["tx"].take(max_count)
        self.kernel_tx = np.concatenate([self.kernel_tx, descs["addr"]])
        if self._record:
            for desc in descs:
                self._begun += self.payload(desc).tobytes()
                if not desc["options"] & XDP_PKT_CONTD:
                    self.sent.append(self._begun)
                    self._begun = b""
        return descs

    def complete(self, max_count: int = _INDEX_MASK) -> int:
        """Give transmitted frames back through the completion ring; return how many."""
        count = min(max_count, len(self.kernel_tx), self.rings["completion"].room)
        self.rings["completion"].put(self.kernel_tx[:count])
        self.kernel_tx = self.kernel_tx[count:]
        return count

    def send_all(self) -> int:
        """Transmit and complete everything: what ``on_kick`` does unless told otherwise."""
        self.transmit()
        self.complete()
        return 0

    def payload(self, desc: np.void) -> NDArray[np.uint8]:
        """View the packet of ``desc`` in the UMEM, writable."""
        first = int(self._flat(desc["addr"]))
        return self._bytes[first : first + int(desc["len"])]

    def held(self) -> dict[str, Addrs]:
        """Return the frames lent to this queue, by place, as addresses of their first byte."""
        places = {
            "fill": self.rings["fill"].peek(),
            "kernel_rx": self.kernel_rx,
            "rx": self.rings["rx"].peek()["addr"],
            "tx": self.rings["tx"].peek()["addr"],
            "kernel_tx": self.kernel_tx,
            "completion": self.rings["completion"].peek(),
        }
        return {place: self._frames_of(addrs) for place, addrs in places.items()}

    def _flat(self, addrs: Any) -> Any:
        """Turn addresses as they are in rings into byte offsets."""
        if not self._is_unaligned:
            return addrs
        shift = np.uint64(UNALIGNED_OFFSET_SHIFT)
        return (addrs & np.uint64(2**UNALIGNED_OFFSET_SHIFT - 1)) + (addrs >> shift)

    def _frames_of(self, addrs: Addrs) -> Addrs:
        """Find the first byte of the frame that holds each address."""
        flat: Addrs = self._flat(addrs)
        return flat - flat % np.uint64(self._frame_size)

    def _new_descs(self, lengths: Sequence[int] | NDArray[Any]) -> Descs:
        count = min(len(lengths), self.rings["rx"].room)
        self.prefetch(count - min(count, len(self.kernel_rx)))
        descs = np.zeros(min(count, len(self.kernel_rx)), XDP_DESC)
        offset = XDP_PACKET_HEADROOM << (UNALIGNED_OFFSET_SHIFT if self._is_unaligned else 0)
        descs["addr"] = self.kernel_rx[: len(descs)] + np.uint64(offset)
        descs["len"] = lengths[: len(descs)]
        self.kernel_rx = self.kernel_rx[len(descs) :]
        return descs
