"""A TX ring on a socket of its own, for a queue that another socket has bound in copy mode.

The kernel counts packets that a socket could not take right beside what it needs to send from
it (``struct xdp_sock``: ``rx_dropped`` behind ``tx``).  Under overload the CPU that receives and
the CPU that sends would fight for that cache line at every packet.  libxdp can add a socket to
the queue of a UMEM's first socket only, so this one is made by hand.
"""

import ctypes
import mmap
import os
import socket
import struct
from contextlib import ExitStack
from typing import Final

from l2fwd._rings import RingMemory
from l2fwd.abi import (
    AF_XDP,
    SOL_XDP,
    XDP_MMAP_OFFSETS,
    XDP_PGOFF_TX_RING,
    XDP_SHARED_UMEM,
    XDP_TX_RING,
)
from l2fwd.errors import kernel_error

_DESC_BYTES: Final = 16  # struct xdp_desc
_OFFSETS: Final = struct.Struct("=16Q")  # struct xdp_mmap_offsets: rx, tx, fr, cr of four each
_TX_OFFSETS: Final = slice(4, 8)  # producer, consumer, desc, flags
_ADDRESS: Final = struct.Struct("=HHIII")  # struct sockaddr_xdp
_libc: Final = ctypes.CDLL(None, use_errno=True)


class TxSocket:
    """Sends from the UMEM, and completes into the ring, of the socket ``shared_fd``.

    Parameters
    ----------
    ifname : str
    queue_id : int
    shared_fd : int
        A socket bound to the same link and queue.
    ring_size : int
        Slots, a power of two.

    Attributes
    ----------
    fd : int
    ring : RingMemory

    Raises
    ------
    KernelError
    """

    def __init__(self, ifname: str, queue_id: int, shared_fd: int, ring_size: int) -> None:
        with ExitStack() as undo:
            self._socket = undo.enter_context(socket.socket(AF_XDP, socket.SOCK_RAW))
            self.fd = self._socket.fileno()
            try:
                self._socket.setsockopt(SOL_XDP, XDP_TX_RING, ring_size)
                self._memory = self._map(ring_size)
                undo.callback(self._memory.close)
                self.ring = self._ring(ring_size)
                self._bind(socket.if_nametoindex(ifname), queue_id, shared_fd)
            except OSError as error:
                place = f"{ifname} queue {queue_id} for sending"
                raise kernel_error(error.errno or 0, "bind", place) from None
            self._undo = undo.pop_all()

    def _map(self, ring_size: int) -> mmap.mmap:
        self._offsets = self._offsets_of_tx()
        size = self._offsets[2] + ring_size * _DESC_BYTES
        return mmap.mmap(self.fd, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE,
                         offset=XDP_PGOFF_TX_RING)  # fmt: skip

    def _offsets_of_tx(self) -> tuple[int, ...]:
        raw = self._socket.getsockopt(SOL_XDP, XDP_MMAP_OFFSETS, _OFFSETS.size)
        return _OFFSETS.unpack(raw)[_TX_OFFSETS]

    def _ring(self, ring_size: int) -> RingMemory:
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        producer, consumer, slots, flags = (start + offset for offset in self._offsets)
        return RingMemory(producer, consumer, flags, slots, ring_size)

    def _bind(self, ifindex: int, queue_id: int, shared_fd: int) -> None:
        """Python's own bind does not know the family."""
        address = _ADDRESS.pack(AF_XDP, XDP_SHARED_UMEM, ifindex, queue_id, shared_fd)
        if _libc.bind(self.fd, address, len(address)) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def set_option(self, level: int, name: int, value: int) -> None:
        try:
            self._socket.setsockopt(level, name, value)
        except OSError as error:
            target = f"AF_XDP socket ({level}, {name})"
            raise kernel_error(error.errno or 0, "set option of", target) from None

    def get_option(self, level: int, name: int, size: int) -> bytes:
        return self._socket.getsockopt(level, name, size)

    def close(self) -> None:
        """Unmap the ring and close.  Nothing may use the ring any more."""
        self._undo.close()
