"""A TX ring on a socket of its own, for a queue that another socket has bound in copy mode.

The kernel counts packets that a socket could not take right beside what it needs to send from
it (``struct xdp_sock``: ``rx_dropped`` behind ``tx``).  Under overload the CPU that receives and
the CPU that sends would fight for that cache line at every packet.  libxdp can add a socket to
the queue of a UMEM's first socket only, so this one is made by hand.
"""

import ctypes
import errno
import mmap
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
        place = f"{ifname} queue {queue_id} for sending"
        with ExitStack() as undo:
            with _named("create AF_XDP socket", place):
                self._socket = undo.enter_context(socket.socket(AF_XDP, socket.SOCK_RAW))
            self.fd = self._socket.fileno()
            with _named("make TX ring of", place):
                self._socket.setsockopt(SOL_XDP, XDP_TX_RING, ring_size)
                self._memory = self._map(ring_size)
                undo.callback(self._memory.close)
                self.ring = self._ring(ring_size)
            with _named("bind", place):
                self._bind(ifname, queue_id, shared_fd)
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

    def _bind(self, ifname: str, queue_id: int, shared_fd: int) -> None:
        """Python's own bind does not know the family."""
        try:
            ifindex = socket.if_nametoindex(ifname)
        except OSError:  # without an errno
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV)) from None
        address = _ADDRESS.pack(AF_XDP, XDP_SHARED_UMEM, ifindex, queue_id, shared_fd)
        if _libc.bind(self.fd, address, len(address)) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def set_option(self, level: int, name: int, value: int) -> None:
        with _named("set option of", f"AF_XDP socket ({level}, {name})"):
            self._socket.setsockopt(level, name, value)

    def get_option(self, level: int, name: int, size: int) -> bytes:
        with _named("read option of", f"AF_XDP socket ({level}, {name})"):
            return self._socket.getsockopt(level, name, size)

    def close(self) -> None:
        """Unmap the ring and close.  Nothing may use the ring any more."""
        self._undo.close()


@contextmanager
def _named(operation: str, target: str) -> Iterator[None]:
    """Say of a failing system call what was attempted."""
    try:
        yield
    except OSError as error:
        raise kernel_error(error.errno or 0, operation, target) from None
