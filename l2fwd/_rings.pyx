"""Packet memory, the frame pool, and the four rings of a port.

The functions here move frames between the pool and the kernel; ``_worker.pyx`` holds the
loop that uses them.  Nothing read from a shared ring is trusted: an address is copied once,
bounded, and only then used.
"""

from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES
from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdio cimport fprintf, stderr
from libc.stdlib cimport abort, calloc, free
from libc.string cimport memcpy, memset

from l2fwd._xdp cimport MSG_DONTWAIT, recvfrom, sendto

from collections import namedtuple

from l2fwd.errors import ConfigError, kernel_error


cdef extern from "sys/mman.h" nogil:
    enum:
        PROT_READ
        PROT_WRITE
        MAP_PRIVATE
        MAP_ANONYMOUS
        MAP_HUGETLB
        MADV_POPULATE_WRITE

    void* MAP_FAILED
    void* mmap(void* addr, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void* addr, size_t length)
    int madvise(void* addr, size_t length, int advice)


cdef extern from "sys/syscall.h" nogil:
    enum:
        SYS_mbind


cdef extern from "unistd.h" nogil:
    long syscall(long number, ...)


cdef enum:
    MPOL_PREFERRED = 1              # linux/mempolicy.h
    NODE_WORDS = 16                 # of 64 nodes each


DEBUG = bool(L2FWD_DEBUG)
HUGE_PAGE_BYTES = 2 << 20

RingMemory = namedtuple("RingMemory", "producer consumer flags slots size")
RingMemory.__doc__ = """Where one ring lies: four addresses (int), and its size in slots."""


cdef void frame_abort(const FramePool* pool, uint64_t addr, uint8_t before,
                      uint8_t after) noexcept nogil:
    cdef const char* names[5]
    names[:] = [b"pool", b"rx", b"user", b"tx", b"lost"]
    fprintf(stderr, "l2fwd: frame at %llu moved from %s to %s, but it is in %s\n",
            <unsigned long long>addr, names[before], names[after],
            names[pool.places[addr // pool.frame_size]])
    abort()


cdef int kick_tx_socket(int fd) noexcept nogil:
    return 0 if sendto(fd, NULL, 0, MSG_DONTWAIT, NULL, 0) >= 0 else -errno


cdef int kick_rx_socket(int fd) noexcept nogil:
    return 0 if recvfrom(fd, NULL, 0, MSG_DONTWAIT, NULL, NULL) >= 0 else -errno


cdef uint32_t refill(PortState* port) noexcept nogil:
    """Lend pool frames to the kernel until ``fill_target`` are out; return how many."""
    cdef FramePool* pool = port.pool
    cdef uint32_t first = 0
    cdef uint32_t count = min(port.fill_target - port.rx_lent, pool.count)
    cdef uint32_t head, i
    if count == 0:
        return 0
    count = ring_reserve(&port.fill, count, &first)
    pool.count -= count
    if L2FWD_DEBUG:
        for i in range(count):
            frame_move(pool, pool.addrs[pool.count + i], PLACE_POOL, PLACE_RX)
    head = slots_before_wrap(&port.fill.ring, first, count)
    memcpy(fill_slot(&port.fill, first), pool.addrs + pool.count, head * sizeof(uint64_t))
    memcpy(port.fill.ring.slots, pool.addrs + pool.count + head,
           (count - head) * sizeof(uint64_t))
    ring_submit(&port.fill, count)
    port.rx_lent += count
    return count


cdef void take_back(PortState* port, const uint64_t* slots, uint32_t count) noexcept nogil:
    """Put the completed frames in ``slots`` into the pool; lose those out of bounds."""
    cdef FramePool* pool = port.pool
    cdef uint64_t* top = pool.addrs + pool.count
    cdef uint64_t mask = pool.frame_mask
    cdef uint64_t seen = 0
    cdef uint32_t i
    # No branch in the loop, so that it is a vector one: no address exceeds the OR of all.
    for i in range(count):
        seen |= slots[i]
        top[i] = slots[i] & mask
    if seen < pool.umem_size and not L2FWD_DEBUG:
        pool.count += count
        return
    for i in range(count):
        if top[i] < pool.umem_size:
            pool_give(pool, top[i], PLACE_TX)
        else:
            port.counters.completion_invalid += 1
            pool.lost_frames += 1


cdef void take_back_each(PortState* port, uint32_t first, uint32_t count) noexcept nogil:
    """Put completed frames into the pool, and count those that ended a packet."""
    cdef FramePool* pool = port.pool
    cdef uint8_t* goes_on
    cdef uint64_t addr
    cdef uint32_t i
    for i in range(count):
        addr = flat_addr(pool, completion_slot(&port.completion, first + i)[0])
        if unlikely(addr >= pool.umem_size, 0):
            port.counters.tx_completed += 1
            port.counters.completion_invalid += 1
            pool.lost_frames += 1
            continue
        goes_on = &port.goes_on[frame_start(pool, addr) >> port.frame_shift]
        port.counters.tx_completed += not goes_on[0]
        goes_on[0] = False
        pool_give(pool, addr, PLACE_TX)
    if unlikely(port.counters.tx_completed > port.counters.tx_packets, 0):
        port.counters.tx_completed = port.counters.tx_packets   # completed twice: hostile


cdef uint32_t reclaim(PortState* port) noexcept nogil:
    """Take every transmitted frame back into the pool; return how many."""
    cdef uint32_t first = 0
    # Never more than are out: a kernel that completes a frame twice cannot overfill the pool.
    cdef uint32_t count = ring_peek(&port.completion, port.tx_lent, &first)
    if count:
        take_completed(port, first, count)
    return count


cdef void take_completed(PortState* port, uint32_t first, uint32_t count) noexcept nogil:
    """Take the frames of ``count`` completions back, from slot ``first`` on."""
    cdef uint32_t head
    if port.is_plain:
        head = slots_before_wrap(&port.completion.ring, first, count)
        take_back(port, completion_slot(&port.completion, first), head)
        take_back(port, completion_slot(&port.completion, first + head), count - head)
        port.counters.tx_completed += count
    else:
        take_back_each(port, first, count)
    ring_release(&port.completion, count)
    port.tx_lent -= count


cdef bint prefer_node(Memory memory, unsigned int node):
    """Have pages not yet touched come from ``node``; False where the kernel does not do that."""
    cdef unsigned long nodes[NODE_WORDS]
    if node >= 64 * NODE_WORDS:
        return False
    memset(nodes, 0, sizeof(nodes))
    nodes[node // 64] = <unsigned long>1 << (node % 64)
    return syscall(SYS_mbind, memory.start, memory.size, MPOL_PREFERRED, nodes,
                   64 * NODE_WORDS + 1, 0) == 0


cdef class Memory:
    """Anonymous memory for a UMEM, a buffer of uint8 with shape (frame_count, frame_size).

    Every view taken of it (``numpy.asarray(memory)``) keeps the mapping alive, also after
    the UMEM is closed: a late view shows stale bytes, never a fault.

    Parameters
    ----------
    frame_count : int
        Frames, at least one.
    frame_size : int
        Bytes per frame.
    huge : bool
        Use 2 MiB pages from the system's pool; the mapping is rounded up to whole pages.
    node : int or None
        NUMA node to take it from, if that has some to give.

    Raises
    ------
    KernelError
        If the kernel has no memory, or no huge pages, to give.
    """

    def __cinit__(self, size_t frame_count, size_t frame_size, *, bint huge=False, node=None):
        cdef int flags = MAP_PRIVATE | MAP_ANONYMOUS
        self.size = frame_count * frame_size
        if huge:
            flags |= MAP_HUGETLB
            self.size = (self.size + HUGE_PAGE_BYTES - 1) // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES
        self.start = mmap(NULL, self.size, PROT_READ | PROT_WRITE, flags, -1, 0)
        if self.start == MAP_FAILED:
            self.start = NULL
            error = errno               # before anything else can change it
            frames = f"{frame_count} frames of {frame_size} bytes"
            if not huge:
                raise kernel_error(error, "map memory for", frames)
            pages = f"{frames}, {self.size // HUGE_PAGE_BYTES} pages of 2 MiB"
            raise kernel_error(error, "map huge pages for", pages)
        self.node = node if node is not None and prefer_node(self, node) else None
        if huge:
            madvise(self.start, self.size, MADV_POPULATE_WRITE)
        self.huge = huge
        self.frame_size = frame_size
        self.shape[0] = frame_count
        self.shape[1] = frame_size
        self.strides[0] = frame_size
        self.strides[1] = 1

    def __dealloc__(self):
        if self.start != NULL:
            munmap(self.start, self.size)

    @property
    def frame_count(self):
        return self.shape[0]

    @property
    def address(self):
        """Address of the first byte."""
        return <uintptr_t>self.start

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        buffer.buf = self.start
        buffer.obj = self
        buffer.len = self.shape[0] * self.shape[1]
        buffer.itemsize = 1
        buffer.readonly = 0
        buffer.ndim = 2
        buffer.format = <char*>"B" if flags & PyBUF_FORMAT else NULL
        buffer.shape = self.shape if flags & PyBUF_ND else NULL
        buffer.strides = self.strides if flags & PyBUF_STRIDES == PyBUF_STRIDES else NULL
        buffer.suboffsets = NULL
        buffer.internal = NULL


cdef class Pool:
    """Stack of the frames no ring holds; one per UMEM, used by one thread.

    Parameters
    ----------
    memory : Memory
        The UMEM.  Frame ``i`` starts at byte ``i * frame_size``.
    unaligned : bool
        The kernel knows frames by any address (XDP_UMEM_UNALIGNED_CHUNK_FLAG).
    tx_room : int
        Bytes before each packet sent, at the start of its frame.

    Raises
    ------
    ConfigError
        If the frame size is not a power of two, and not unaligned (``xdp_umem_reg`` asks for it).
    """

    def __cinit__(self, Memory memory not None, *, bint unaligned=False, uint32_t tx_room=0):
        cdef FramePool* pool = &self.pool
        cdef uint32_t i
        cdef uint32_t frame_count = memory.shape[0]
        if memory.frame_size & (memory.frame_size - 1) and not unaligned:
            raise ConfigError(f"frame_size must be a power of two, got {memory.frame_size}")
        self.memory = memory
        pool.addrs = <uint64_t*>calloc(frame_count, sizeof(uint64_t))
        pool.places = <uint8_t*>calloc(frame_count, 1)
        self.goes_on = <uint8_t*>calloc(2 * <size_t>frame_count, 1)
        if pool.addrs == NULL or pool.places == NULL or self.goes_on == NULL:
            raise MemoryError
        pool.frame_size = memory.frame_size
        pool.frame_mask = 0 if unaligned else ~<uint64_t>(memory.frame_size - 1)
        pool.umem_size = memory.shape[0] * memory.frame_size
        pool.data = <uint8_t*>memory.start
        pool.frame_count = frame_count
        pool.tx_room = tx_room
        for i in range(frame_count):
            # Highest first, so that the lowest frame is taken first.
            pool.addrs[i] = <uint64_t>(frame_count - 1 - i) * memory.frame_size
        pool.count = frame_count

    def __dealloc__(self):
        free(self.pool.addrs)
        free(self.pool.places)
        free(self.goes_on)

    @property
    def free_count(self):
        """Frames in the pool."""
        return self.pool.count

    @property
    def frame_count(self):
        return self.pool.frame_count

    @property
    def is_unaligned(self):
        return self.pool.frame_mask == 0

    @property
    def tx_room(self):
        return self.pool.tx_room

    @property
    def lost_count(self):
        """Frames that came back with an unusable descriptor; they are never used again."""
        return self.pool.lost_frames


cdef int open_ring(Ring* ring, memory) except -1:
    """Point ``ring`` at ``memory`` and start where the shared indices stand."""
    if memory.size < 1 or memory.size & (memory.size - 1):
        raise ConfigError(f"ring size must be a power of two, got {memory.size}")
    ring.producer = <uint32_t*><uintptr_t>memory.producer
    ring.consumer = <uint32_t*><uintptr_t>memory.consumer
    ring.flags = <uint32_t*><uintptr_t>memory.flags
    ring.slots = <void*><uintptr_t>memory.slots
    ring.size = memory.size
    ring.mask = memory.size - 1
    ring.cached_producer = atomic_load(ring.producer, ACQUIRE)
    ring.cached_consumer = atomic_load(ring.consumer, ACQUIRE)
    return 0


cdef class Port:
    """One (link, queue): four rings, a socket, and the counters of its traffic.

    Parameters
    ----------
    pool : Pool
        Frames, shared with the other ports of the same worker.
    rings : Mapping[str, RingMemory]
        ``fill``, ``completion``, ``rx`` and ``tx``.
    fd : int
        The AF_XDP socket.
    name : str
        For messages: "eth0 queue 3".
    owner : object
        Kept alive as long as the rings are used.
    kick_tx, kick_rx : int
        Address of ``int kick(int fd)`` returning 0 or -errno, in place of ``sendto`` and
        ``recvfrom``; 0 for the real ones.
    tx_fd : int
        The socket that the TX ring belongs to; -1: the same.
    max_fragments : int
        Most frames of a packet that is sent; above 1 a packet may be received in several, too
        (XDP_USE_SG).
    """

    def __cinit__(self, Pool pool not None, rings, int fd, str name, owner=None,
                  uintptr_t kick_tx=0, uintptr_t kick_rx=0, uint32_t max_fragments=1,
                  int tx_fd=-1):
        self.pool = pool
        self.name = name
        self.owner = owner
        self.state.pool = &pool.pool
        self.state.max_fragments = max_fragments
        self.state.is_plain = max_fragments == 1 and pool.pool.frame_mask != 0
        self.state.goes_on = pool.goes_on
        self.state.frame_shift = int(pool.pool.frame_size).bit_length() - 1
        self.state.fd = fd
        self.state.tx_fd = fd if tx_fd < 0 else tx_fd
        self.state.kick_tx = <kick_function>kick_tx if kick_tx else kick_tx_socket
        self.state.kick_rx = <kick_function>kick_rx if kick_rx else kick_rx_socket
        open_ring(&self.state.fill.ring, rings["fill"])
        open_ring(&self.state.completion.ring, rings["completion"])
        open_ring(&self.state.rx.ring, rings["rx"])
        open_ring(&self.state.tx.ring, rings["tx"])
        self.is_open = True

    @property
    def is_polled(self):
        """Whether every turn makes a system call, which runs the NIC's poll function."""
        return bool(self.state.is_polled)

    @is_polled.setter
    def is_polled(self, bint value):
        self.state.is_polled = value

    def refill(self, uint32_t fill_target):
        """Keep ``fill_target`` frames lent for RX from now on; return how many were added.

        Raises
        ------
        ConfigError
            If the fill ring has fewer slots.
        """
        self._require_idle()
        cdef uint32_t size = self.state.fill.ring.size
        if fill_target > size:
            raise ConfigError(f"fill_target {fill_target} exceeds the fill ring's {size} slots")
        if fill_target < self.state.rx_lent:
            raise ConfigError(f"{self.state.rx_lent} frames are lent already, asked {fill_target}")
        self.state.fill_target = fill_target
        return refill(&self.state)

    def wake_rx(self):
        """Have the driver look at the fill ring.  Not while a worker runs."""
        self._require_idle()
        self.state.kick_rx(self.state.fd)

    def reclaim(self):
        """Take completed frames back; return how many.  Not while a worker runs."""
        self._require_idle()
        return reclaim(&self.state)

    def close(self):
        """Forget the rings, whose memory goes away with the socket.  Counters stay.

        The frames it had lent are lost to the pool: the kernel may hold some until later.

        Raises
        ------
        ConfigError
            While a worker runs on it.
        """
        if not self.is_open:
            return
        self._require_idle()
        self.is_open = False
        self.state.pool.lost_frames += self.state.rx_lent + self.state.tx_lent
        self.state.rx_lent = self.state.tx_lent = 0
        memset(&self.state.fill, 0, sizeof(ProducerRing))
        memset(&self.state.completion, 0, sizeof(ConsumerRing))
        memset(&self.state.rx, 0, sizeof(ConsumerRing))
        memset(&self.state.tx, 0, sizeof(ProducerRing))
        self.owner = None

    @property
    def fd(self):
        return self.state.fd

    @property
    def max_fragments(self):
        return self.state.max_fragments

    def waiting(self):
        """Count the packets on the rx ring; frames of one whose end is not there do not count."""
        cdef PortState* state = &self.state
        cdef uint32_t count, i
        cdef uint32_t first = 0
        cdef uint32_t packets = 0
        if not self.is_open:
            return 0
        count = ring_peek(&state.rx, state.rx.ring.size, &first)
        for i in range(count):
            packets += not rx_slot(&state.rx, first + i).options & XDP_PKT_CONTD
        return packets

    def counters(self):
        """Return all counters by name; see ``PortCounters`` in ``_rings.pxd``."""
        return dict(self.state.counters)

    def frames(self):
        """Count the frames this port has lent, by place.

        Exact while no worker runs.  ``kernel_rx`` and ``kernel_tx`` are what is lent and in
        no ring.
        """
        cdef PortState* state = &self.state
        if not self.is_open:
            return dict.fromkeys(("fill", "rx", "kernel_rx", "tx", "completion", "kernel_tx"), 0)
        fill, rx = ring_pending(&state.fill.ring), ring_pending(&state.rx.ring)
        tx, completion = ring_pending(&state.tx.ring), ring_pending(&state.completion.ring)
        return {"fill": fill, "rx": rx, "kernel_rx": state.rx_lent - fill - rx,
                "tx": tx, "completion": completion, "kernel_tx": state.tx_lent - tx - completion}

    cdef int _require_idle(self) except -1:
        if not self.is_open:
            raise ConfigError(f"{self.name} is closed")
        if self.is_used:
            raise ConfigError(f"a worker is running on {self.name}; stop it first")
        return 0
