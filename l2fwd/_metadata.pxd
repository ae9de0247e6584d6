# What is beside a packet in its frame: what the NIC knew about one received, in front of its bytes,
# and what is asked of the NIC for one sent.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from l2fwd._rings cimport FramePool


cdef extern from "l2fwd.h" nogil:
    struct rx_metadata:
        uint32_t has

    enum:
        RX_METADATA_MAGIC
        RX_METADATA_FLAGS


cdef enum:
    RX_METADATA_BYTES = sizeof(rx_metadata)
    XDP_TX_METADATA = 1 << 1            # xdp_desc.options, since Linux 6.8
    XDP_TXMD_FLAGS_TIMESTAMP = 1 << 0
    XDP_TXMD_FLAGS_CHECKSUM = 1 << 1


cdef struct tx_metadata:                # struct xsk_tx_metadata, and the last member is ours
    uint64_t flags
    uint16_t checksum_start             # once sent, the timestamp is in these three
    uint16_t checksum_offset
    uint32_t zero
    uint64_t launch_time
    uint64_t number                     # of the packet


cdef inline void take_metadata(FramePool* pool, uint64_t addr, uint8_t* row) noexcept nogil:
    """Copy what the program wrote in front of a packet, all zero if it did not; never twice."""
    cdef rx_metadata* found
    cdef rx_metadata* copied = <rx_metadata*>row
    memset(row, 0, sizeof(rx_metadata))
    if addr & (pool.frame_size - 1) < sizeof(rx_metadata):
        return
    found = <rx_metadata*>(pool.data + addr - sizeof(rx_metadata))
    if found.has & ~<uint32_t>RX_METADATA_FLAGS != <uint32_t>RX_METADATA_MAGIC:
        return
    memcpy(row, found, sizeof(rx_metadata))
    copied.has &= RX_METADATA_FLAGS
    found.has = 0                       # the next packet in this frame may have none


cdef inline tx_metadata* metadata_of(const FramePool* pool, uint64_t addr) noexcept nogil:
    """Find what is asked for a packet to be sent, or was; NULL where there is no room for it."""
    if pool.tx_room == 0 or addr >= pool.umem_size or addr & (pool.frame_size - 1) < pool.tx_room:
        return NULL
    return <tx_metadata*>(pool.data + addr - pool.tx_room)


cdef inline void ask_nothing(const FramePool* pool, uint64_t addr) noexcept nogil:
    """Forget what was asked for an earlier packet in this frame."""
    cdef tx_metadata* metadata = metadata_of(pool, addr)
    if metadata != NULL:
        metadata.flags = 0


cdef inline bint take_timestamp(const FramePool* pool, uint64_t addr, uint64_t* number,
                                uint64_t* timestamp) noexcept nogil:
    """Read the timestamp of a packet sent, 0 if it got none; False if none was asked for."""
    cdef tx_metadata* metadata = metadata_of(pool, addr)
    if metadata == NULL or not metadata.flags & XDP_TXMD_FLAGS_TIMESTAMP:
        return False
    metadata.flags = 0
    number[0] = metadata.number
    memcpy(timestamp, &metadata.checksum_start, sizeof(uint64_t))
    if timestamp[0] >> 32 == 0:         # as it was written: no clock is that near to its zero
        timestamp[0] = 0
    return True
