"""The life of a packet: received on one port, sent on the other, its frame recycled.

``forward_burst`` is the whole data path; ``run_worker`` calls it both ways until it is
stopped, sleeping while there is nothing to do.  No Python, no allocation, no lock, and at
most one system call per batch in here.
"""

from libc.errno cimport EAGAIN, EBUSY, EINTR, ENETDOWN, ENOBUFS, ENOMEM
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from l2fwd._rings cimport (
    PLACE_LOST, PLACE_RX, PLACE_TX, PLACE_USER, ConsumerRing, FramePool, Port, PortState,
    ProducerRing, frame_move, pool_give, reclaim, refill, ring_needs_wakeup, ring_peek,
    ring_pending, ring_release, ring_reserve, ring_submit, rx_slot, tx_slot,
)
from l2fwd._xdp cimport (
    POLLIN, RELAXED, SO_ERROR, SOL_SOCKET, atomic_load, atomic_store, getsockopt, poll, pollfd,
    unlikely, xdp_desc,
)

from l2fwd.errors import ConfigError, kernel_error

cdef enum:
    ETHERNET_HEADER_BYTES = 14
    IDLE_MS = 100                   # bound of one sleep; a stop request waits no longer
    UNSETTLED_MS = 5                # the same while packets wait to be sent or completed
    MAX_USELESS_KICKS = 4           # sendto calls of one turn that moved nothing
    MAX_DRAIN_SLEEPS = 40           # of UNSETTLED_MS: how long a stopping worker waits


cdef inline bint packet_is_usable(const FramePool* pool, const xdp_desc* desc) noexcept nogil:
    """Tell whether all of ``desc`` lies inside one frame of the UMEM, and is all of a packet."""
    cdef uint64_t offset = desc.addr & (pool.frame_size - 1)
    # Options above the length: any option makes it too long.
    cdef uint64_t length = <uint64_t>desc.options << 32 | desc.len
    return (desc.addr < pool.umem_size and desc.len >= ETHERNET_HEADER_BYTES
            and length <= pool.frame_size - offset)


cdef inline void lose_frame(FramePool* pool, uint64_t addr) noexcept nogil:
    """Account for a frame whose descriptor cannot be trusted; it is never used again."""
    pool.lost_frames += 1
    if addr < pool.umem_size:
        frame_move(pool, addr, PLACE_RX, PLACE_LOST)


cdef inline void rewrite_packet(unsigned char* data, const Rewrite* rewrite) noexcept nogil:
    cdef unsigned char src_mac[6]
    if rewrite.kind & REWRITE_SWAP_MAC:
        memcpy(src_mac, data + 6, 6)
        memcpy(data + 6, data, 6)
        memcpy(data, src_mac, 6)
    if rewrite.kind & REWRITE_DST_MAC:
        memcpy(data, rewrite.dst_mac, 6)


cdef uint32_t forward_burst(PortState* src, PortState* dst, const Rewrite* rewrite,
                            uint32_t batch_size) noexcept nogil:
    """Move up to ``batch_size`` packets from ``src`` to ``dst``; return how many arrived.

    A packet is sent by handing on its descriptor: both ports share the UMEM.  What does not
    fit the TX ring is dropped and counted at once, never waited for.
    """
    # Copies, so that their members stay in registers: a store to a packet could alias them.
    cdef FramePool pool
    cdef ConsumerRing rx
    cdef ProducerRing tx
    cdef Rewrite change
    cdef uint32_t rx_first = 0
    cdef uint32_t tx_first = 0
    cdef uint32_t sent = 0
    cdef uint32_t invalid = 0
    cdef uint64_t rx_bytes = 0
    cdef uint64_t tx_bytes = 0
    cdef uint32_t received, room, i
    cdef xdp_desc desc

    reclaim(dst)
    # At most what we lent: a kernel that repeats a frame cannot overfill the pool.
    received = ring_peek(&src.rx, min(batch_size, src.rx_lent), &rx_first)
    if received == 0:
        refill(src)             # the pool was empty when its last packet came
        return 0
    room = ring_reserve(&dst.tx, received, &tx_first)
    pool, rx, tx, change = src.pool[0], src.rx, dst.tx, rewrite[0]

    for i in range(received):
        desc = rx_slot(&rx, rx_first + i)[0]
        if unlikely(not packet_is_usable(&pool, &desc), 0):
            lose_frame(&pool, desc.addr)
            invalid += 1
            continue
        frame_move(&pool, desc.addr, PLACE_RX, PLACE_USER)
        rx_bytes += desc.len
        if unlikely(sent == room, 0):
            pool_give(&pool, desc.addr, PLACE_USER)
            continue
        if change.kind:
            rewrite_packet(pool.data + desc.addr, &change)
        frame_move(&pool, desc.addr, PLACE_USER, PLACE_TX)
        tx_slot(&tx, tx_first + sent)[0] = desc
        tx_bytes += desc.len
        sent += 1

    src.pool[0] = pool
    ring_submit(&dst.tx, sent)
    dst.tx_lent += sent
    ring_release(&src.rx, received)
    src.rx_lent -= received
    refill(src)

    src.counters.rx_packets += received
    src.counters.rx_bytes += rx_bytes
    src.counters.rx_invalid_drops += invalid
    dst.counters.tx_packets += sent
    dst.counters.tx_bytes += tx_bytes
    dst.counters.tx_full_drops += received - invalid - sent
    return received


cdef bint kick_was_useful(PortState* port, int error, uint32_t before) noexcept nogil:
    """Count what ``sendto`` answered; tell whether it took packets off the ring all the same."""
    cdef bint moved = ring_pending(&port.tx.ring) != before
    if error == EBUSY:
        port.counters.tx_busy_drops += moved    # xsk_generic_xmit: completed, never sent
    elif error == EAGAIN:
        port.counters.tx_again += 1
        reclaim(port)                           # a full completion ring stops TX
    elif error == ENOBUFS or error == ENOMEM:
        port.counters.tx_no_buffer += 1
    return moved


cdef int kick_tx(PortState* port) noexcept nogil:
    """Have the kernel send what the TX ring holds; return 0, or errno if the socket is dead.

    In copy mode nothing leaves without this call, and one call may send only part.  What
    cannot be sent now stays on the ring for the next turn.
    """
    cdef uint32_t useless = 0
    cdef uint32_t before = ring_pending(&port.tx.ring)
    cdef int error
    while before and useless < MAX_USELESS_KICKS and ring_needs_wakeup(&port.tx):
        port.counters.tx_wakeups += 1
        error = -port.kick_tx(port.fd)
        if error == 0:
            return 0
        if error == ENETDOWN:
            port.counters.tx_link_down += 1
            return 0                            # packets wait on the TX ring for the link
        if error not in (EAGAIN, EBUSY, EINTR, ENOBUFS, ENOMEM):
            return error
        if not kick_was_useful(port, error, before):
            useless += 1
        before = ring_pending(&port.tx.ring)
    return 0


cdef void kick_rx(PortState* port) noexcept nogil:
    """Wake a driver that ran out of fill-ring frames (need_wakeup on the fill ring)."""
    if port.fill_target and ring_needs_wakeup(&port.fill):
        port.counters.rx_wakeups += 1
        port.kick_rx(port.fd)


cdef uint32_t turn(WorkerState* worker, int* error) noexcept nogil:
    """Serve both directions once; return how many packets arrived."""
    cdef PortState* left = worker.left
    cdef PortState* right = worker.right
    cdef uint32_t moved = forward_burst(left, right, &worker.rightward, worker.batch_size)
    error[0] = kick_tx(right)
    if unlikely(error[0] != 0, 0):
        worker.failed = right
        return moved
    if worker.both_ways:
        moved += forward_burst(right, left, &worker.leftward, worker.batch_size)
        error[0] = kick_tx(left)
        if unlikely(error[0] != 0, 0):
            worker.failed = left
    worker.turns += 1
    return moved


cdef inline bint is_settled(const PortState* port) noexcept nogil:
    """Tell whether the port waits for nothing but new packets."""
    return port.tx_lent == 0 and port.rx_lent == port.fill_target


cdef int socket_error(int fd) noexcept nogil:
    """Read SO_ERROR: ENETDOWN once the link is gone, which poll() does not tell."""
    cdef int error = 0
    cdef unsigned int length = sizeof(error)
    if getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) < 0:
        return 0
    return error


cdef int idle(WorkerState* worker, int timeout_ms) noexcept nogil:
    """Sleep until a packet arrives; return 0, or errno of a socket that died meanwhile."""
    cdef pollfd fds[2]
    cdef PortState* ports[2]
    cdef int i, error
    ports[0], ports[1] = worker.left, worker.right
    for i in range(2):
        # The frames that TX was holding may be back by now.
        reclaim(ports[i])
        refill(ports[i])
        kick_rx(ports[i])
        fds[i].fd = ports[i].fd
        # Not POLLOUT: a TX ring is nearly always ready, and the sleep would be a spin.
        fds[i].events = POLLIN
        fds[i].revents = 0
    worker.sleeps += 1
    if poll(fds, 2, timeout_ms) > 0 and not (fds[0].revents | fds[1].revents) & ~POLLIN:
        return 0
    for i in range(2):
        error = socket_error(ports[i].fd)
        if error:
            worker.failed = ports[i]
            return error
    return 0


cdef int drain(WorkerState* worker) noexcept nogil:
    """Forward what was received before the programs were detached, then return."""
    cdef int error = 0
    cdef int sleeps = 0
    # Packets still arrive if a program is attached; those beyond what was lent are not ours.
    cdef uint32_t lent = worker.left.rx_lent + worker.right.rx_lent
    cdef uint32_t drained = 0
    cdef uint32_t moved
    while error == 0 and sleeps < MAX_DRAIN_SLEEPS and drained <= lent:
        moved = turn(worker, &error)
        drained += moved
        if moved == 0 and error == 0:
            reclaim(worker.left)
            reclaim(worker.right)
            if worker.left.tx_lent + worker.right.tx_lent == 0:
                return 0
            error = idle(worker, UNSETTLED_MS)
            sleeps += 1
    return error


cdef int run_worker(WorkerState* worker) noexcept nogil:
    """Forward until stopped; return 0, or errno with ``worker.failed`` set."""
    cdef int error = 0
    cdef int timeout_ms
    while error == 0 and not atomic_load(&worker.stop, RELAXED):
        if turn(worker, &error) or error:
            kick_rx(worker.left)
            kick_rx(worker.right)
        else:
            timeout_ms = IDLE_MS
            if worker.busy_poll:
                timeout_ms = 0
            elif not (is_settled(worker.left) and is_settled(worker.right)):
                timeout_ms = UNSETTLED_MS
            error = idle(worker, timeout_ms)
    return error or drain(worker)


cdef int set_rewrite(Rewrite* rewrite, bytes dst_mac, bint swap_mac) except -1:
    rewrite.kind = REWRITE_SWAP_MAC if swap_mac else REWRITE_NOTHING
    if dst_mac is not None:
        if len(dst_mac) != 6:
            raise ConfigError(f"a MAC address has 6 bytes, got {len(dst_mac)}")
        rewrite.kind |= REWRITE_DST_MAC
        memcpy(rewrite.dst_mac, <const unsigned char*>dst_mac, 6)
    return 0


cdef class Worker:
    """Forwards between two ports that share a frame pool.

    Parameters
    ----------
    left, right : Port
        Of one ``Pool``.  The worker's thread is the only user of both while it runs.
    batch_size : int
        Packets per burst, at least one.
    both_ways : bool
        False: from ``left`` to ``right`` only.
    busy_poll : bool
        True: never sleep.
    dst_mac : bytes or None
        Six bytes, written to every packet sent on ``right``.
    swap_mac : bool
        Swap source and destination MAC, in both directions.

    Raises
    ------
    ConfigError
        If the ports have different pools, or a size is wrong.
    """

    def __cinit__(self, Port left not None, Port right not None, *, uint32_t batch_size=64,
                  bint both_ways=True, bint busy_poll=False, bytes dst_mac=None,
                  bint swap_mac=False):
        if left is right:
            raise ConfigError("a worker needs two different ports")
        if left.pool is not right.pool:
            raise ConfigError("both ports of a worker must share one frame pool")
        if batch_size < 1:
            raise ConfigError("batch_size must be at least 1")
        self.left = left
        self.right = right
        self.state.left = &left.state
        self.state.right = &right.state
        self.state.batch_size = batch_size
        self.state.both_ways = both_ways
        self.state.busy_poll = busy_poll
        set_rewrite(&self.state.rightward, dst_mac, swap_mac)
        set_rewrite(&self.state.leftward, None, swap_mac)

    def run(self):
        """Forward until ``stop``.  Releases the GIL for the whole run.

        Raises
        ------
        KernelError
            If a socket died, for example because its link went away.  ``failed`` names it.
        ConfigError
            If a port is closed, or another thread drives it.
        """
        cdef int error
        self._begin()
        with nogil:
            error = run_worker(&self.state)
        self._end(error)

    def turn(self):
        """Serve both directions once, without sleeping; return the packets that arrived.

        Raises
        ------
        KernelError
            As ``run``.
        """
        cdef int error = 0
        cdef uint32_t moved
        self._begin()
        with nogil:
            moved = turn(&self.state, &error)
        self._end(error)
        return moved

    def stop(self):
        """Ask ``run`` to drain and return.  Callable from any thread; does not wait."""
        atomic_store(&self.state.stop, 1, RELAXED)

    @property
    def failed(self):
        """Name of the port whose socket died, or None."""
        if self.state.failed == NULL:
            return None
        return self.left.name if self.state.failed == self.state.left else self.right.name

    @property
    def turns(self):
        """Turns of the loop so far, and how many of them slept."""
        return self.state.turns, self.state.sleeps

    def frames(self):
        """Count all frames of the UMEM by place; the sum is ``frame_count``.

        Returns
        -------
        dict[str, int]
            ``pool``, ``fill``, ``kernel_rx``, ``rx``, ``tx``, ``kernel_tx``, ``completion``,
            ``lost``.  Exact while the worker does not run.
        """
        places = {"pool": self.left.pool.free_count}
        for port in (self.left, self.right):
            for place, count in port.frames().items():
                places[place] = places.get(place, 0) + count
        places["lost"] = self.left.pool.lost_count
        return places

    cdef int _begin(self) except -1:
        """Claim both ports: one thread drives a socket, always."""
        self.left._require_idle()
        self.right._require_idle()
        self.left.is_used = self.right.is_used = True
        return 0

    cdef int _end(self, int error) except -1:
        self.left.is_used = self.right.is_used = False
        if error:
            raise kernel_error(error, "forward on", self.failed or "AF_XDP socket")
        return 0
