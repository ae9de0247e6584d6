"""AF_XDP sockets: a UMEM, and sockets bound to (link, queue) that share it."""

import contextlib
import errno
import os
import resource
import socket
import struct
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from l2fwd._bpf import SocketHandle, UmemHandle
from l2fwd._rings import Memory, Pool, Port
from l2fwd.abi import (
    COPY_MODE_FRAGMENTS,
    SOL_XDP,
    STATISTICS_FIELDS,
    TX_METADATA_BYTES,
    XDP_COPY,
    XDP_MAX_TX_SKB_BUDGET,
    XDP_OPTIONS,
    XDP_OPTIONS_ZEROCOPY,
    XDP_STATISTICS,
    XDP_UMEM_UNALIGNED_CHUNK_FLAG,
    XDP_USE_NEED_WAKEUP,
    XDP_USE_SG,
    XDP_ZEROCOPY,
)
from l2fwd.busy_poll import prefer_busy_poll
from l2fwd.config import BindMode, SocketConfig, UmemConfig
from l2fwd.errors import ConfigError, KernelError, UnsupportedError
from l2fwd.ethtool import rx_ring_size
from l2fwd.link import Link
from l2fwd.netdev import xdp_features
from l2fwd.nics import NEEDS_A_FULL_RING
from l2fwd.numa import node_of
from l2fwd.stats import add, kernel_drops
from l2fwd.tx_socket import TxSocket

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The kernel lets go of a closed socket's queue from a work item (xdp_put_umem): measured
# 17 to 76 ms, so a queue that is busy for longer has another owner.
BIND_RETRY_SECONDS: Final = 1.5
_BIND_RETRY_INTERVAL: Final = 0.01
_ARM_SECONDS: Final = 0.1
_BIND_FLAGS: Final = {
    BindMode.AUTO: 0,
    BindMode.COPY: XDP_COPY,
    BindMode.ZERO_COPY: XDP_ZEROCOPY,
}

_NO_FRAGS: Final = {  # with XDP_USE_SG, xp_assign_dev and xsk_bind
    errno.EOPNOTSUPP: "the driver has no zero-copy, or none for packets in several frames; use "
    "--bind copy, or lower the MTU, or use --frame-size 4096",
    errno.EINVAL: "the queue does not exist, or this kernel is older than Linux 6.6 and knows "
    "packets of one frame only; lower the MTU, or use --frame-size 4096",
}


class Umem:
    """Packet memory registered with the kernel, and the pool of its free frames.

    Parameters
    ----------
    config : UmemConfig
    ring_size : int
        Slots of the fill and completion ring of every socket made on this UMEM.
    near : str
        Link whose NUMA node the memory is taken from; empty: from any.
    tx_metadata : bool
        Keep 32 bytes before each packet sent, so that its sender can ask for a checksum or a
        timestamp.

    Attributes
    ----------
    pool : Pool

    Raises
    ------
    KernelError
        EPERM, EAFNOSUPPORT (no AF_XDP here), ENOBUFS (RLIMIT_MEMLOCK), ENOMEM.
    UnsupportedError
        If the kernel has no ``tx_metadata``.

    Notes
    -----
    ``close`` unregisters; the memory itself lives as long as a view of ``frames`` does.

    Examples
    --------
    >>> umem = Umem(UmemConfig(frame_count=256), ring_size=64)
    >>> umem.frames.shape, umem.pool.free_count
    ((256, 2048), 256)
    >>> umem.close()
    """

    def __init__(
        self, config: UmemConfig, ring_size: int, *, near: str = "", tx_metadata: bool = False
    ) -> None:
        if tx_metadata and config.unaligned:
            raise ConfigError("tx_metadata needs frames of 2048 or 4096 bytes, not unaligned ones")
        self.config = config
        room = TX_METADATA_BYTES if tx_metadata else 0
        memory = Memory(
            config.frame_count,
            config.frame_size,
            huge=config.huge_pages,
            node=node_of(near) if near else None,
        )
        self.pool = Pool(memory, unaligned=config.unaligned, tx_room=room)
        self.frags: bool | None = None  # as its first socket was bound
        _raise_memlock_limit()
        try:
            flags = XDP_UMEM_UNALIGNED_CHUNK_FLAG if config.unaligned else 0
            self.handle = UmemHandle(memory, ring_size, config.headroom, flags, room)
        except KernelError as error:
            if error.errno == errno.EINVAL and error.target == "with TX metadata":
                raise UnsupportedError(
                    "tx_metadata needs Linux 6.11, or a stable kernel since 6.8; leave it out"
                ) from None
            if error.errno != errno.ENOBUFS:  # xdp_umem_account_pages
                raise
            limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
            raise KernelError(
                errno.ENOBUFS,
                error.operation,
                error.target,
                f"it needs {config.size} bytes of locked memory, RLIMIT_MEMLOCK is {limit}: raise "
                "it (ulimit -l), grant CAP_IPC_LOCK, or lower --frames",
            ) from None

    @property
    def tx_metadata(self) -> bool:
        return self.pool.tx_room > 0

    @property
    def frames(self) -> "NDArray[np.uint8]":
        """The packet memory: uint8, shape (frame_count, frame_size), C-contiguous."""
        import numpy as np

        return np.asarray(self.pool.memory)

    def close(self) -> None:
        """Unregister from the kernel.  Close the sockets first."""
        self.handle.close()

    def close_unused(self) -> None:
        """As ``close``, once the last socket was closed: none can be bound again."""
        if self.handle.socket_count == 0:
            self.close()


class BoundSocket:
    """An AF_XDP socket on one (link, queue).

    Parameters
    ----------
    umem : Umem
    ifname : str
    queue_id : int
    config : SocketConfig
        The first socket of a UMEM decides bind mode and need_wakeup for all of them.
    bind_timeout : float
        Seconds to wait for a queue that is busy.
    make_port : type
        ``Port``, or a kind of it.
    split : bool
        In copy mode send from a socket of its own (``TxSocket``), which is faster under load.

    Attributes
    ----------
    port : Port
        Its rings, for a ``Worker``.

    Raises
    ------
    KernelError
        EBUSY (another owner), EOPNOTSUPP (no zero-copy), EINVAL (no such queue), ENODEV.
    ConfigError
        If all earlier sockets of the UMEM were closed: a UMEM cannot be bound again.
    """

    def __init__(
        self,
        umem: Umem,
        ifname: str,
        queue_id: int,
        config: SocketConfig,
        *,
        bind_timeout: float = BIND_RETRY_SECONDS,
        make_port: type[Port] = Port,
        split: bool = False,
    ) -> None:
        self.ifname = ifname
        self.queue_id = queue_id
        frags = bool(config.frags) if umem.frags is None else umem.frags
        self.config = replace(config, frags=frags)
        flags = _BIND_FLAGS[config.bind_mode]
        if config.need_wakeup:
            flags |= XDP_USE_NEED_WAKEUP
        if frags:
            flags |= XDP_USE_SG
        self.handle = _bind(umem.handle, ifname, queue_id, flags, bind_timeout)
        umem.frags = frags
        self.sender: TxSocket | None = None
        with contextlib.ExitStack() as undo:
            undo.callback(self._close)
            os.set_inheritable(self.handle.fd, False)  # a child must not keep the queue bound
            # Preferred busy polling works on the NIC in the calls of one socket.
            if split and not self.is_zero_copy and not config.busy_poll_budget:
                self.sender = TxSocket(ifname, queue_id, self.handle.fd, config.ring_size)
            self.tx_budget = self._set_tx_budget(config.tx_budget)
            self.port = self._make_port(umem, make_port)
            self.prefer_busy_poll(config.busy_poll_budget)
            undo.pop_all()

    def _make_port(self, umem: Umem, make_port: type[Port]) -> Port:
        rings = self.handle.rings()
        if self.sender:
            rings["tx"] = self.sender.ring
        return make_port(
            umem.pool,
            rings,
            self.handle.fd,
            f"{self.ifname} queue {self.queue_id}",
            owner=(self.handle, self.sender),
            max_fragments=self._max_fragments() if self.config.frags else 1,
            tx_fd=self.sender.fd if self.sender else -1,
        )

    @property
    def _sending(self) -> "SocketHandle | TxSocket":
        return self.sender or self.handle

    def prefer_busy_poll(self, budget: int) -> None:
        """Let the NIC work in our system calls only; 0: by its interrupts again."""
        if budget or self.port.is_polled:
            prefer_busy_poll(self.handle.set_option, budget)
        self.port.is_polled = bool(budget)

    def lend(self, count: int) -> None:
        """Keep ``count`` frames lent for RX from now on, and see that the NIC has some.

        A zero-copy driver looks for frames when the socket is bound, finds none yet, and waits to
        be woken: what comes before that is lost.
        """
        self.port.refill(count)
        deadline = time.monotonic() + _ARM_SECONDS
        while self.is_zero_copy and time.monotonic() < deadline:
            self.port.wake_rx()
            if self.port.frames()["fill"] < count:
                return
            time.sleep(_BIND_RETRY_INTERVAL / 10)

    def _max_fragments(self) -> int:
        """Return how many frames of a packet the kernel sends (``xskq_cons_read_desc_batch``)."""
        if not self.is_zero_copy:
            return COPY_MODE_FRAGMENTS
        features = xdp_features(socket.if_nametoindex(self.ifname))
        return 1 if features is None else features.zc_max_segs

    def _set_tx_budget(self, budget: int) -> int:
        """Ask for ``budget`` descriptors per sendto; return what is in force, 0 if unknown."""
        if not budget:
            return 0
        try:
            self._sending.set_option(SOL_XDP, XDP_MAX_TX_SKB_BUDGET, budget)
        except KernelError:  # ENOPROTOOPT before the option existed: the kernel's own stays
            return 0
        return budget

    @property
    def is_zero_copy(self) -> bool:
        """What the kernel really gave (XDP_OPTIONS), whatever was asked for."""
        raw = self.handle.get_option(SOL_XDP, XDP_OPTIONS, 4)
        return bool(struct.unpack("=I", raw)[0] & XDP_OPTIONS_ZEROCOPY)

    def statistics(self) -> dict[str, int]:
        """Return the kernel's counters of this socket; old kernels know only three."""
        found = _statistics(self.handle)
        if self.sender:
            # Not all: both tell what their common fill ring lacked.
            sent = _statistics(self.sender)
            add(found, {name: sent[name] for name in sent if name.startswith("tx_")})
        return found

    def kernel_drops(self, statistics: dict[str, int] | None = None) -> dict[str, int]:
        """Return what the kernel dropped of this socket's packets, by disjoint reasons."""
        return kernel_drops(
            self.statistics() if statistics is None else statistics,
            is_zero_copy=self.is_zero_copy,
            frags=bool(self.config.frags),
        )

    def close(self) -> None:
        """Unmap the rings and close.

        Frames that were lent stay lost to the pool (``Port.close``).

        Raises
        ------
        ConfigError
            While a worker runs on the port.
        """
        self.port.close()
        self._close()

    def _close(self) -> None:
        with contextlib.ExitStack() as undo:
            undo.callback(self.handle.close)
            if self.sender:
                undo.callback(self.sender.close)


def _statistics(owner: "SocketHandle | TxSocket") -> dict[str, int]:
    raw = owner.get_option(SOL_XDP, XDP_STATISTICS, 8 * len(STATISTICS_FIELDS))
    values = struct.unpack(f"={len(raw) // 8}Q", raw)
    return dict(zip(STATISTICS_FIELDS, values, strict=False))


def check_nic_ring(link: Link, lent: int) -> list[str]:
    """Tell what is wrong with lending ``lent`` frames to a NIC in zero-copy mode, if anything.

    They fill the NIC's own ring before any are left over on the fill ring; with too few the driver
    asks for more by every system call there is.

    Raises
    ------
    ConfigError
        If the driver would deliver wrong packets.
    """
    slots = rx_ring_size(link.ifname)
    if slots <= lent:
        return []
    remedy = f"use --ring-size {1 << (2 * slots - 1).bit_length()} or more"
    if link.driver in NEEDS_A_FULL_RING:
        raise ConfigError(
            f"{link.ifname}: {lent} frames are too few for the {slots} slots of the NIC's RX ring, "
            f"{link.driver} would deliver packets twice; {remedy}, or --bind copy"
        )
    return [f"{link.ifname}: {lent} frames for the {slots} slots of the NIC's RX ring; {remedy}"]


def in_skb_mode(wanted: SocketConfig, ifname: str) -> SocketConfig:
    """Return the settings for a link whose program runs in skb mode: copy mode.

    The kernel would grant zero-copy, and the driver, having no program, not send.

    Raises
    ------
    UnsupportedError
        If zero-copy is asked for.
    """
    if wanted.bind_mode is BindMode.ZERO_COPY:
        raise UnsupportedError(
            f"{ifname}: zero-copy needs a native program, skb mode was obtained; "
            "use --mode native to see why, or --bind copy"
        )
    return replace(wanted, bind_mode=BindMode.COPY)


def _bind(umem: UmemHandle, ifname: str, queue_id: int, flags: int, timeout: float) -> SocketHandle:
    """Bind, waiting for a queue whose last owner has only just gone."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return SocketHandle(umem, ifname, queue_id, flags)
        except KernelError as error:
            number = error.errno or 0
            if flags & XDP_USE_SG and number in _NO_FRAGS:
                remedy = _NO_FRAGS[number]
                raise KernelError(number, error.operation, error.target, remedy) from None
            if number != errno.EBUSY or time.monotonic() > deadline:
                raise
        time.sleep(_BIND_RETRY_INTERVAL)


def _raise_memlock_limit() -> None:
    """Use all of RLIMIT_MEMLOCK that is ours to use; more than that may be refused."""
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
