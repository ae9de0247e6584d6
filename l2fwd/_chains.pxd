# Packets in one frame or in several: a chain of descriptors (XDP_USE_SG), also of unaligned UMEMs.
from libc.stdint cimport uint32_t

from l2fwd._rings cimport FramePool, PortState
from l2fwd._xdp cimport xdp_desc


cdef enum:
    MAX_CHAINS = 256                # packets taken together; MAX_BURST of _classify.pxd
    MAX_CHAIN_DESCS = 1024          # descriptors of all of them
    MAX_FRAGMENTS = 64              # of one packet; the kernel has 46 at most (MAX_SKB_FRAGS + 1)


cdef struct Chains:                 # the usable packets of a burst
    uint32_t count
    uint32_t starts[MAX_CHAINS + 1]     # of each one in ``descs``; behind the last, where that ends
    xdp_desc descs[MAX_CHAIN_DESCS]


cdef inline xdp_desc* chain_at(Chains* chains, uint32_t i) noexcept nogil:
    """Find the first descriptor of packet ``i``."""
    return &chains.descs[chains.starts[i]]


cdef inline uint32_t chain_size(const Chains* chains, uint32_t i) noexcept nogil:
    """Count the frames of packet ``i``."""
    return chains.starts[i + 1] - chains.starts[i]


cdef uint32_t next_length(PortState* port) noexcept nogil
cdef void take_chains(PortState* port, uint32_t most, Chains* chains) noexcept nogil
cdef bint send_chain(PortState* port, xdp_desc* descs, uint32_t count,
                     uint32_t* queued) noexcept nogil
cdef void give_chain(FramePool* pool, const xdp_desc* descs, uint32_t count) noexcept nogil
