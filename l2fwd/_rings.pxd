# Rings, frame pool and port: plain C structs, and the inline functions that move frames.
#
# A ring is single-producer, single-consumer; the kernel holds the other end.  Indices are
# uint32_t and wrap by themselves; they are masked only to find a slot.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from l2fwd._xdp cimport (
    ACQUIRE, L2FWD_DEBUG, RELAXED, RELEASE, XDP_PKT_CONTD, XDP_RING_NEED_WAKEUP, atomic_load,
    atomic_store, unlikely, xdp_desc,
)


cdef enum:
    ETHERNET_HEADER_BYTES = 14
    UNALIGNED_OFFSET_SHIFT = 48     # of an address received from an unaligned UMEM


cdef struct Ring:
    uint32_t* producer              # shared with the kernel
    uint32_t* consumer              # shared with the kernel
    uint32_t* flags                 # shared with the kernel, XDP_RING_NEED_WAKEUP
    void* slots                     # uint64_t[size] or xdp_desc[size]
    uint32_t size                   # slots, a power of two
    uint32_t mask                   # size - 1
    uint32_t cached_producer        # ours, or the kernel's when last looked at
    uint32_t cached_consumer


cdef struct ProducerRing:           # fill (uint64_t), tx (xdp_desc)
    Ring ring


cdef struct ConsumerRing:           # completion (uint64_t), rx (xdp_desc)
    Ring ring


cdef enum FramePlace:               # as user space sees it; the debug build keeps one per frame
    PLACE_POOL
    PLACE_RX                        # fill ring, kernel RX or rx ring
    PLACE_USER                      # between ring_peek and ring_submit
    PLACE_TX                        # tx ring, kernel TX or completion ring
    PLACE_LOST                      # came back unusable: never touched again


cdef struct FramePool:              # a stack: the frame used last is the one still in cache
    uint64_t* addrs                 # uint64_t[frame_count]
    uint32_t count
    uint32_t frame_count
    uint32_t frame_size             # bytes, a power of two unless unaligned
    uint64_t umem_size              # bytes
    uint64_t frame_mask             # ~(frame_size - 1), or 0: the UMEM is unaligned
    uint8_t* data                   # first byte of the UMEM
    uint8_t* places                 # FramePlace[frame_count]; release build: what users hold
    uint64_t lost_frames
    uint32_t tx_room                # bytes before each packet sent, for what is asked of the NIC


cdef struct PortCounters:           # one writer: the worker's thread.  Monotonic.
    uint64_t rx_packets
    uint64_t rx_bytes
    uint64_t tx_completed           # handed back; read before tx_packets, so never above it
    uint64_t tx_packets             # put on the TX ring
    uint64_t tx_bytes
    uint64_t rx_invalid_drops       # descriptor out of bounds; its frame is lost
    uint64_t rx_rule_drops          # a rule, a policy or the miss policy said so
    uint64_t rx_change_drops        # no room in the frame for what the rule adds
    uint64_t rx_policy_drops        # the policy failed, or its answer is no action
    uint64_t rx_host_drops          # meant for the host stack, which did not take it
    uint64_t tx_no_link_drops       # the action names a link that is not a port
    uint64_t tx_full_drops          # no room on the TX ring
    uint64_t tx_fragment_drops      # in more frames than the link sends at once
    uint64_t tx_busy_drops          # completed by the kernel without being sent (EBUSY)
    uint64_t completion_invalid     # completed address out of bounds; the frame is lost
    uint64_t host_packets           # given to the host stack
    uint64_t consumed_packets       # received, used here and recycled: neither sent nor dropped
    uint64_t generated_packets      # made here, not received
    uint64_t rx_wakeups             # recvfrom calls
    uint64_t tx_wakeups             # sendto calls
    uint64_t tx_again               # sendto said EAGAIN: completions or driver queue full
    uint64_t tx_no_buffer           # sendto said ENOBUFS or ENOMEM
    uint64_t tx_link_down           # sendto said ENETDOWN; packets wait on the TX ring


# Kick a socket: 0, or -errno.  A pointer, so that the fake kernel can stand in.
ctypedef int (*kick_function)(int fd) noexcept nogil


cdef struct PortState:              # one (link, queue) taking part in forwarding
    ConsumerRing rx
    ProducerRing tx
    ProducerRing fill
    ConsumerRing completion
    FramePool* pool                 # shared by all ports of the worker
    uint32_t fill_target            # frames to keep lent for RX
    uint32_t rx_lent                # frames lent through fill and not yet received
    uint32_t tx_lent                # frames handed to tx and not yet completed
    uint32_t max_fragments          # frames of a packet sent; 1: bound without XDP_USE_SG
    bint is_plain                   # a packet is one frame, of an aligned UMEM
    uint8_t* goes_on                # by first byte >> frame_shift: sent, not the last of its packet
    uint8_t frame_shift             # 1 << frame_shift <= frame_size
    int fd
    int tx_fd                       # the socket of the TX ring: the same, or one of its own
    kick_function kick_tx
    kick_function kick_rx
    bint is_polled                  # its NIC does nothing by itself: preferred busy polling
    PortCounters counters


cdef inline uint64_t* fill_slot(ProducerRing* fill, uint32_t index) noexcept nogil:
    return &(<uint64_t*>fill.ring.slots)[index & fill.ring.mask]


cdef inline xdp_desc* tx_slot(ProducerRing* tx, uint32_t index) noexcept nogil:
    return &(<xdp_desc*>tx.ring.slots)[index & tx.ring.mask]


cdef inline const xdp_desc* rx_slot(ConsumerRing* rx, uint32_t index) noexcept nogil:
    return &(<const xdp_desc*>rx.ring.slots)[index & rx.ring.mask]


cdef inline const uint64_t* completion_slot(ConsumerRing* completion,
                                            uint32_t index) noexcept nogil:
    return &(<const uint64_t*>completion.ring.slots)[index & completion.ring.mask]


cdef inline uint32_t slots_before_wrap(const Ring* ring, uint32_t index,
                                       uint32_t count) noexcept nogil:
    """How many of ``count`` slots from ``index`` on lie in one piece; the rest starts at 0."""
    return min(count, ring.size - (index & ring.mask))


cdef inline uint32_t ring_reserve(ProducerRing* end, uint32_t count,
                                  uint32_t* index) noexcept nogil:
    """Find up to ``count`` free slots; ``index`` gets the first."""
    cdef Ring* ring = &end.ring
    cdef uint32_t used = ring.cached_producer - ring.cached_consumer
    if ring.size - used < count:
        # Acquire: slots the kernel has finished reading are ours to overwrite.
        ring.cached_consumer = atomic_load(ring.consumer, ACQUIRE)
        used = ring.cached_producer - ring.cached_consumer
        if unlikely(used > ring.size, 0):
            # A consumer ahead of its producer: wait for it to make sense again.
            ring.cached_consumer = ring.cached_producer - ring.size
            used = ring.size
    index[0] = ring.cached_producer
    return min(count, ring.size - used)


cdef inline void ring_submit(ProducerRing* end, uint32_t count) noexcept nogil:
    """Hand ``count`` written slots to the kernel."""
    cdef Ring* ring = &end.ring
    ring.cached_producer += count
    # Release: the slots are written before the kernel can see the index.
    atomic_store(ring.producer, ring.cached_producer, RELEASE)


cdef inline uint32_t ring_peek(ConsumerRing* end, uint32_t count,
                               uint32_t* index) noexcept nogil:
    """Find up to ``count`` readable slots; ``index`` gets the first."""
    cdef Ring* ring = &end.ring
    cdef uint32_t available = ring.cached_producer - ring.cached_consumer
    if available < count:
        # Acquire: the slots are read after the index that announces them.
        ring.cached_producer = atomic_load(ring.producer, ACQUIRE)
        available = ring.cached_producer - ring.cached_consumer
        if unlikely(available > ring.size, 0):
            # More slots than the ring has: wait for the index to make sense again.
            ring.cached_producer = ring.cached_consumer
            available = 0
    index[0] = ring.cached_consumer
    return min(count, available)


cdef inline void ring_release(ConsumerRing* end, uint32_t count) noexcept nogil:
    """Give ``count`` read slots back to the kernel."""
    cdef Ring* ring = &end.ring
    ring.cached_consumer += count
    # Release: we have read the slots before the kernel may overwrite them.
    atomic_store(ring.consumer, ring.cached_consumer, RELEASE)


cdef inline uint32_t rx_peek(PortState* port, uint32_t count, uint32_t* index) noexcept nogil:
    """Find up to ``count`` received descriptors; ``index`` gets the first."""
    # At most what we lent: a kernel that repeats a frame cannot overfill the pool.
    return ring_peek(&port.rx, min(count, port.rx_lent), index)


cdef inline void rx_release(PortState* port, uint32_t count) noexcept nogil:
    """Give ``count`` read descriptors back; their frames are ours."""
    ring_release(&port.rx, count)
    port.rx_lent -= count


cdef inline void tx_submit(PortState* port, uint32_t count) noexcept nogil:
    """Hand ``count`` written descriptors, and their frames, to the kernel."""
    ring_submit(&port.tx, count)
    port.tx_lent += count


cdef inline uint32_t ring_pending(const Ring* ring) noexcept nogil:
    """Count slots between the two shared indices; the other end may move meanwhile."""
    return atomic_load(ring.producer, ACQUIRE) - atomic_load(ring.consumer, ACQUIRE)


cdef inline bint ring_needs_wakeup(const ProducerRing* end) noexcept nogil:
    return atomic_load(end.ring.flags, RELAXED) & XDP_RING_NEED_WAKEUP


cdef void frame_abort(const FramePool* pool, uint64_t addr, uint8_t before,
                      uint8_t after) noexcept nogil


cdef inline void frame_move(FramePool* pool, uint64_t addr, uint8_t before,
                            uint8_t after) noexcept nogil:
    """Debug build: move the frame at ``addr``, or abort if it is not where it should be."""
    if L2FWD_DEBUG:
        if pool.places[addr // pool.frame_size] != before:
            frame_abort(pool, addr, before, after)
        pool.places[addr // pool.frame_size] = after


cdef inline uint64_t frame_start(const FramePool* pool, uint64_t addr) noexcept nogil:
    """Find the first byte of the frame that holds byte ``addr``."""
    return addr & pool.frame_mask if pool.frame_mask else addr - addr % pool.frame_size


cdef inline uint64_t flat_addr(const FramePool* pool, uint64_t addr) noexcept nogil:
    """Turn an address as received into a byte offset: unaligned, its upper bits are to be added."""
    if pool.frame_mask:
        return addr
    return ((addr & ((<uint64_t>1 << UNALIGNED_OFFSET_SHIFT) - 1))
            + (addr >> UNALIGNED_OFFSET_SHIFT))


cdef inline void pool_give(FramePool* pool, uint64_t addr, uint8_t place) noexcept nogil:
    """Put back the frame that holds byte ``addr``, which the caller has bounded."""
    addr = frame_start(pool, addr)
    frame_move(pool, addr, place, PLACE_POOL)
    pool.addrs[pool.count] = addr
    pool.count += 1


cdef inline bint packet_is_usable(const FramePool* pool, const xdp_desc* desc) noexcept nogil:
    """Tell whether all of ``desc`` lies inside one frame, and is all of a packet.  Aligned only."""
    cdef uint64_t offset = desc.addr & (pool.frame_size - 1)
    # Options above the length: any option makes it too long.
    cdef uint64_t length = <uint64_t>desc.options << 32 | desc.len
    return (desc.addr < pool.umem_size and desc.len >= ETHERNET_HEADER_BYTES
            and length <= pool.frame_size - offset)


cdef inline bint fragment_is_usable(const FramePool* pool, const xdp_desc* desc,
                                    uint32_t least) noexcept nogil:
    """Tell whether ``least`` bytes or more lie inside one frame, whole packet or not."""
    return (desc.addr < pool.umem_size and desc.len >= least
            and not desc.options & ~<uint32_t>XDP_PKT_CONTD
            and desc.len <= pool.frame_size - (desc.addr - frame_start(pool, desc.addr)))


cdef inline bint read_packet(const FramePool* pool, const xdp_desc* slot,
                             xdp_desc* desc) noexcept nogil:
    """Copy a received descriptor, its address made flat; False if it is not usable."""
    desc[0] = slot[0]
    if pool.frame_mask:
        return packet_is_usable(pool, desc)
    desc.addr = flat_addr(pool, desc.addr)
    return fragment_is_usable(pool, desc, ETHERNET_HEADER_BYTES) and desc.options == 0


cdef inline void lose_frame(FramePool* pool, uint64_t addr) noexcept nogil:
    """Account for a frame whose descriptor cannot be trusted; it is never used again."""
    pool.lost_frames += 1
    if addr < pool.umem_size:
        frame_move(pool, addr, PLACE_RX, PLACE_LOST)


cdef inline bint take_packet(PortState* port, const xdp_desc* slot, xdp_desc* desc) noexcept nogil:
    """Copy a received descriptor, check and count it; False if it is not usable."""
    cdef bint is_usable = read_packet(port.pool, slot, desc)
    port.counters.rx_packets += 1
    if unlikely(not is_usable, 0):
        lose_frame(port.pool, desc.addr)
        port.counters.rx_invalid_drops += 1
        return False
    frame_move(port.pool, desc.addr, PLACE_RX, PLACE_USER)
    port.counters.rx_bytes += desc.len
    return True


cdef uint32_t refill(PortState* port) noexcept nogil
cdef uint32_t reclaim(PortState* port) noexcept nogil
cdef void take_completed(PortState* port, uint32_t first, uint32_t count) noexcept nogil


cdef class Memory:
    cdef void* start
    cdef readonly size_t size
    cdef readonly bint huge
    cdef readonly object node           # that was preferred, or None
    cdef size_t frame_size
    cdef Py_ssize_t shape[2]
    cdef Py_ssize_t strides[2]


cdef class Pool:
    cdef FramePool pool
    cdef uint8_t* goes_on               # uint8_t, two a frame at most; see PortState
    cdef readonly Memory memory
    cdef unsigned long thread           # that drives its channels; 0 until the first call
    cdef readonly uint32_t user_count   # frames lent to the caller of its channels


cdef class Port:
    cdef PortState state
    cdef readonly Pool pool
    cdef readonly str name
    cdef object owner
    cdef bint is_open
    cdef bint is_used                   # by a worker inside nogil code
    cdef int _require_idle(self) except -1
