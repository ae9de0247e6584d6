"""From a packet to the rule that takes it, and the change the rule asks for.

A tuple-space search: one hash table per mask, masks in the order of the best rule under them.
A burst is looked up together, so that the cache misses of its packets overlap.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memmove, memset

from l2fwd._rings cimport FramePool
from l2fwd._xdp cimport xdp_desc

import os

from l2fwd.abi import VERDICTS
from l2fwd.errors import ConfigError
from l2fwd.rule_table import ACTION


cdef extern from * nogil:
    """
    #include <arpa/inet.h>
    #include <sys/mman.h>

    /* Multiply, and fold the product: each bit of both ends in each bit of the result. */
    static inline uint64_t l2fwd_fold(uint64_t a, uint64_t b)
    {
        unsigned __int128 product = (unsigned __int128)a * b;

        return (uint64_t)product ^ (uint64_t)(product >> 64);
    }
    """
    uint64_t fold "l2fwd_fold"(uint64_t a, uint64_t b)
    uint64_t MULTIPLIER "0x9e3779b97f4a7c15ULL"     # odd, and its bits look random
    uint16_t htons(uint16_t number)
    uint16_t ntohs(uint16_t number)
    void prefetch "__builtin_prefetch"(const void* address)
    int MADV_HUGEPAGE
    int madvise(void* start, size_t length, int advice)
    int posix_memalign(void** pointer, size_t alignment, size_t size)


cdef enum:
    ETHERNET_HEADER_BYTES = 14
    VLAN_TAG_BYTES = 4
    MAX_EXTENSION_HEADERS = 8
    IPV4_FRAGMENT_OFFSET = 0x1fff
    IPV6_FRAGMENT_OFFSET = 0xfff8
    PAGE_BYTES = 4096
    HUGE_PAGE_BYTES = 2 << 20


# Parsing: l2fwd/rule_keys.py says what a packet shows, kern/parse.h reads it in the kernel.

cdef inline uint16_t read_be16(const uint8_t* data) noexcept nogil:
    return <uint16_t>(data[0] << 8 | data[1])


cdef inline bint is_vlan(uint16_t ethertype) noexcept nogil:
    return ethertype == 0x8100 or ethertype == 0x88a8 or ethertype == 0x9100


cdef inline void parse_ports(const uint8_t* data, const uint8_t* end,
                             packet_key* key) noexcept nogil:
    if key.proto not in (6, 17, 132, 136) or end - data < 4:
        return
    memcpy(&key.sport, data, 4)
    key.flags |= KEY_HAS_PORTS


cdef inline void parse_ipv4(const uint8_t* data, const uint8_t* end,
                            packet_key* key) noexcept nogil:
    cdef uint32_t length
    if end - data < 20 or data[0] >> 4 != 4:
        return
    length = (data[0] & 15) * 4
    if length < 20 or end - data < length or read_be16(data + 2) < length:
        return
    key.ip_version = 4
    key.proto = data[9]
    memcpy(key.src, data + 12, 4)
    memcpy(key.dst, data + 16, 4)
    if not read_be16(data + 6) & IPV4_FRAGMENT_OFFSET:
        parse_ports(data + length, end, key)


cdef inline uint32_t extension_length(uint8_t proto, const uint8_t* data) noexcept nogil:
    """Bytes of an IPv6 extension header; 0 if ``proto`` is none."""
    if proto == 44:
        return 8
    if proto == 51:
        return (data[1] + 2) * 4
    return (data[1] + 1) * 8 if proto in (0, 43, 60) else 0


cdef void parse_ipv6(const uint8_t* data, const uint8_t* end, packet_key* key) noexcept nogil:
    cdef uint8_t proto
    cdef uint32_t length
    cdef int _i
    if end - data < 40 or data[0] >> 4 != 6:
        return
    key.ip_version = 6
    memcpy(key.src, data + 8, 16)
    memcpy(key.dst, data + 24, 16)
    proto = data[6]
    data += 40
    for _i in range(MAX_EXTENSION_HEADERS):
        if end - data < 4:
            break
        length = extension_length(proto, data)
        if length == 0 or end - data < length:
            break
        if proto == 44 and read_be16(data + 2) & IPV6_FRAGMENT_OFFSET:
            key.proto = data[0]
            return                  # a later fragment has no ports
        proto = data[0]
        data += length
    key.proto = proto
    parse_ports(data, end, key)


cdef void parse_packet(const uint8_t* data, uint32_t length, uint32_t in_ifindex,
                       packet_key* key) noexcept nogil:
    """Fill ``key`` from a packet of at least an Ethernet header."""
    cdef const uint8_t* end = data + length
    cdef uint16_t ethertype = read_be16(data + 12)
    memset(key, 0, sizeof(packet_key))
    key.in_ifindex = in_ifindex
    memcpy(key.dst_mac, data, 12)
    # IEEE 802.1Q, 8.6.3: meant for the next bridge.
    if data[0] == 1 and data[1] == 0x80 and data[2] == 0xc2 and not data[3] | data[4] \
            and data[5] <= 15:
        key.flags |= KEY_LINK_LOCAL
    key.vlan_outer = key.vlan_inner = NO_VLAN
    data += ETHERNET_HEADER_BYTES
    if is_vlan(ethertype) and end - data >= VLAN_TAG_BYTES:
        key.vlan_outer = htons(read_be16(data) & 0x0fff)
        ethertype = read_be16(data + 2)
        data += VLAN_TAG_BYTES
        if is_vlan(ethertype) and end - data >= VLAN_TAG_BYTES:
            key.vlan_inner = htons(read_be16(data) & 0x0fff)
            ethertype = read_be16(data + 2)
            data += VLAN_TAG_BYTES
    key.ethertype = htons(ethertype)
    if ethertype == 0x0800:
        parse_ipv4(data, end, key)
    elif ethertype == 0x86dd:
        parse_ipv6(data, end, key)


# Look-up

cdef inline uint64_t hash_words(uint64_t seed, const MaskTable* mask,
                                const uint64_t* key) noexcept nogil:
    cdef uint64_t hashed = seed
    cdef uint32_t i
    for i in range(mask.word_count):
        hashed = fold(hashed ^ (key[mask.words[i]] & mask.mask[mask.words[i]]), MULTIPLIER)
    return hashed


cdef uint64_t hash_key(uint64_t seed, const packet_key* key) noexcept nogil:
    """Hash all of a key."""
    cdef const uint64_t* words = <const uint64_t*>key
    cdef uint64_t hashed = seed
    cdef int i
    for i in range(KEY_WORDS):
        hashed = fold(hashed ^ words[i], MULTIPLIER)
    return hashed


cdef inline uint64_t* slot_of(const MaskTable* mask, uint64_t hashed) noexcept nogil:
    return mask.slots + (hashed & mask.slot_mask) * (mask.word_count + 1)


cdef inline bint slot_holds(const MaskTable* mask, const uint64_t* slot,
                            const uint64_t* key) noexcept nogil:
    cdef uint32_t i
    for i in range(mask.word_count):
        if slot[1 + i] != key[mask.words[i]] & mask.mask[mask.words[i]]:
            return False
    return True


cdef inline const rule_action* probe(const Table* table, const MaskTable* mask, uint64_t hashed,
                                     const uint64_t* key) noexcept nogil:
    """Return the action of a masked key, or NULL.  Tables are half empty: it ends."""
    cdef const uint64_t* slot
    cdef uint64_t tag = hashed >> 32
    while True:
        slot = slot_of(mask, hashed)
        if slot[0] == 0:
            return NULL
        # The upper half of a head is the hash's, the lower half the entry's index plus one.
        if slot[0] >> 32 == tag and slot_holds(mask, slot, key):
            return &table.actions[<uint32_t>slot[0] - 1]
        hashed += 1


cdef void classify(const Table* table, const Packet* packets, uint32_t count,
                   const rule_action** found) noexcept nogil:
    """Find the rule of least rank for each of up to ``MAX_BURST`` packets; NULL if none."""
    cdef const rule_action* candidates[MAX_BURST]
    cdef uint64_t hashes[MAX_BURST]
    cdef uint32_t open[MAX_BURST]           # packets that this mask may still serve better
    cdef const MaskTable* mask
    cdef const uint64_t* key
    cdef uint32_t place, i, j, left
    for i in range(count):
        found[i] = NULL
    for place in range(table.mask_count):
        mask = &table.masks[place]
        left = 0
        for i in range(count):
            if found[i] == NULL or found[i].rank > mask.best_rank:
                hashes[left] = hash_words(table.seed, mask, <const uint64_t*>&packets[i].key)
                prefetch(slot_of(mask, hashes[left]))
                open[left] = i
                left += 1
        if left == 0:
            return
        for j in range(left):
            key = <const uint64_t*>&packets[open[j]].key
            candidates[j] = probe(table, mask, hashes[j], key)
            prefetch(candidates[j])
        for j in range(left):
            i = open[j]
            if candidates[j] != NULL and (
                    found[i] == NULL or candidates[j].rank < found[i].rank):
                found[i] = candidates[j]


# Changes, in the order of enum rule_change

cdef inline uint32_t ip_offset(const packet_key* key) noexcept nogil:
    return (ETHERNET_HEADER_BYTES + VLAN_TAG_BYTES * (key.vlan_outer != NO_VLAN)
            + VLAN_TAG_BYTES * (key.vlan_inner != NO_VLAN))


cdef bint ttl_allows(const uint8_t* data, const packet_key* key) noexcept nogil:
    """Tell whether one hop more is left; asked before any change."""
    if key.ip_version == 4:
        return data[ip_offset(key) + 8] > 1
    if key.ip_version == 6:
        return data[ip_offset(key) + 7] > 1
    return True


cdef inline void dec_ttl(uint8_t* data, const packet_key* key) noexcept nogil:
    cdef uint8_t* ip = data + ip_offset(key)
    cdef uint32_t total
    if key.ip_version == 6:
        ip[7] -= 1
    if key.ip_version != 4:
        return
    # RFC 1624, equation 3, over the word that the TTL is the high byte of.
    total = <uint16_t>~read_be16(ip + 10) + <uint16_t>~read_be16(ip + 8)
    ip[8] -= 1
    total += read_be16(ip + 8)
    total = (total & 0xffff) + (total >> 16)
    total = (total & 0xffff) + (total >> 16)
    ip[10] = <uint8_t>(~total >> 8)
    ip[11] = <uint8_t>~total


cdef inline void change_macs(uint8_t* data, const rule_action* action) noexcept nogil:
    cdef uint8_t mac[6]
    if action.changes & CHANGE_SWAP_MAC:
        memcpy(mac, data + 6, 6)
        memcpy(data + 6, data, 6)
        memcpy(data, mac, 6)
    if action.changes & CHANGE_SRC_MAC:
        memcpy(data + 6, action.src_mac, 6)
    if action.changes & CHANGE_DST_MAC:
        memcpy(data, action.dst_mac, 6)


cdef inline void push_vlan(uint8_t* data, uint16_t vlan) noexcept nogil:
    """Add a tag to the packet that began at ``data + VLAN_TAG_BYTES``."""
    memmove(data, data + VLAN_TAG_BYTES, 12)
    data[12], data[13] = 0x81, 0x00
    data[14], data[15] = <uint8_t>(vlan >> 8), <uint8_t>vlan


cdef bint change_packet(const FramePool* pool, xdp_desc* desc, const packet_key* key,
                        const rule_action* action) noexcept nogil:
    """Do what the action says; False, and no change of place, if the frame has no room.

    Tags come and go at the front: the data starts elsewhere in its frame then.
    """
    cdef uint8_t* data = pool.data + desc.addr
    if action.changes & CHANGE_DEC_TTL:
        dec_ttl(data, key)
    change_macs(data, action)
    if action.changes & CHANGE_POP_VLAN and key.vlan_outer != NO_VLAN:
        memmove(data + VLAN_TAG_BYTES, data, 12)
        desc.addr += VLAN_TAG_BYTES
        desc.len -= VLAN_TAG_BYTES
    if action.changes & CHANGE_PUSH_VLAN:
        if desc.addr & (pool.frame_size - 1) < VLAN_TAG_BYTES:
            return False
        desc.addr -= VLAN_TAG_BYTES
        desc.len += VLAN_TAG_BYTES
        push_vlan(pool.data + desc.addr, action.vlan)
    return True


cdef class Classifier:
    """A rule table, compiled; immutable, so that any number of workers may search it.

    Parameters
    ----------
    masks : sequence of (bytes, int)
        64 bytes and the best rank under each, ascending by rank; ``CompiledRules.masks``.
    entries : dict of (int, bytes) to bytes
        ``CompiledRules.entries``.
    miss : str
        What becomes of packets that no rule takes: ``pass``, ``drop`` or ``user``.
    flow_mask : bytes, optional
        64 bytes: what a learned flow is told by.
    flow_slot : int
        Where the kernel keeps that mask.

    Raises
    ------
    ConfigError
        If there are more masks than the search has.
    """

    def __cinit__(self, masks, dict entries, str miss="pass", bytes flow_mask=bytes(64),
                  uint16_t flow_slot=0):
        cdef uint32_t index = 0
        cdef bytes packed, key
        if len(masks) > MAX_MASKS:
            raise ConfigError(f"{len(masks)} masks, {MAX_MASKS} are possible")
        if len(flow_mask) != sizeof(packet_key):
            raise ConfigError(f"a mask has {sizeof(packet_key)} bytes, got {len(flow_mask)}")
        self.table.seed = int.from_bytes(os.urandom(8), "little")
        self.table.miss.verdict = VERDICTS[miss]
        self.table.miss.rule = 0xffffffff
        self.table.flow_slot = flow_slot
        memcpy(&self.table.flow_mask, <const uint8_t*>flow_mask, sizeof(packet_key))
        self.table.actions = <rule_action*>calloc(max(len(entries), 1), sizeof(rule_action))
        if self.table.actions == NULL:
            raise MemoryError
        counts = [0] * len(masks)
        for place, _ in entries:
            counts[place] += 1
        for place, (mask, best_rank) in enumerate(masks):
            memcpy(self.table.masks[place].mask, <const uint8_t*>mask, sizeof(packet_key))
            self.table.masks[place].best_rank = best_rank
            self._allocate(place, counts[place])
        self.table.mask_count = len(masks)
        for (place, key), packed in entries.items():
            memcpy(&self.table.actions[index], <const uint8_t*>packed, sizeof(rule_action))
            self._insert(place, key, index)
            index += 1
        self.table.action_count = index

    def __dealloc__(self):
        cdef int place
        for place in range(MAX_MASKS):
            free(self.table.masks[place].slots)
        free(self.table.actions)

    cdef void _allocate(self, uint32_t place, uint32_t count) except *:
        """Make room for twice the entries, so that a search soon meets a free slot."""
        cdef MaskTable* mask = &self.table.masks[place]
        cdef uint64_t slots = 2
        cdef int word
        cdef void* memory = NULL
        for word in range(KEY_WORDS):
            if mask.mask[word]:
                mask.words[mask.word_count] = word
                mask.word_count += 1
        while slots < 2 * count:
            slots *= 2
        size = slots * (mask.word_count + 1) * sizeof(uint64_t)
        large = size >= HUGE_PAGE_BYTES
        if posix_memalign(&memory, HUGE_PAGE_BYTES if large else PAGE_BYTES, size):
            raise MemoryError
        mask.slots = <uint64_t*>memory
        if large:
            madvise(memory, size, MADV_HUGEPAGE)    # a look-up then costs no page walk
        memset(memory, 0, size)
        mask.slot_mask = slots - 1

    cdef void _insert(self, uint32_t place, const uint8_t* key, uint32_t index) noexcept:
        cdef MaskTable* mask = &self.table.masks[place]
        cdef uint64_t words[KEY_WORDS]
        cdef uint64_t hashed
        cdef uint64_t* slot
        cdef uint32_t i
        memcpy(words, key, sizeof(packet_key))
        hashed = hash_words(self.table.seed, mask, words)
        head = hashed >> 32 << 32 | (index + 1)
        slot = slot_of(mask, hashed)
        while slot[0]:
            hashed += 1
            slot = slot_of(mask, hashed)
        slot[0] = head
        for i in range(mask.word_count):
            slot[1 + i] = words[mask.words[i]]

    def __len__(self):
        """Entries of all masks."""
        return self.table.action_count

    def key(self, const uint8_t[::1] frame, uint32_t in_ifindex):
        """Return what a frame shows to the rules: 64 bytes, ``rule_keys.KEY``; None below 14."""
        cdef packet_key key
        if frame.shape[0] < ETHERNET_HEADER_BYTES:
            return None
        parse_packet(&frame[0], frame.shape[0], in_ifindex, &key)
        return (<const uint8_t*>&key)[:sizeof(packet_key)]

    def classify(self, const uint8_t[:, ::1] keys, uint32_t[::1] ranks, uint32_t repeat=1):
        """Find the rank of the rule that takes each key.

        Parameters
        ----------
        keys : uint8, shape (n, 64)
        ranks : uint32, shape (n,)
            Gets the ranks; 0xffffffff where no rule takes it.
        repeat : int
            Times to look all of them up, for measuring.
        """
        cdef const rule_action* found[MAX_BURST]
        cdef Packet packets[MAX_BURST]
        cdef uint32_t count = keys.shape[0]
        cdef uint32_t bursts = (count + MAX_BURST - 1) // MAX_BURST
        cdef uint32_t first, burst, i, _turn, each
        if keys.shape[1] != sizeof(packet_key) or ranks.shape[0] < count:
            raise ConfigError("keys must have shape (n, 64), ranks shape (n,)")
        with nogil:
            for _turn in range(repeat):
                for each in range(bursts):
                    first = each * MAX_BURST
                    burst = min(count - first, <uint32_t>MAX_BURST)
                    for i in range(burst):
                        memcpy(&packets[i].key, &keys[first + i, 0], sizeof(packet_key))
                    classify(&self.table, packets, burst, found)
                    for i in range(burst):
                        ranks[first + i] = 0xffffffff if found[i] == NULL else found[i].rank

    def decide(self, const uint8_t[::1] frame, uint32_t in_ifindex):
        """Return the verdict on one frame, and what becomes of it; for tests and ``rules test``.

        Returns
        -------
        (str, bytes, int or None)
            Verdict, the frame as it leaves, and the rank of its rule.
        """
        cdef Packet packet
        cdef const rule_action* action
        cdef FramePool pool
        cdef xdp_desc desc
        cdef uint8_t[::1] room = bytearray(frame.shape[0] + 2 * VLAN_TAG_BYTES)
        names = {number: name for name, number in VERDICTS.items()}
        rank = None
        if frame.shape[0] < ETHERNET_HEADER_BYTES:
            return "pass", bytes(frame), None
        room[VLAN_TAG_BYTES:VLAN_TAG_BYTES + frame.shape[0]] = frame
        pool.data = &room[0]
        pool.frame_size = 1 << 31
        desc.addr, desc.len = VLAN_TAG_BYTES, frame.shape[0]
        parse_packet(&frame[0], desc.len, in_ifindex, &packet.key)
        classify(&self.table, &packet, 1, &action)
        if action != NULL:
            rank = action.rank
        else:
            action = &self.table.miss
        verdict = names[action.verdict]
        if verdict == "out":
            if action.changes & CHANGE_DEC_TTL and not ttl_allows(&frame[0], &packet.key):
                return "pass", bytes(frame), rank
            change_packet(&pool, &desc, &packet.key, action)
        return verdict, bytes(room[desc.addr:desc.addr + desc.len]), rank

    def actions(self):
        """Return all actions: bytes, struct rule_action one after the other."""
        return (<const uint8_t*>self.table.actions)[:self.table.action_count * ACTION.size]

    def miss(self):
        """Return the action of what no rule takes: bytes, one struct rule_action."""
        return (<const uint8_t*>&self.table.miss)[:ACTION.size]
