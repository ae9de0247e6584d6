# What becomes of a burst: a rule says it, or a policy; the kernel may be told for the next ones.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from l2fwd._classify cimport (
    MAX_BURST, Classifier, Packet, Table, packet_key, rule_action,
)


cdef extern from "l2fwd.h" nogil:
    enum:
        ACTION_BY_POLICY
        ACTION_NOT_LEARNED
        FLOW_NEW

    struct rule_hits:
        uint64_t packets
        uint64_t bytes

    struct flow_key:
        uint16_t queue
        uint16_t mask_slot
        uint32_t zero
        packet_key packet

    struct flow:
        flow_key key
        rule_action action
        uint64_t packets
        uint64_t bytes
        uint64_t last_seen
        uint64_t wait_for

    uint64_t hash_flow "hash_key"(const void* key)

    struct queue_progress:
        uint64_t sent_up
        uint64_t done


# Kernel calls, as pointers: this file knows no libbpf, and tests put their own in.
ctypedef int (*insert_function)(int fd, const void* keys, const void* values,
                                uint32_t* count) noexcept nogil
ctypedef int (*host_function)(int fd, uint8_t* data, uint32_t length,
                              uint32_t ifindex) noexcept nogil
# A user's code: for a burst, or for one packet at a time.
ctypedef void (*burst_policy)(const Packet* packets, rule_action* actions, uint32_t count,
                              uint8_t* umem) noexcept nogil
ctypedef void (*packet_policy)(const Packet* packet, rule_action* action,
                               uint8_t* data) noexcept nogil


cdef enum:
    MAX_PORTS = 16                  # links of one job
    RECENT_KEYS = 4096              # learned lately; a power of two
    RECENT_NS = 500000000
    LAST_ASKS_NS = 250000000        # how long a stopping worker asks a policy in Python


cdef struct Learner:
    insert_function insert          # NULL: nothing is learned
    int fd                          # of the flow table
    uint16_t queue                  # RX queue id
    uint64_t per_second             # inserts allowed
    double tokens
    uint64_t filled                 # ns, when tokens were added
    uint64_t forget                 # ns, when the recent keys are forgotten
    uint64_t recent[RECENT_KEYS]    # hashes
    uint64_t hashes[MAX_BURST]      # of the keys of those flows
    flow flows[MAX_BURST]
    uint64_t inserted
    uint64_t limited                # not inserted: too many a second
    uint64_t failed                 # the kernel refused


cdef struct Policy:
    void* ask                       # a Python callable, held by the Decider; or NULL
    burst_policy for_burst
    packet_policy for_packet
    uint16_t asked                  # packets of this burst
    uint16_t indices[MAX_BURST]
    Packet packets[MAX_BURST]
    rule_action actions[MAX_BURST]
    uint64_t deadline               # ns: ``ask`` is not called after it; 0: none
    uint64_t calls
    uint64_t failures               # bursts that raised


cdef struct Decision:
    Table* table                    # in force; another thread puts a new one here
    Packet packets[MAX_BURST]
    const rule_action* actions[MAX_BURST]
    uint32_t ifindexes[MAX_PORTS]   # of the worker's ports, in their order
    uint32_t port_count
    rule_hits* hits                 # by rule id; one writer
    uint32_t rules
    Policy policy
    Learner learner


cdef inline int port_of(const Decision* decision, uint32_t ifindex) noexcept nogil:
    """Find the place of a link among the worker's ports; -1 if it is none of them."""
    cdef int place
    for place in range(<int>decision.port_count):
        if decision.ifindexes[place] == ifindex:
            return place
    return -1


cdef class Decider:
    cdef Decision state
    cdef readonly Classifier classifier  # in force
    cdef readonly object ask


cdef void end_asking(Policy* policy) noexcept nogil
cdef void decide(Decision* decision, const Table* table, uint32_t count,
                 uint8_t* umem) noexcept nogil
cdef void learn(Decision* decision, const Table* table, uint32_t count) noexcept nogil
