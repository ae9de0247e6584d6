# From a packet to its rule, and what the rule does to it.  The layouts are the kernel side's.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from l2fwd._rings cimport FramePool
from l2fwd._xdp cimport xdp_desc


cdef extern from "l2fwd.h" nogil:
    enum:
        CHANGE_DEC_TTL
        CHANGE_SWAP_MAC
        CHANGE_SRC_MAC
        CHANGE_DST_MAC
        CHANGE_POP_VLAN
        CHANGE_PUSH_VLAN
        KEY_HAS_PORTS
        KEY_LINK_LOCAL
        MAX_MASKS
        NO_VLAN
        VERDICT_PASS
        VERDICT_DROP
        VERDICT_OUT
        VERDICT_USER

    struct packet_key:
        uint32_t in_ifindex
        uint8_t dst_mac[6]
        uint8_t src_mac[6]
        uint16_t ethertype          # this and all that follows in network byte order
        uint16_t vlan_outer
        uint16_t vlan_inner
        uint8_t proto
        uint8_t ip_version
        uint16_t sport
        uint16_t dport
        uint8_t flags
        uint8_t src[16]
        uint8_t dst[16]

    struct rule_action:
        uint32_t rank
        uint32_t rule
        uint32_t out_ifindex
        uint16_t verdict
        uint16_t changes
        uint16_t vlan
        uint8_t dst_mac[6]
        uint8_t src_mac[6]
        uint16_t flags


cdef enum:
    KEY_BYTES = 64
    WORD_BYTES = 8
    KEY_WORDS = 8
    MAX_BURST = 256                 # packets classified together
    BUCKET_SLOTS = 8


cdef struct Packet:                 # PACKET of l2fwd/policy.py
    uint64_t addr                   # byte offset of the data in the UMEM
    uint32_t length                 # bytes there
    uint32_t more                   # bytes in further frames
    packet_key key


cdef struct Bucket:                 # one cache line
    uint64_t marks                  # a byte of the hash per slot, 0 is free; filled from the lowest
    uint32_t entries[BUCKET_SLOTS]
    uint64_t pad[3]


cdef struct MaskTable:
    uint64_t mask[KEY_WORDS]        # eight bytes of the key each,
    uint8_t offsets[KEY_WORDS]      # that begin there; gaps in the mask are left out
    uint32_t word_count             # the mask of others is zero
    uint32_t best_rank
    Bucket* buckets
    uint64_t bucket_mask            # buckets - 1
    uint8_t* entries                # each a rule_action, then the words of its key
    uint32_t entry_shift            # an entry has 1 << entry_shift bytes
    uint32_t entry_count


cdef struct Table:
    MaskTable masks[MAX_MASKS]      # ascending by best rank
    uint32_t mask_count
    rule_action miss                # of what no rule takes
    uint64_t seed
    packet_key flow_mask            # what a learned flow is told by
    uint16_t flow_slot


cdef void parse_packet(const uint8_t* data, uint32_t length, uint32_t in_ifindex,
                       packet_key* key) noexcept nogil
cdef void classify(const Table* table, const Packet* packets, uint32_t count,
                   const rule_action** found) noexcept nogil
cdef bint ttl_allows(const uint8_t* data, const packet_key* key) noexcept nogil
cdef bint change_packet(const FramePool* pool, xdp_desc* desc, const packet_key* key,
                        const rule_action* action) noexcept nogil
cdef uint64_t hash_key(uint64_t seed, const packet_key* key) noexcept nogil


cdef class Classifier:
    cdef Table table
    cdef void _allocate(self, MaskTable* mask, const uint8_t* key_mask, uint32_t count) except *
    cdef void _insert(self, MaskTable* mask, const uint8_t* key, const uint8_t* action) noexcept
