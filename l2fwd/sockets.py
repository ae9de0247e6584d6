"""AF_XDP sockets for Python: open by link name, read and write packets, one or whole batches.

One thread drives a socket, and all sockets of one UMEM: the first call decides which thread.
The GIL is released in every wait and system call.  ``close`` may come from any thread.  A forked
child has none of its parent's sockets: they are closed there.
"""

import asyncio
import operator
import os
import select
import time
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from l2fwd import bpf
from l2fwd._socket import WATCH_SECONDS, Channel, TxRequest
from l2fwd.abi import COPY_MODE_FRAGMENTS, ETHERNET_MTU, MIN_TX_SKB_BUDGET
from l2fwd.batch import Batch
from l2fwd.config import AttachMode, BindMode, SocketConfig, UmemConfig, choose
from l2fwd.errors import ConfigError, KernelError, UnsupportedError
from l2fwd.link import Link, find_link, wait_for_carrier
from l2fwd.link_programs import LinkProgram, forget_programs
from l2fwd.netdev import xdp_features
from l2fwd.records import RX_METADATA, TX_TIMESTAMP
from l2fwd.xsk import BoundSocket, Umem, check_nic_ring, in_skb_mode

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Checksum = tuple[int, int] | NDArray[np.integer[Any]]

DEFAULT_FRAMES: Final = 1024
DEFAULT_RING_SIZE: Final = 1024
DEFAULT_POLL_TIMEOUT: Final = 100e-6  # seconds
_MAX_BATCH: Final = 64
_TX_BUDGET: Final = 256  # packets a system call may send in copy mode
_MAX_CHECKSUM_BYTE: Final = 0xFFFF  # 16 bits in struct xsk_tx_metadata
_RETRY_SECONDS: Final = 0.005  # a wait for TX frames, which no event tells of
_DRAIN_SECONDS: Final = 0.2
_CARRIER_SECONDS: Final = 5.0

Packet = bytes | bytearray | memoryview
_Nothing = tuple[None, None]
_Self = TypeVar("_Self", bound="XdpSocket")


@dataclass(frozen=True, slots=True)
class SocketStats:
    """Counters of one socket, or of several added up; all monotonic but ``frames``.

    Attributes
    ----------
    link : str
    queue : int
        -1 for a total.
    rx_packets, rx_bytes, tx_packets, tx_bytes : int
        As the socket saw them; ``tx_packets`` were handed to the kernel, ``tx_completed`` are back.
    kernel : dict of str to int
        XDP_STATISTICS as the kernel counts them.
    drops : dict of str to int
        Disjoint reasons; see ``stats.DROP_REASONS``.
    frames : dict of str to int
        How many frames are where: ``pool``, ``fill``, ``kernel_rx``, ``rx``, ``tx``,
        ``kernel_tx``, ``completion``, ``user`` (batches not released), ``lost``.  ``pool``,
        ``user`` and ``lost`` are the UMEM's, which sockets may share.
    rx_wakeups, tx_wakeups : int
        System calls.

    Examples
    --------
    >>> with XdpSocket("veth0", frames=64, ring_size=64) as socket:
    ...     socket.write(bytes(60))
    ...     sent = socket.flush(timeout=5)
    ...     stats = socket.stats()
    >>> stats.tx_packets, stats.tx_bytes, stats.drops, sum(stats.frames.values())
    (1, 60, {}, 128)
    """

    link: str
    queue: int
    rx_packets: int
    rx_bytes: int
    tx_packets: int
    tx_completed: int
    tx_bytes: int
    kernel: dict[str, int]
    drops: dict[str, int]
    frames: dict[str, int]
    rx_wakeups: int
    tx_wakeups: int


_open_sockets: "weakref.WeakSet[XdpSocket]" = weakref.WeakSet()


class XdpSocket:
    """An AF_XDP socket on one queue of a link, full duplex.  A context manager.

    Parameters
    ----------
    link : str
    queue : int
    frames : int
        Packets that can be on their way in, and as many out.  With ``umem``: in, and some of what
        the first socket left must remain for those out.
    ring_size : int
        Slots of each of the four rings, a power of two.
    mode : str
        ``auto`` (native, or skb where the driver has none), ``native``, ``skb`` or ``offload``.
    bind : str
        ``auto``, ``copy`` or ``zero-copy``.
    block : bool
        True: calls wait until a packet is there, or is taken over by the kernel.
    poll_timeout : float
        Seconds that calls wait at most where they do not block; 100 us.
    receive : bool
        False: what arrives goes to the host; the socket only sends.
    umem : Umem, optional
        Of another socket, ``socket.umem``: both share packet memory, ring size and thread, and
        packets can be sent on without a copy.  It ends with the last of them.
    frame_size, headroom : int
        Bytes of a frame (2048 or 4096), and of what is kept free before each packet received.
    huge_pages, need_wakeup : bool
    frags : bool, optional
        Let a packet take several frames; where the MTU needs it, if not given.  All packets are
        copied then: a batch has memory of its own.  With ``umem``: as its first socket.
    rx_metadata : bool
        Have ``Batch.metadata``: the NIC's timestamp, hash and VLAN tag of each packet received.  In
        native mode, from drivers that tell it.
    tx_metadata : bool
        Keep 32 bytes before each packet sent, so that ``checksum`` and ``timestamp`` can be asked
        for.  With ``umem``: as its first socket.
    program : str
        A BPF object of your own, ``FILE`` or ``FILE:PROGRAM``, with an XSKMAP named ``xsks_map``.
    xsks_map : str
        Path of a pinned XSKMAP, whose program is attached already: nothing is attached.

    Attributes
    ----------
    notes : list of str
        Fall-backs that the user should know.

    Raises
    ------
    ConfigError
        If a setting, or two together, cannot be.
    KernelError, UnsupportedError
        With the errno, and a remedy; later, too, once the link is gone.

    Examples
    --------
    Where ``veth0`` and ``veth1`` are two ends of a cable:

    >>> packet = bytes.fromhex("020000000002" "020000000001" "88b5") + b"hello"
    >>> with XdpSocket("veth0") as left, XdpSocket("veth1") as right:
    ...     left.write(packet)
    ...     right.read(timeout=5)[14:]
    ...     right.write_batch([packet, packet])
    ...     [len(left.read(timeout=5)) for _ in range(2)]
    b'hello'
    2
    [19, 19]
    """

    closed = True

    def __init__(
        self,
        link: str,
        queue: int = 0,
        *,
        frames: int = DEFAULT_FRAMES,
        ring_size: int = DEFAULT_RING_SIZE,
        mode: str = "auto",
        bind: str = "auto",
        block: bool = True,
        poll_timeout: float = DEFAULT_POLL_TIMEOUT,
        receive: bool = True,
        umem: Umem | None = None,
        frame_size: int = 2048,
        headroom: int = 0,
        huge_pages: bool = False,
        need_wakeup: bool = True,
        frags: bool | None = None,
        rx_metadata: bool = False,
        tx_metadata: bool = False,
        program: str = "",
        xsks_map: str = "",
    ) -> None:
        frames, queue = operator.index(frames), operator.index(queue)
        if not 0 <= poll_timeout < 1e6:
            raise ConfigError(f"poll_timeout must be in [0, 1000000) seconds, got {poll_timeout}")
        if program and xsks_map:
            raise ConfigError("program and xsks_map exclude each other: name one")
        if frames < 1:
            raise ConfigError(f"frames must be at least 1, got {frames}")
        if umem is not None:
            ring_size = umem.handle.ring_size
        found = find_link(link)
        settings = SocketConfig(
            frags=frags,
            ring_size=ring_size,
            bind_mode=choose(BindMode, bind, "bind"),
            need_wakeup=need_wakeup,
            tx_budget=min(_TX_BUDGET, ring_size) if ring_size >= MIN_TX_SKB_BUDGET else 0,
        )
        attach_mode = choose(AttachMode, mode, "mode")
        self.link = link
        self.queue = queue
        self.block = block
        self.poll_timeout = poll_timeout
        self.rx_metadata = rx_metadata
        if not 0 <= queue < max(found.rx_queue_count, 1):
            raise ConfigError(
                f"queue must be in [0, {found.rx_queue_count}) of {link}, got {queue}"
            )
        with ExitStack() as undo:
            owns_umem = umem is None
            if umem is None:
                geometry = UmemConfig(
                    frame_count=max(4, 2 * frames), frame_size=frame_size, headroom=headroom,
                    huge_pages=huge_pages,
                )  # fmt: skip
                umem = Umem(geometry, ring_size, near=link, tx_metadata=tx_metadata)
                undo.callback(umem.close_unused)
            elif tx_metadata and not umem.tx_metadata:
                raise ConfigError("tx_metadata is the UMEM's; open its first socket with it")
            self.umem = umem
            settings = _with_frags(settings, umem, found)
            if settings.bind_mode is not BindMode.COPY and attach_mode is not AttachMode.SKB:
                features = xdp_features(found.ifindex)
                if features is None or features.zero_copy:
                    umem.config.check_zero_copy(link, found.driver, found.mtu)
            self._check_frames(min(frames, ring_size) if receive else 0, frame_size, headroom)
            self._program = None
            if not xsks_map:
                self._program = LinkProgram(found, attach_mode, program, rx_metadata=rx_metadata)
                undo.callback(self._program.close)
            self.notes = [] if self._program is None else list(self._program.notes)
            if found.has_carrier and not wait_for_carrier(link, _CARRIER_SECONDS, lambda: None):
                self.notes.append(f"{link}: no carrier since the program was attached")
            if self.attach_mode == "skb":
                settings = in_skb_mode(settings, link)
            self._bound = BoundSocket(umem, link, queue, settings, make_port=Channel)
            if not owns_umem:
                undo.callback(umem.close_unused)
            undo.callback(self._bound.close)
            self.channel: Channel = self._bound.port  # type: ignore[assignment]
            self._refused_by_driver = self._not_offloaded(found)
            if receive:
                if self.is_zero_copy:
                    self.notes += check_nic_ring(found, min(frames, ring_size))
                self._bound.lend(min(frames, ring_size))
                self._receive_on(xsks_map)
                undo.callback(self.stop_receiving)
            self._undo = undo.pop_all()
        self._ifindex = found.ifindex
        self._host: bpf.Program | None = None
        self.closed = False
        _open_sockets.add(self)

    def _check_frames(self, frames: int, frame_size: int, headroom: int) -> None:
        """Refuse a share of the UMEM that leaves none to send with, or another geometry."""
        config, free = self.umem.config, self.umem.pool.free_count
        if frames >= free:
            raise ConfigError(
                f"frames must be below {free}, what is left of the UMEM, or nothing can be sent, "
                f"got {frames}; open its first socket with more"
            )
        if (frame_size, headroom) not in ((2048, 0), (config.frame_size, config.headroom)):
            raise ConfigError(
                f"frame_size and headroom are the UMEM's, {config.frame_size} and "
                f"{config.headroom}, got {frame_size} and {headroom}"
            )

    def _not_offloaded(self, found: Link) -> dict[str, str]:
        """Return what cannot be asked for, with the reason; in copy mode the kernel does all."""
        if not self.is_zero_copy:
            return {}
        features = xdp_features(found.ifindex)
        have = frozenset() if features is None else features.tx_metadata
        driver = found.driver or "unknown"
        return {
            what: f"{self.link}: driver {driver} has no {what} for zero-copy sockets; open it "
            "with bind='copy'"
            for what in ("checksum", "timestamp")
            if what not in have
        }

    def _receive_on(self, xsks_map: str) -> None:
        fd = self._bound.handle.fd
        if self._program is not None:
            self._program.program.set_socket(self.queue, fd)
        else:
            bpf.set_pinned_socket(xsks_map, self.queue, fd)

    def stop_receiving(self) -> None:
        """Leave what arrives from now on to the host; what has arrived can still be read."""
        if self._program is not None:
            self._program.program.clear_socket(self.queue)

    def give_to_host(self, packets: Iterable[Packet]) -> int:
        """Let the host have copies of packets, as if they had just arrived on this link.

        Some 10 us each.  For native mode: in skb mode they would come back to the socket.

        Returns
        -------
        int
            How many the host took.  A driver may refuse, and 3520 bytes are the most.

        Raises
        ------
        UnsupportedError
            If the program is not native.
        """
        self._require_open()
        if self.attach_mode != "native":
            raise UnsupportedError(
                f"{self.link}: giving packets to the host needs native XDP, this is "
                f"{self.attach_mode}; they would come back here"
            )
        if self._host is None:
            self._host = bpf.Program("inject")
            self._undo.callback(self._host.close)
            self._host.load()
        return sum(self._host.pass_to_host(packet, self._ifindex) for packet in packets)

    # What was obtained

    @property
    def attach_mode(self) -> str:
        """``native``, ``skb``, ``offload``; ``pinned`` with ``xsks_map``."""
        return "pinned" if self._program is None else self._program.mode

    @property
    def is_zero_copy(self) -> bool:
        """What the kernel gave, whatever was asked for."""
        return self._bound.is_zero_copy

    def fileno(self) -> int:
        """Return the socket's fd, readable when packets are there; for select and epoll."""
        self._require_open()
        return self._bound.handle.fd

    def _require_open(self) -> None:
        if self.closed:
            raise ConfigError(f"the socket on {self.link} queue {self.queue} is closed")

    # Receive

    def _wait_to_read(self, timeout: float | None) -> bool:
        if timeout is None:
            timeout = -1.0 if self.block else self.poll_timeout
        return self.channel.wait(False, timeout)

    def read(self, timeout: float | None = None) -> bytes:
        """Return the next packet, copied.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most, in place of the socket's own manner.

        Raises
        ------
        BlockingIOError
            If none came in time.
        """
        while True:
            packet = self.channel.receive_one()
            if packet is not None:
                return packet
            if not self._wait_to_read(timeout):
                raise BlockingIOError(f"no packet on {self.link} queue {self.queue} in time")

    def read_into(self, buffer: Any, timeout: float | None = None) -> int:
        """Copy the next packet into a writable buffer; return its length.

        Raises
        ------
        ConfigError
            If it is longer than the buffer; the packet stays the next one.
        BlockingIOError
            If none came in time.
        """
        self._require_open()
        while True:
            length = self.channel.receive_into(buffer)
            if length >= 0:
                return length
            if not self._wait_to_read(timeout):
                raise BlockingIOError(f"no packet on {self.link} queue {self.queue} in time")

    def read_with_metadata(self, timeout: float | None = None) -> "tuple[bytes, np.void]":
        """Return the next packet, copied, and its record of ``Batch.metadata``.

        Raises
        ------
        ConfigError
            If the socket was opened without ``rx_metadata``.
        BlockingIOError
            If none came in time.
        """
        with self.read_batch(1, timeout=timeout) as batch:
            if not batch:
                raise BlockingIOError(f"no packet on {self.link} queue {self.queue} in time")
            return batch.tolist()[0], batch.metadata[0]

    def read_batch(
        self, most: int = _MAX_BATCH, *, copy: bool = False, timeout: float | None = None
    ) -> Batch:
        """Return up to ``most`` packets that are there; waits for the first.

        Parameters
        ----------
        copy : bool
            True: in memory of their own, which needs no release.

        Returns
        -------
        Batch
            Empty if none came in time.
        """
        self._require_open()
        if most < 1:
            raise ConfigError(f"a batch takes at least 1 packet, got {most}")
        if self.channel.max_fragments > 1:
            return self._read_whole(most, timeout)
        most = min(most, self.umem.config.frame_count)
        addrs, lengths = np.empty(most, np.uint64), np.empty(most, np.uint32)
        metadata, raw = self._metadata_of(most)
        while True:
            count = self.channel.receive(addrs, lengths, raw)
            if count or not self._wait_to_read(timeout):
                break
        if count < most:
            addrs, lengths = addrs[:count], lengths[:count]
            metadata = None if metadata is None else metadata[:count]
        batch = Batch(
            addrs, lengths, time.time_ns(), channel=self.channel,
            frame_size=self.umem.config.frame_size, metadata=metadata,
        )  # fmt: skip
        if not copy:
            return batch
        with batch:
            return batch.copy()

    def _read_whole(self, most: int, timeout: float | None) -> Batch:
        """``read_batch`` where a packet may take several frames: joined, in their own memory."""
        metadata, raw = self._metadata_of(most)
        while True:
            packets = self.channel.receive_bytes(most, raw)
            if packets or not self._wait_to_read(timeout):
                if metadata is not None:
                    metadata = metadata[: len(packets)]
                return Batch.of(packets, time.time_ns(), metadata)

    def _metadata_of(self, most: int) -> "tuple[NDArray[np.void], NDArray[np.uint8]] | _Nothing":
        """Make room for the metadata of ``most`` packets, if it is wanted: as records, and raw."""
        if not self.rx_metadata:
            return None, None
        records = np.empty(most, RX_METADATA)
        return records, records.view(np.uint8).reshape(most, RX_METADATA.itemsize)

    # Send

    def write(
        self,
        packet: Packet,
        timeout: float | None = None,
        *,
        checksum: tuple[int, int] | None = None,
        timestamp: bool = False,
    ) -> None:
        """Send one packet, copied.  ``checksum`` and ``timestamp`` as in ``write_batch``.

        Raises
        ------
        ConfigError
            If it is shorter than an Ethernet header or longer than a frame.
        BlockingIOError
            If there was no room for it in time.
        """
        is_plain = checksum is None and not timestamp
        if is_plain and self.channel.send_one(packet):
            return
        if not self.write_batch([packet], timeout=timeout, checksum=checksum, timestamp=timestamp):
            raise BlockingIOError(f"no room to send on {self.link} queue {self.queue}")

    def write_batch(
        self,
        packets: "Sequence[Packet] | NDArray[np.uint8] | Batch",
        lengths: "NDArray[np.uint32] | None" = None,
        *,
        timeout: float | None = None,
        checksum: "Checksum | None" = None,
        timestamp: bool = False,
    ) -> int:
        """Send packets, copied; return how many: all of them where the socket blocks.

        Parameters
        ----------
        packets : sequence of bytes, uint8 of shape (n, longest), or Batch
        lengths : uint32, shape (n,), optional
            With an array: bytes of each row that are sent; whole rows by default.
        checksum : (int, int), or uint16 of shape (n, 2), optional
            Have the NIC, or the kernel in copy mode, fill in the checksum of TCP or UDP: from which
            byte on to sum, and how far from there the result goes; for all packets, or for each.
            The field must hold the sum of the pseudo header, not inverted.
        timestamp : bool
            Have ``timestamps()`` tell when they were sent.

        Raises
        ------
        ConfigError
            If a packet is too short or too long, named by its index; those before it are sent.
        UnsupportedError
            If the driver has no such offload, in zero-copy.
        KernelError
            If the socket died.
        """
        self._require_open()
        request = self._request(checksum, timestamp, len(packets))
        if isinstance(packets, Batch):
            packets = packets.tolist()
        if isinstance(packets, np.ndarray):
            rows, sizes = _rows(packets, lengths)
            put_rows = partial(self.channel.send_rows, rows, sizes, request=request)
            return self._send(len(rows), put_rows, timeout)
        if lengths is not None:
            raise ConfigError("lengths are for an array of packets; a list has its own")
        listed = packets if type(packets) is list else [packets[i] for i in range(len(packets))]
        put = partial(self.channel.send_bytes, listed, request=request)
        return self._send(len(listed), put, timeout)

    def _request(
        self, checksum: "Checksum | None", timestamp: bool, count: int
    ) -> TxRequest | None:
        """Return what is to be asked for ``count`` packets; None if it is nothing."""
        wanted = [("checksum", checksum is not None), ("timestamp", timestamp)]
        for what in (name for name, is_wanted in wanted if is_wanted):
            if not self.umem.tx_metadata:
                raise ConfigError(f"{what} needs a socket opened with tx_metadata=True")
            if what in self._refused_by_driver:
                raise UnsupportedError(self._refused_by_driver[what])
        if checksum is None:
            return TxRequest(None, True) if timestamp else None
        return TxRequest(_checksum_rows(checksum, count), timestamp)

    @property
    def packets_written(self) -> int:
        """Packets written so far: the number that the next one has in ``timestamps()``."""
        return self.channel.tx_packets

    def timestamps(self) -> "NDArray[np.void]":
        """Take what is known by now of when packets were sent, of those written with ``timestamp``.

        A structured array, ``records.TX_TIMESTAMP``: ``packet``, its number as
        ``packets_written`` told before it was written, and ``timestamp_ns``.  In zero-copy by the
        NIC's clock; in copy mode when the driver was done with it, by CLOCK_TAI; 0 if unknown.
        Each is told once, and the newest 65,536 are kept.
        """
        self._require_open()
        return np.array(self.channel.take_timestamps(), TX_TIMESTAMP)

    def send_frames(
        self,
        addrs: "NDArray[np.uint64]",
        lengths: "NDArray[np.uint32]",
        *,
        checksum: "Checksum | None" = None,
        timestamp: bool = False,
    ) -> int:
        """Send frames of this UMEM that are yours; see ``Batch.send_on``.

        Release their batch then, which gives back only what was not sent.

        Raises
        ------
        ConfigError
            If a frame is not yours, or a length does not fit it; those before it are sent.
        """
        self._require_open()
        request = self._request(checksum, timestamp, len(addrs))
        put = partial(self.channel.send_frames, addrs, lengths, request=request)
        return self._send(len(addrs), put, None)

    def _send(self, count: int, put: Callable[[int], int], timeout: float | None) -> int:
        """Put packets until all are taken, or time is up."""
        done = put(0)
        if done == count:
            return done
        if timeout is None:
            timeout = float("inf") if self.block else self.poll_timeout
        deadline = time.monotonic() + timeout
        while True:
            now = time.monotonic()
            if now >= deadline:
                return done
            # Frames come back with completions, of which poll knows nothing.
            self.channel.wait(True, 0.0)
            if not self.channel.free_frames:
                self.channel.flush()
                if not self.channel.free_frames:
                    time.sleep(min(_RETRY_SECONDS, deadline - now) / 50)
            done += put(done)
            if done == count:
                return done

    def flush(self, timeout: float = _DRAIN_SECONDS) -> bool:
        """Wait until the kernel has sent everything; False after ``timeout`` seconds."""
        self._require_open()
        deadline = time.monotonic() + timeout
        while self.channel.flush():
            if time.monotonic() > deadline:
                return False
            time.sleep(50e-6)
        return True

    # asyncio

    async def _until(self, *, readable: bool) -> None:
        """Wait for the fd, or for the time to look whether the socket is still alive."""
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        fd = self.fileno()
        add, remove = (
            (loop.add_reader, loop.remove_reader)
            if readable
            else (loop.add_writer, loop.remove_writer)
        )

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        add(fd, wake)
        try:
            await asyncio.wait((ready,), timeout=WATCH_SECONDS)
        finally:
            remove(fd)

    async def read_batch_async(self, most: int = _MAX_BATCH, *, copy: bool = False) -> Batch:
        """As ``read_batch``, and the event loop runs while it waits."""
        while True:
            batch = self.read_batch(most, copy=copy, timeout=0)
            if len(batch):
                return batch
            batch.release()
            await self._until(readable=True)

    async def write_batch_async(
        self,
        packets: Any,
        lengths: Any = None,
        *,
        checksum: "Checksum | None" = None,
        timestamp: bool = False,
    ) -> int:
        """As ``write_batch``, all of it, and the event loop runs while there is no room."""
        if isinstance(packets, Batch):
            packets = packets.tolist()
        done = 0
        while True:
            rest = None if lengths is None else lengths[done:]
            done += self.write_batch(
                packets[done:], rest, timeout=0, checksum=_part(checksum, done, None),
                timestamp=timestamp,
            )  # fmt: skip
            if done == len(packets):
                return done
            await asyncio.sleep(_RETRY_SECONDS / 50)

    async def __aiter__(self) -> AsyncIterator[Batch]:
        """Yield batches for ever; each is released when the next one is asked for."""
        while not self.closed:
            batch = await self.read_batch_async()
            yield batch
            batch.release()

    # The end

    def stats(self) -> SocketStats:
        """Read all counters."""
        self._require_open()
        counters = self.channel.counters()
        kernel = self._bound.statistics()
        own = {key: value for key, value in counters.items() if key.endswith("_drops")}
        own |= self._bound.kernel_drops(kernel)
        drops = {key: value for key, value in own.items() if value}
        frames = {"pool": self.umem.pool.free_count, **self.channel.frames()}
        frames["user"] = self.umem.pool.user_count
        frames["lost"] = self.umem.pool.lost_count
        return SocketStats(
            link=self.link,
            queue=self.queue,
            kernel=kernel,
            drops=drops,
            frames=frames,
            **{name: counters[name] for name in _COUNTERS},
        )

    def hand_over(self) -> None:
        """Let another thread be the next to use this socket and all others of its UMEM."""
        self.channel.hand_over()

    def close(self) -> None:
        """Stop receiving, let what was written leave, detach, close; twice is fine."""
        if self.closed:
            return
        self.closed = True
        deadline = time.monotonic() + _DRAIN_SECONDS
        try:
            while self.channel.sent_out and self.channel.flush() and time.monotonic() < deadline:
                time.sleep(50e-6)
        except (ConfigError, KernelError):
            pass  # another thread's, or its link is gone: what is out is lost with it
        self._undo.close()

    def _forget(self) -> None:
        """In a forked child: close its copies of the descriptors, and touch nothing shared."""
        self.closed = True
        self._undo.pop_all()
        self.channel.close()
        self._bound.handle.close()
        self.umem.close_unused()

    def __del__(self) -> None:
        if not self.closed:
            warnings.warn(f"{self.link} queue {self.queue} was not closed", ResourceWarning, 1)
            self.close()

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _forget_sockets() -> None:
    """Leave all sockets to the parent: one process drives them, and ends them when it ends."""
    for each in list(_open_sockets):
        each._forget()
    forget_programs()


os.register_at_fork(after_in_child=_forget_sockets)


class MultiQueueSocket:
    """Sockets on queues of a link, as one object.  A context manager.

    Parameters
    ----------
    link : str
    queues : int or sequence of int
        Queues 0 to ``queues - 1``, or these; all that the link has if not given.
    threads : bool
        False: one UMEM, one thread for all.  True: a UMEM for each queue, so that each of
        ``sockets`` may have a thread of its own.
    **options
        Of ``XdpSocket``, for each; ``frames`` is per queue.

    Attributes
    ----------
    sockets : tuple of XdpSocket
        One for each queue, in their order.

    Examples
    --------
    >>> with MultiQueueSocket("veth0") as left, MultiQueueSocket("veth1", [1]) as right:
    ...     right.write_batch([bytes(60)])
    ...     left.read_batch(timeout=5).length.tolist()
    ...     [(each.queue, each.rx_packets) for each in left.stats()]
    1
    [60]
    [(-1, 1), (0, 0), (1, 1)]
    """

    def __init__(
        self,
        link: str,
        queues: int | Sequence[int] | None = None,
        *,
        threads: bool = False,
        **options: Any,
    ) -> None:
        count = max(find_link(link).rx_queue_count, 1)
        if queues is None:
            queues = count
        if isinstance(queues, int):
            if not 1 <= queues <= count:
                raise ConfigError(f"queues must be in [1, {count}] of {link}, got {queues}")
            queues = range(queues)
        if not queues:
            raise ConfigError(f"queues of {link} must be one or more, got none")
        self.threads = threads
        self._next = 0
        with ExitStack() as undo:
            umem = None if threads else _umem_for(link, len(queues), options)
            if umem is not None:
                undo.callback(umem.close)
            opened = []
            for queue in queues:
                socket = XdpSocket(link, queue, umem=umem, **options)
                undo.callback(socket.close)
                opened.append(socket)
            self.sockets = tuple(opened)
            self._undo = undo.pop_all()

    def read_batches(self, most: int = _MAX_BATCH, timeout: float | None = None) -> list[Batch]:
        """Return up to ``most`` packets of each queue that has some; waits for the first.

        Empty if none came in time: the poll timeout, once, whatever the number of queues.
        """
        deadline = None
        while True:
            found = []
            for socket in self.sockets:
                batch = socket.read_batch(most, timeout=0)
                if len(batch):
                    found.append(batch)
            first = self.sockets[0]
            if timeout is None:
                timeout = -1.0 if first.block else first.poll_timeout
            now = time.monotonic()
            deadline = now + timeout if deadline is None else deadline
            if found or (timeout >= 0 and now >= deadline):
                return found
            self._wait(WATCH_SECONDS if timeout < 0 else min(WATCH_SECONDS, deadline - now))

    def _wait(self, seconds: float) -> None:
        poll = select.poll()
        for socket in self.sockets:
            poll.register(socket.fileno(), select.POLLIN)
        poll.poll(max(seconds * 1e3, 0.1))

    def read_batch(self, most: int = _MAX_BATCH, timeout: float | None = None) -> Batch:
        """Return packets of all queues in one batch, copied; see ``read_batches`` for none."""
        batches = self.read_batches(most, timeout)
        with ExitStack() as undo:
            for batch in batches:
                undo.callback(batch.release)
            return Batch.joined(batches, time.time_ns())

    def write_batch(
        self,
        packets: "Sequence[Packet] | NDArray[np.uint8] | Batch",
        lengths: "NDArray[np.uint32] | None" = None,
        *,
        timeout: float | None = None,
        checksum: "Checksum | None" = None,
        timestamp: bool = False,
    ) -> int:
        """Send packets, spread over the queues; return how many were sent, the first ones.

        The queues take turns of a share each, and keep their order within a share.  See
        ``XdpSocket.write_batch``.
        """
        if isinstance(packets, Batch):
            packets = packets.tolist()
        share = -(-len(packets) // len(self.sockets))
        done = 0
        while done < len(packets):
            socket = self.sockets[self._next]
            self._next = (self._next + 1) % len(self.sockets)
            part = packets[done : done + share]
            sizes = None if lengths is None else lengths[done : done + share]
            sent = socket.write_batch(
                part, sizes, timeout=timeout, checksum=_part(checksum, done, done + share),
                timestamp=timestamp,
            )  # fmt: skip
            done += sent
            if sent < len(part):
                break
        return done

    def stats(self) -> list[SocketStats]:
        """Return the total first, then each queue's."""
        each = [socket.stats() for socket in self.sockets]
        whole = total(each)
        if not self.threads:
            whole.frames.update({place: each[0].frames[place] for place in _PLACES_OF_UMEM})
        return [whole, *each]

    def close(self) -> None:
        """Close all of them."""
        self._undo.close()

    def __enter__(self) -> "MultiQueueSocket":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _with_frags(settings: SocketConfig, umem: Umem, link: Link) -> SocketConfig:
    """Decide whether packets may take several frames; a UMEM's first socket does it for all.

    Raises
    ------
    ConfigError
        If they must, and may not.
    """
    frags = umem.frags
    if frags is None:
        frags = settings.frags
    if frags is None:
        frags = link.mtu > ETHERNET_MTU and umem.config.fragments(link.mtu) > 1
    most = min(COPY_MODE_FRAGMENTS, settings.ring_size, umem.config.frame_count // 2)
    umem.config.check_mtu(link.ifname, link.mtu, most if frags else 1)
    return replace(settings, frags=frags)


def _umem_for(link: str, queues: int, options: dict[str, Any]) -> Umem:
    """Make the UMEM that the sockets of ``queues`` queues share."""
    ring_size = SocketConfig(ring_size=options.get("ring_size", DEFAULT_RING_SIZE)).ring_size
    geometry = UmemConfig(
        frame_count=max(4, 2 * queues * options.get("frames", DEFAULT_FRAMES)),
        frame_size=options.pop("frame_size", 2048),
        headroom=options.pop("headroom", 0),
        huge_pages=options.pop("huge_pages", False),
    )
    return Umem(geometry, ring_size, near=link, tx_metadata=options.get("tx_metadata", False))


_PLACES_OF_UMEM: Final = ("pool", "user", "lost")
_COUNTERS: Final = (
    "rx_packets", "rx_bytes", "tx_packets", "tx_completed", "tx_bytes", "rx_wakeups", "tx_wakeups",
)  # fmt: skip


def _rows(
    packets: "NDArray[np.uint8]", lengths: "NDArray[np.uint32] | None"
) -> "tuple[NDArray[np.uint8], NDArray[np.uint32]]":
    if packets.dtype != np.uint8 or packets.ndim != 2:
        raise ConfigError(
            f"packets must be uint8 of shape (n, longest), got {packets.dtype} of {packets.shape}"
        )
    if lengths is None:
        lengths = np.full(len(packets), packets.shape[1], np.uint32)
    sizes = np.asarray(lengths)
    if sizes.shape != (len(packets),):
        raise ConfigError(f"lengths must have shape ({len(packets)},), got {sizes.shape}")
    if sizes.dtype.kind not in "iu":
        raise ConfigError(f"lengths must be integers, got {sizes.dtype}")
    # As uint32 what is out of range could become a length.
    return packets, sizes.clip(0, 0xFFFFFFFF).astype(np.uint32)


def _checksum_rows(checksum: "Checksum", count: int) -> "NDArray[np.uint16]":
    """Return (start, offset) as the rows of an array: one, or ``count``."""
    given = np.asarray(checksum)
    if given.dtype.kind not in "iu" or given.shape not in ((2,), (count, 2)):
        raise ConfigError(
            f"checksum must be two integers, start and offset, or of shape ({count}, 2), got "
            f"{given.dtype} of {given.shape}"
        )
    if given.size and not 0 <= given.min() <= given.max() <= _MAX_CHECKSUM_BYTE:
        raise ConfigError(f"checksum: start and offset must be in [0, {_MAX_CHECKSUM_BYTE}]")
    return np.ascontiguousarray(given.reshape(-1, 2), np.uint16)


def _part(checksum: "Checksum | None", first: int, last: int | None) -> "Checksum | None":
    """Return what is for packets ``first`` to ``last`` alone."""
    if checksum is None or np.ndim(checksum) < 2:
        return checksum
    return np.asarray(checksum)[first:last]


def total(stats: Iterable[SocketStats]) -> SocketStats:
    """Add up the counters of several sockets."""
    listed = list(stats)

    def added(name: str) -> dict[str, int]:
        sums: dict[str, int] = {}
        for each in listed:
            for key, value in getattr(each, name).items():
                sums[key] = sums.get(key, 0) + value
        return sums

    return SocketStats(
        link=listed[0].link,
        queue=-1,
        kernel=added("kernel"),
        drops=added("drops"),
        frames=added("frames"),
        **{name: sum(getattr(each, name) for each in listed) for name in _COUNTERS},
    )
