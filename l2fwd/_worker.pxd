# The forwarding loop: one thread, its ports, one UMEM.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from l2fwd._classify cimport Table
from l2fwd._decide cimport MAX_PORTS, Decider, Decision, host_function
from l2fwd._rings cimport Port, PortState


cdef enum RewriteKind:
    REWRITE_NOTHING = 0
    REWRITE_DST_MAC = 1
    REWRITE_SWAP_MAC = 2            # swap, then set the destination if both are asked for


cdef struct Rewrite:
    int kind                        # RewriteKind flags
    uint8_t dst_mac[6]


cdef struct Progress:               # of one port: what it received and all of it has left
    uint64_t* done                  # shared with the kernel; NULL if nothing is learned
    uint64_t seen                   # number of the last packet received
    uint64_t pending                # number to tell once the targets are met; 0 if none
    uint64_t targets[MAX_PORTS]     # packets that each port must have completed by then


cdef struct Rest:                   # what the worker knows of its sleeps
    int64_t coalesce_ns             # of a nap, in which packets gather; 0: none
    int64_t began_ns                # CLOCK_MONOTONIC, of the last sleep
    uint32_t moved                  # packets since
    uint32_t short_sleeps           # one after the other
    uint32_t patience               # how many of these it takes
    bint is_nap                     # the last one


# Serve every port once; return how many packets were received or made, or set ``error``.
ctypedef uint32_t (*turn_function)(WorkerState* worker, int* error) noexcept nogil


cdef struct WorkerState:
    turn_function turn
    void* job                       # state of a Job
    PortState* ports[MAX_PORTS]     # a pair, or with a decider as many as there are links
    uint32_t port_count
    int64_t pause_ns                # bound of the next sleep, by the turn before it; 0: none
    bint wants_room                 # sleep until there is room to send, too
    Rewrite rightward               # applied to packets from the first port to the second
    Rewrite leftward
    bint is_plain                   # of all ports: a packet is one frame, of an aligned UMEM
    bint both_ways
    bint busy_poll                  # spin instead of sleeping in poll()
    uint32_t batch_size             # packets
    uint32_t stop                   # StopRequest, set by another thread
    uint32_t epoch                  # odd within a turn
    PortState* failed               # the port whose socket died
    uint64_t turns
    uint64_t sleeps                 # poll calls
    uint64_t naps
    Rest rest
    Decision* decision              # NULL: the pair forwards all to each other
    Table* table                    # the rules of this turn
    host_function give_back
    int host_fd                     # program that gives packets to the host
    Progress progress[MAX_PORTS]


cdef uint32_t forward_burst(PortState* src, PortState* dst, const Rewrite* rewrite,
                            uint32_t batch_size) noexcept nogil
cdef uint32_t forward_chains(PortState* src, PortState* dst, const Rewrite* rewrite,
                             uint32_t batch_size) noexcept nogil
cdef uint32_t decide_burst(WorkerState* worker, uint32_t place) noexcept nogil
cdef int kick_tx(PortState* port) noexcept nogil
cdef int run_worker(WorkerState* worker) noexcept nogil
cdef int socket_error(int fd) noexcept nogil


cdef int kick_port(WorkerState* worker, uint32_t place) noexcept nogil
cdef bint is_stopping(const WorkerState* worker) noexcept nogil


cdef class Job:
    cdef turn_function turn
    cdef void* state                # lives as long as the job


cdef class Worker:
    cdef WorkerState state
    cdef readonly Job job
    cdef readonly tuple ports
    cdef readonly Decider decider
    cdef int _begin(self) except -1
    cdef int _end(self, int error) except -1
