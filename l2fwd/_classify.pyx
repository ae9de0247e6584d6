"""From a packet to the rule that takes it, and the change the rule asks for.

A tuple-space search: one hash table per mask, masks in the order of the best rule under them.
A burst is looked up together, so that the cache misses of its packets overlap.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memmove, memset

from l2fwd._rings cimport FramePool, frame_start
from l2fwd._xdp cimport prefetch, xdp_desc

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
    uint64_t EACH_BYTE "0x0101010101010101ULL"
    uint32_t NO_RANK "0xffffffffU"
    uint16_t htons(uint16_t number)
    uint16_t ntohs(uint16_t number)
    int trailing_zeros "__builtin_ctzll"(uint64_t number)
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
    MEASURED_BURST = 64             # DEFAULT_BATCH_SIZE of config.py


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

cdef inline uint64_t masked_word(const MaskTable* mask, const packet_key* key,
                                 uint32_t i) noexcept nogil:
    cdef uint64_t word
    memcpy(&word, <const uint8_t*>key + mask.offsets[i], sizeof(word))
    return word & mask.mask[i]


cdef inline uint64_t hash_masked(uint64_t seed, const MaskTable* mask,
                                 const packet_key* key) noexcept nogil:
    cdef uint64_t hashed = seed
    cdef uint32_t i
    for i in range(0, mask.word_count, 2):
        hashed = fold(hashed ^ masked_word(mask, key, i),
                      MULTIPLIER ^ masked_word(mask, key, i + 1))
    return hashed


cdef uint64_t hash_key(uint64_t seed, const packet_key* key) noexcept nogil:
    """Hash all of a key."""
    cdef uint64_t words[KEY_WORDS]
    cdef uint64_t hashed = seed
    cdef int i
    memcpy(words, key, KEY_BYTES)
    for i in range(KEY_WORDS):
        hashed = fold(hashed ^ words[i], MULTIPLIER)
    return hashed


cdef inline Bucket* bucket_of(const MaskTable* mask, uint64_t hashed) noexcept nogil:
    return &mask.buckets[hashed & mask.bucket_mask]


cdef inline uint64_t mark_of(uint64_t hashed) noexcept nogil:
    cdef uint64_t mark = hashed >> 56
    return mark + (mark == 0)


cdef inline uint64_t marked_slots(const Bucket* bucket, uint64_t hashed) noexcept nogil:
    """The top bit of each byte whose slot may hold the key; above the lowest, also of others."""
    cdef uint64_t differences = bucket.marks ^ mark_of(hashed) * EACH_BYTE
    return (differences - EACH_BYTE) & ~differences & EACH_BYTE << 7


cdef inline bint is_full(const Bucket* bucket) noexcept nogil:
    return bucket.marks >> 56 != 0


cdef inline rule_action* entry_at(const MaskTable* mask, uint32_t index) noexcept nogil:
    return <rule_action*>(mask.entries + (<size_t>index << mask.entry_shift))


cdef inline bint entry_holds(const MaskTable* mask, const rule_action* entry,
                             const packet_key* key) noexcept nogil:
    cdef const uint64_t* words = <const uint64_t*>(entry + 1)
    cdef uint64_t differences = 0
    cdef uint32_t i
    for i in range(mask.word_count):
        differences |= words[i] ^ masked_word(mask, key, i)
    return differences == 0


cdef const rule_action* search(const MaskTable* mask, uint64_t hashed,
                               const packet_key* key) noexcept nogil:
    """Return the entry of a key, or NULL; for the few that are not where they are sought first."""
    cdef const Bucket* bucket
    cdef const rule_action* entry
    cdef uint64_t marked
    cdef uint64_t home = hashed
    while True:                     # half of the slots are free: it ends
        bucket = bucket_of(mask, home)
        marked = marked_slots(bucket, hashed)
        while marked:
            entry = entry_at(mask, bucket.entries[trailing_zeros(marked) >> 3])
            if entry_holds(mask, entry, key):
                return entry
            marked &= marked - 1
        if not is_full(bucket):
            return NULL
        home += 1


# Lists are made without branches: which packet has a rule under which mask cannot be foreseen.

cdef inline uint32_t keep_open(uint32_t* open, uint32_t count, const uint32_t* ranks,
                               uint32_t best_rank) noexcept nogil:
    """Keep the packets that a rule of ``best_rank`` would serve better; return how many."""
    cdef uint32_t kept = 0
    cdef uint32_t j, i
    for j in range(count):
        i = open[j]
        open[kept] = i
        kept += ranks[i] > best_rank
    return kept


cdef inline uint32_t list_hits(const MaskTable* mask, const uint64_t* hashes, uint32_t count,
                               uint32_t* hits, const rule_action** entries) noexcept nogil:
    """List which hashes may have an entry, and where it is most likely; return how many."""
    cdef const Bucket* bucket
    cdef uint64_t marked
    cdef uint32_t hit_count = 0
    cdef uint32_t j
    for j in range(count):
        bucket = bucket_of(mask, hashes[j])
        hits[hit_count] = j
        hit_count += (marked_slots(bucket, hashes[j]) != 0) | is_full(bucket)
    for j in range(hit_count):
        bucket = bucket_of(mask, hashes[hits[j]])
        marked = marked_slots(bucket, hashes[hits[j]]) | EACH_BYTE << 63
        entries[j] = entry_at(mask, bucket.entries[trailing_zeros(marked) >> 3])
        prefetch(entries[j])
    return hit_count


cdef void classify(const Table* table, const Packet* packets, uint32_t count,
                   const rule_action** found) noexcept nogil:
    """Find the rule of least rank for each of up to ``MAX_BURST`` packets; NULL if none."""
    cdef uint32_t ranks[MAX_BURST]          # of what is found, by packet
    cdef uint32_t open[MAX_BURST]           # packets that a mask may still serve better
    cdef uint64_t hashes[MAX_BURST]         # of their keys
    cdef uint32_t hits[MAX_BURST]           # places in ``open``
    cdef const rule_action* entries[MAX_BURST]
    cdef const rule_action* entry
    cdef const MaskTable* mask
    cdef uint32_t place, i, j, hit_count
    cdef uint32_t open_count = count
    for i in range(count):
        found[i] = NULL
        ranks[i] = NO_RANK
        open[i] = i
    for place in range(table.mask_count):
        mask = &table.masks[place]
        open_count = keep_open(open, open_count, ranks, mask.best_rank)
        if open_count == 0:
            return
        for j in range(open_count):
            hashes[j] = hash_masked(table.seed, mask, &packets[open[j]].key)
            prefetch(bucket_of(mask, hashes[j]))
        hit_count = list_hits(mask, hashes, open_count, hits, entries)
        for j in range(hit_count):
            i = open[hits[j]]
            entry = entries[j]
            if not entry_holds(mask, entry, &packets[i].key):
                entry = search(mask, hashes[hits[j]], &packets[i].key)
            if entry != NULL and entry.rank < ranks[i]:
                ranks[i] = entry.rank
                found[i] = entry


cdef void find_ranks(const Table* table, const Packet* packets, uint32_t count,
                     uint32_t* ranks) noexcept nogil:
    cdef const rule_action* found[MAX_BURST]
    cdef uint32_t i
    classify(table, packets, count, found)
    for i in range(count):
        ranks[i] = NO_RANK if found[i] == NULL else found[i].rank


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
        if desc.addr - frame_start(pool, desc.addr) < VLAN_TAG_BYTES:
            return False
        desc.addr -= VLAN_TAG_BYTES
        desc.len += VLAN_TAG_BYTES
        push_vlan(pool.data + desc.addr, action.vlan)
    return True


cdef void* allocate(size_t size) except NULL:
    """Return zeroed memory, from huge pages if it is large: a look-up then costs no page walk."""
    cdef void* memory = NULL
    cdef bint large = size >= HUGE_PAGE_BYTES
    if posix_memalign(&memory, HUGE_PAGE_BYTES if large else PAGE_BYTES, size):
        raise MemoryError
    if large:
        madvise(memory, size, MADV_HUGEPAGE)
    return memset(memory, 0, size)


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
        If there are more masks than the search has, or something has a wrong size.
    """

    def __cinit__(self, masks, dict entries, str miss="pass", bytes flow_mask=bytes(64),
                  uint16_t flow_slot=0):
        cdef bytes packed, key, mask
        if len(masks) > MAX_MASKS:
            raise ConfigError(f"{len(masks)} masks, {MAX_MASKS} are possible")
        if any(len(each) != KEY_BYTES for each in (flow_mask, *(mask for mask, _ in masks))):
            raise ConfigError(f"a mask has {KEY_BYTES} bytes")
        self.table.seed = int.from_bytes(os.urandom(8), "little")
        self.table.miss.verdict = VERDICTS[miss]
        self.table.miss.rule = 0xffffffff
        self.table.flow_slot = flow_slot
        memcpy(&self.table.flow_mask, <const uint8_t*>flow_mask, KEY_BYTES)
        counts = [0] * len(masks)
        for (place, key), packed in entries.items():
            if len(key) != KEY_BYTES or len(packed) != sizeof(rule_action):
                raise ConfigError(f"a key has {KEY_BYTES} bytes, an action {sizeof(rule_action)}")
            if not 0 <= place < len(masks):
                raise ConfigError(f"an entry is under mask {place}, there are {len(masks)}")
            counts[place] += 1
        for place, (mask, best_rank) in enumerate(masks):
            self.table.masks[place].best_rank = best_rank
            self._allocate(&self.table.masks[place], mask, counts[place])
        self.table.mask_count = len(masks)
        for (place, key), packed in entries.items():
            self._insert(&self.table.masks[<uint32_t>place], key, packed)

    def __dealloc__(self):
        cdef int place
        for place in range(MAX_MASKS):
            free(self.table.masks[place].buckets)
            free(self.table.masks[place].entries)

    cdef void _allocate(self, MaskTable* mask, const uint8_t* key_mask, uint32_t count) except *:
        """Lay out ``count`` entries under a mask, and slots for twice as many."""
        cdef uint64_t buckets = 1
        cdef int offset, start
        cdef int end = 0                # of the word before
        for offset in range(KEY_BYTES):
            if offset < end or not key_mask[offset]:
                continue
            start = min(offset, KEY_BYTES - WORD_BYTES)
            end = start + WORD_BYTES
            mask.offsets[mask.word_count] = start
            # From the offset on: before it is nothing, or what the word before has masked.
            memcpy(<uint8_t*>&mask.mask[mask.word_count] + offset - start, key_mask + offset,
                   end - offset)
            mask.word_count += 1
        mask.entry_shift = 6 if mask.word_count <= 4 else 7     # whole cache lines
        while BUCKET_SLOTS * buckets < 2 * <uint64_t>count:
            buckets *= 2
        mask.bucket_mask = buckets - 1
        mask.buckets = <Bucket*>allocate(buckets * sizeof(Bucket))
        mask.entries = <uint8_t*>allocate(<size_t>max(count, <uint32_t>1) << mask.entry_shift)

    cdef void _insert(self, MaskTable* mask, const uint8_t* key, const uint8_t* action) noexcept:
        cdef rule_action* entry = entry_at(mask, mask.entry_count)
        cdef uint64_t* words = <uint64_t*>(entry + 1)
        cdef const packet_key* masked = <const packet_key*>key
        cdef uint64_t hashed = hash_masked(self.table.seed, mask, masked)
        cdef uint64_t home = hashed
        cdef uint32_t i
        cdef Bucket* bucket
        memcpy(entry, action, sizeof(rule_action))
        for i in range(mask.word_count):
            words[i] = masked_word(mask, masked, i)
        while is_full(bucket_of(mask, home)):
            home += 1
        bucket = bucket_of(mask, home)
        i = 0
        while bucket.marks >> 8 * i & 0xff:
            i += 1
        bucket.marks |= mark_of(hashed) << 8 * i
        bucket.entries[i] = mask.entry_count
        mask.entry_count += 1

    def __len__(self):
        """Entries of all masks."""
        return sum(self.table.masks[place].entry_count for place in range(self.table.mask_count))

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
        cdef Packet packets[MEASURED_BURST]
        cdef uint32_t count = keys.shape[0]
        cdef uint32_t first, burst, i, _turn
        if keys.shape[1] != KEY_BYTES or ranks.shape[0] < count:
            raise ConfigError("keys must have shape (n, 64), ranks shape (n,)")
        with nogil:
            for _turn in range(repeat):
                first = 0
                while first < count:
                    burst = min(count - first, <uint32_t>MEASURED_BURST)
                    for i in range(burst):
                        memcpy(&packets[i].key, &keys[first + i, 0], KEY_BYTES)
                    find_ranks(&self.table, packets, burst, &ranks[first])
                    first += burst

    def classify_frames(self, const uint8_t[:, ::1] frames, uint32_t in_ifindex,
                        uint32_t[::1] ranks):
        """Find the rank of the rule that takes each frame, from its bytes on; for measuring.

        Parameters
        ----------
        frames : uint8, shape (n, length)
            All of one length, 14 bytes or more.
        in_ifindex : int
        ranks : uint32, shape (n,)
            As of ``classify``.
        """
        cdef Packet packets[MEASURED_BURST]
        cdef uint32_t count = frames.shape[0]
        cdef uint32_t length = frames.shape[1]
        cdef uint32_t first = 0
        cdef uint32_t burst, i
        if length < ETHERNET_HEADER_BYTES or ranks.shape[0] < count:
            raise ConfigError("frames must have shape (n, 14 or more), ranks shape (n,)")
        with nogil:
            while first < count:
                burst = min(count - first, <uint32_t>MEASURED_BURST)
                for i in range(burst):
                    parse_packet(&frames[first + i, 0], length, in_ifindex, &packets[i].key)
                find_ranks(&self.table, packets, burst, &ranks[first])
                first += burst

    def parse_frames(self, const uint8_t[:, ::1] frames, uint32_t in_ifindex,
                     uint8_t[:, ::1] keys):
        """Find what each frame shows to the rules; ``key`` for many, for measuring.

        Parameters
        ----------
        frames : uint8, shape (n, length)
            All of one length, 14 bytes or more.
        in_ifindex : int
        keys : uint8, shape (n, 64)
            Gets the keys, ``records.KEY`` each.
        """
        cdef uint32_t count = frames.shape[0]
        cdef uint32_t length = frames.shape[1]
        cdef uint32_t i
        if length < ETHERNET_HEADER_BYTES or keys.shape[0] < count or keys.shape[1] != KEY_BYTES:
            raise ConfigError("frames must have shape (n, 14 or more), keys shape (n, 64)")
        with nogil:
            for i in range(count):
                parse_packet(&frames[i, 0], length, in_ifindex, <packet_key*>&keys[i, 0])

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
        pool.frame_size, pool.frame_mask = 1 << 31, 0
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
        """Return all actions: bytes, struct rule_action one after the other, mask by mask."""
        cdef uint32_t place, i
        found = []
        for place in range(self.table.mask_count):
            for i in range(self.table.masks[place].entry_count):
                found.append((<uint8_t*>entry_at(&self.table.masks[place], i))[:ACTION.size])
        return b"".join(found)

    def miss(self):
        """Return the action of what no rule takes: bytes, one struct rule_action."""
        return (<const uint8_t*>&self.table.miss)[:ACTION.size]
