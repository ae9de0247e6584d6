"""Packets received together, where the kernel put them."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from l2fwd._socket import Channel, Lease, longest_of, to_bytes, to_rows
from l2fwd.errors import ConfigError
from l2fwd.records import RX_METADATA

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Sender(Protocol):
    """What a batch can be sent on: an ``XdpSocket``."""

    channel: Channel

    def send_frames(
        self,
        addrs: "NDArray[np.uint64]",
        lengths: "NDArray[np.uint32]",
        *,
        checksum: Any = None,
        timestamp: bool = False,
    ) -> int: ...


class Batch:
    """Packets, in the packet memory of the socket that received them.  A context manager.

    Their frames are lent to you: give them back with ``release``, or at the end of a ``with``, or
    the socket runs out of them.  Afterwards the batch and its arrays are refused; a view of its
    packets that is still alive is refused at the release, as its bytes would become others.

    Attributes
    ----------
    length : uint32, shape (n,)
        Bytes of each packet; may be written before the batch is sent on.

    Examples
    --------
    >>> batch = Batch.of([b"\\2" * 60, b"\\3" * 64])
    >>> len(batch), batch.length.tolist(), bytes(batch[1])[:2]
    (2, [60, 64], b'\\x03\\x03')

    Received, changed where they are, and sent back:

    >>> from l2fwd import XdpSocket
    >>> with XdpSocket("veth0") as left, XdpSocket("veth1") as right:
    ...     left.write(bytes(60))
    ...     received = right.read_batch(timeout=5)
    ...     received.window[received.row, received.column] = 0xAA
    ...     received.send_on(right)
    ...     left.read(timeout=5)[:2]
    1
    b'\\xaa\\x00'
    """

    def __init__(
        self,
        addrs: "NDArray[np.uint64]",
        lengths: "NDArray[np.uint32]",
        timestamp_ns: int,
        *,
        channel: Channel | None = None,
        rows: "NDArray[np.uint8] | None" = None,
        frame_size: int = 0,
        metadata: "NDArray[np.void] | None" = None,
    ) -> None:
        self._addrs = addrs
        self._lengths = lengths
        self._time = timestamp_ns
        self._channel = channel
        self._lease = None if channel is None else Lease(channel.pool.memory)
        self._window = rows
        self._frame_size = frame_size
        self._metadata = metadata
        self._is_released = False

    @classmethod
    def of(
        cls,
        packets: "list[bytes]",
        timestamp_ns: int = 0,
        metadata: "NDArray[np.void] | None" = None,
    ) -> "Batch":
        """Make a batch of its own memory."""
        longest = max(map(len, packets), default=0)
        rows = np.zeros((len(packets), longest), np.uint8)
        for row, packet in zip(rows, packets, strict=True):
            row[: len(packet)] = np.frombuffer(packet, np.uint8)
        lengths = np.fromiter(map(len, packets), np.uint32, len(packets))
        addrs = np.arange(len(packets), dtype=np.uint64) * longest
        return cls(addrs, lengths, timestamp_ns, rows=rows, frame_size=longest, metadata=metadata)

    @classmethod
    def joined(cls, batches: "Sequence[Batch]", timestamp_ns: int) -> "Batch":
        """Copy all packets of ``batches``, in order, to a batch of its own memory."""
        count = sum(map(len, batches))
        longest = max((longest_of(each._lengths) for each in batches), default=0)
        rows = np.empty((count, longest), np.uint8)
        addrs, lengths = np.empty(count, np.uint64), np.empty(count, np.uint32)
        done = 0
        for each in batches:
            to_rows(each._memory(), each._addrs, each._lengths, done, rows, addrs, lengths)
            done += len(each)
        return cls(
            addrs, lengths, timestamp_ns, rows=rows, frame_size=longest,
            metadata=_joined([each._metadata for each in batches], count),
        )  # fmt: skip

    def _require(self) -> None:
        if self._is_released:
            raise ConfigError("the batch was released: its frames hold other packets by now")

    def __len__(self) -> int:
        self._require()
        return len(self._addrs)

    def __bool__(self) -> bool:
        return len(self) > 0

    @property
    def addr(self) -> "NDArray[np.uint64]":
        """Byte offset of each packet in the packet memory: uint64, shape (n,), read-only."""
        self._require()
        view = self._addrs.view()
        view.flags.writeable = False
        return view

    @property
    def length(self) -> "NDArray[np.uint32]":
        self._require()
        return self._lengths

    @property
    def timestamp_ns(self) -> "NDArray[np.int64]":
        """When each packet was read: ns since 1970, int64, shape (n,)."""
        return np.full(len(self), self._time, np.int64)

    @property
    def metadata(self) -> "NDArray[np.void]":
        """What the NIC knew about each packet: ``records.RX_METADATA``, shape (n,).

        A structured array: ``timestamp_ns``, ``hash`` and ``hash_type`` (``HashType``),
        ``vlan_proto`` and ``vlan_tci``; ``has`` (``RxHas``) tells which of them are there, the
        others are 0.

        Raises
        ------
        ConfigError
            If the socket was opened without ``rx_metadata``.
        """
        self._require()
        if self._metadata is None:
            raise ConfigError("the batch has no metadata; open its socket with rx_metadata=True")
        return self._metadata

    @property
    def window(self) -> "NDArray[np.uint8]":
        """The packet memory: uint8, shape (frame_count, frame_size), no copy.

        Packet ``i`` is ``window[row[i], column[i]:column[i] + length[i]]``.  Frames of other
        packets are in it, too.
        """
        self._require()
        if self._window is None:
            self._window = np.asarray(self._lease)
        return self._window

    @property
    def row(self) -> "NDArray[np.int64]":
        """Row of each packet in ``window``: int64, shape (n,)."""
        return self.addr.astype(np.int64) // max(self._frame_size, 1)

    @property
    def column(self) -> "NDArray[np.int64]":
        """Where in its row each packet begins: int64, shape (n,)."""
        return self.addr.astype(np.int64) % max(self._frame_size, 1)

    def __getitem__(self, index: int) -> "NDArray[np.uint8]":
        """Return a view of one packet: uint8, shape (length,), no copy."""
        self._require()
        addr, length = int(self._addrs[index]), int(self._lengths[index])
        row, column = divmod(addr, max(self._frame_size, 1))
        packet: NDArray[np.uint8] = self.window[row, column : column + length]
        return packet

    def __iter__(self) -> "Iterator[NDArray[np.uint8]]":
        return (self[i] for i in range(len(self)))

    def tolist(self) -> list[bytes]:
        """Copy all packets: a list of bytes."""
        self._require()
        return to_bytes(self._memory(), self._addrs, self._lengths)

    def copy(self) -> "Batch":
        """Return the packets in a batch of its own memory; this one stays as it is."""
        return Batch.joined([self], self._time)

    def _memory(self) -> "NDArray[np.uint8] | Lease":
        """Return what the packets lie in, for a call that keeps no view of it."""
        memory = self._window if self._lease is None else self._lease
        assert memory is not None
        return memory

    def send_on(self, socket: Sender, *, checksum: Any = None, timestamp: bool = False) -> int:
        """Send the packets on a socket of the same UMEM, without a copy.

        What finds no room in a socket that does not block goes back to the pool, unsent.  The
        batch is released either way.  ``checksum`` and ``timestamp`` as in
        ``XdpSocket.write_batch``.

        Returns
        -------
        int
            How many were sent.

        Raises
        ------
        ConfigError
            If the socket has another UMEM, or a packet's length does not fit.
        BufferError
            If views of the packets are alive.
        """
        self._require()
        if self._channel is None or self._channel.pool is not socket.channel.pool:
            raise ConfigError("send_on needs a socket of the batch's UMEM; write_batch copies")
        self._drop_views()
        before = socket.channel.tx_packets
        sent = 0
        try:
            socket.send_frames(self._addrs, self._lengths, checksum=checksum, timestamp=timestamp)
        finally:
            # Counted, as the call may have failed after it sent some.
            sent = socket.channel.tx_packets - before
            self._channel.recycle(self._addrs[sent:])
            self._is_released = True
        return sent

    def _drop_views(self) -> None:
        if self._lease is None:
            return
        self._window = None
        if self._lease.views:
            raise BufferError(
                "views of the batch are alive; delete them, or copy what you keep (batch.copy())"
            )

    def release(self) -> None:
        """Give the frames back.  A second call does nothing.

        Raises
        ------
        BufferError
            If views of the packets are alive; the frames stay the batch's.
        """
        if self._is_released:
            return
        self._drop_views()
        if self._channel is not None:
            self._channel.recycle(self._addrs)
        self._is_released = True

    def __enter__(self) -> "Batch":
        self._require()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None or self._lease is None:
            self.release()
            return
        try:
            self.release()
        except BufferError:  # the traceback holds them: freed with it, see __del__
            return

    def __del__(self) -> None:
        if not self._is_released and self._channel is not None and self._lease is not None:
            self._window = None
            self._lease.give_back(self._channel, self._addrs)


def _joined(parts: "list[NDArray[np.void] | None]", count: int) -> "NDArray[np.void] | None":
    """Put the metadata of several batches together; None if one of them has none."""
    joined = np.empty(count, RX_METADATA)
    done = 0
    for part in parts:
        if part is None:
            return None
        joined[done : done + len(part)] = part
        done += len(part)
    return joined
