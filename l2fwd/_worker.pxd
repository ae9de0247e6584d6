# The forwarding loop: one thread, two ports, one UMEM.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from l2fwd._rings cimport Port, PortState


cdef enum RewriteKind:
    REWRITE_NOTHING = 0
    REWRITE_DST_MAC = 1
    REWRITE_SWAP_MAC = 2            # swap, then set the destination if both are asked for


cdef struct Rewrite:
    int kind                        # RewriteKind flags
    uint8_t dst_mac[6]


cdef struct WorkerState:
    PortState* left
    PortState* right
    Rewrite rightward               # applied to packets from left to right
    Rewrite leftward
    bint both_ways
    bint busy_poll                  # spin instead of sleeping in poll()
    uint32_t batch_size             # packets
    uint32_t stop                   # StopRequest, set by another thread
    PortState* failed               # the port whose socket died
    uint64_t turns
    uint64_t sleeps                 # poll calls


cdef uint32_t forward_burst(PortState* src, PortState* dst, const Rewrite* rewrite,
                            uint32_t batch_size) noexcept nogil
cdef int kick_tx(PortState* port) noexcept nogil
cdef int run_worker(WorkerState* worker) noexcept nogil


cdef class Worker:
    cdef WorkerState state
    cdef readonly Port left
    cdef readonly Port right
    cdef int _begin(self) except -1
    cdef int _end(self, int error) except -1
