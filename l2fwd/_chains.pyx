"""Packets in several frames: received whole, sent whole, or dropped whole.

A batch may end in the middle of a packet: what is there of it stays on the rx ring until the rest
has come.  ``_rings.pxd`` has the functions for packets of one frame, which need none of this.
"""

from libc.stdint cimport uint32_t

from l2fwd._rings cimport (
    ETHERNET_HEADER_BYTES, PLACE_RX, PLACE_TX, PLACE_USER, FramePool, PortState, flat_addr,
    fragment_is_usable, frame_move, frame_start, lose_frame, pool_give, ring_reserve, rx_peek,
    rx_release, rx_slot, tx_slot,
)
from l2fwd._xdp cimport XDP_PKT_CONTD, unlikely, xdp_desc


cdef uint32_t copy_chain(PortState* port, uint32_t first, uint32_t available,
                         xdp_desc* descs) noexcept nogil:
    """Copy the descriptors of the next packet; return how many, 0 while its end is not there."""
    cdef uint32_t most = min(available, <uint32_t>MAX_FRAGMENTS)
    cdef uint32_t i
    for i in range(most):
        descs[i] = rx_slot(&port.rx, first + i)[0]
        descs[i].addr = flat_addr(port.pool, descs[i].addr)
        if not descs[i].options & XDP_PKT_CONTD:
            return i + 1
    # No packet is that long: its end will not come.
    return most if most == MAX_FRAGMENTS else 0


cdef uint32_t next_length(PortState* port) noexcept nogil:
    """Return the bytes of the next packet, which stays where it is; 0 if none is there, whole."""
    cdef xdp_desc descs[MAX_FRAGMENTS]
    cdef uint32_t first = 0
    cdef uint32_t length = 0
    cdef uint32_t available = rx_peek(port, MAX_FRAGMENTS, &first)
    cdef uint32_t count = copy_chain(port, first, available, descs)
    cdef uint32_t i
    if count and chain_is_usable(port, descs, count):
        for i in range(count):
            length += descs[i].len
    return length


cdef bint chain_is_usable(const PortState* port, const xdp_desc* descs,
                          uint32_t count) noexcept nogil:
    """Tell whether these descriptors are one packet, all of it inside frames."""
    cdef uint32_t i
    cdef uint32_t least = ETHERNET_HEADER_BYTES
    if count > 1 and port.max_fragments == 1 or descs[count - 1].options & XDP_PKT_CONTD:
        return False
    for i in range(count):
        if not fragment_is_usable(port.pool, &descs[i], least):
            return False
        least = 1
    return True


cdef void drop_chain(PortState* port, const xdp_desc* descs, uint32_t count) noexcept nogil:
    """Recycle what can be trusted of a packet that is not usable, and lose the rest."""
    cdef uint32_t i
    port.counters.rx_invalid_drops += 1
    for i in range(count):
        if fragment_is_usable(port.pool, &descs[i], 1):
            pool_give(port.pool, descs[i].addr, PLACE_RX)
        else:
            lose_frame(port.pool, descs[i].addr)


cdef void keep_chain(PortState* port, const xdp_desc* descs, uint32_t count) noexcept nogil:
    """Count the bytes of a usable packet; its frames are the caller's from here on."""
    cdef uint32_t i
    for i in range(count):
        frame_move(port.pool, descs[i].addr, PLACE_RX, PLACE_USER)
        port.counters.rx_bytes += descs[i].len


cdef void take_chains(PortState* port, uint32_t most, Chains* chains) noexcept nogil:
    """Receive up to ``most`` packets, whole ones only; those that are not usable are counted."""
    cdef uint32_t first = 0
    cdef uint32_t taken = 0
    cdef uint32_t kept = 0
    cdef uint32_t available, count
    available = rx_peek(port, MAX_CHAIN_DESCS, &first)
    chains.count = 0
    chains.starts[0] = 0
    most = min(most, <uint32_t>MAX_CHAINS)
    while taken < available and chains.count < most:
        count = copy_chain(port, first + taken, available - taken, &chains.descs[kept])
        if count == 0:
            if available - taken < port.rx_lent - taken:
                break
            count = available - taken       # every frame we lent is here, and no end
        taken += count
        port.counters.rx_packets += 1
        if unlikely(not chain_is_usable(port, &chains.descs[kept], count), 0):
            drop_chain(port, &chains.descs[kept], count)
            continue
        keep_chain(port, &chains.descs[kept], count)
        kept += count
        chains.count += 1
        chains.starts[chains.count] = kept
    rx_release(port, taken)


cdef bint send_chain(PortState* port, xdp_desc* descs, uint32_t count,
                     uint32_t* queued) noexcept nogil:
    """Put a packet on the tx ring, behind ``queued`` descriptors; or count the drop.

    All of it or nothing: the kernel would join the rest to the next packet.
    """
    cdef uint32_t first = 0
    cdef uint32_t i
    if count > port.max_fragments:
        port.counters.tx_fragment_drops += 1
        return False
    if ring_reserve(&port.tx, queued[0] + count, &first) < queued[0] + count:
        port.counters.tx_full_drops += 1
        return False
    for i in range(count):
        frame_move(port.pool, descs[i].addr, PLACE_USER, PLACE_TX)
        descs[i].options = XDP_PKT_CONTD if i + 1 < count else 0
        port.goes_on[frame_start(port.pool, descs[i].addr) >> port.frame_shift] = i + 1 < count
        tx_slot(&port.tx, first + queued[0] + i)[0] = descs[i]
        port.counters.tx_bytes += descs[i].len
    port.counters.tx_packets += 1
    queued[0] += count
    return True


cdef void give_chain(FramePool* pool, const xdp_desc* descs, uint32_t count) noexcept nogil:
    """Recycle the frames of a packet."""
    cdef uint32_t i
    for i in range(count):
        pool_give(pool, descs[i].addr, PLACE_USER)
