"""Packets of a generator, checked as they arrive: what is lost, late, double or damaged.

Nothing a packet says is trusted but what its checksum covers.  Its number is held against the
newest ones of its stream, a bit each; its time goes into a histogram of 32 buckets to a power of 2.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from l2fwd._rings cimport (
    PLACE_USER, PortState, pool_give, refill, rx_peek, rx_release, rx_slot, take_packet,
)
from l2fwd._worker cimport Job, WorkerState
from l2fwd._xdp cimport unlikely, xdp_desc


cdef extern from "endian.h" nogil:
    uint16_t be16toh(uint16_t value)
    uint32_t be32toh(uint32_t value)
    uint64_t be64toh(uint64_t value)


cdef extern from * nogil:
    int leading_zeros "__builtin_clzll"(unsigned long long value)


cdef enum:
    MAGIC = 0x6C326677              # NUMBERED_MAGIC of traffic.py
    NUMBERED_BYTES = 22
    UDP_BYTES = 8
    IPV4_BYTES = 20
    IPV6_BYTES = 40
    PROTOCOL_UDP = 17
    FRAGMENT = 0x3FFF               # more to come, or not the first one
    SUB_BITS = 5                    # 32 buckets to a power of two
    NO_STREAM = MAX_STREAMS


cdef struct Datagram:               # one that may be a generator's; all of it lies in the packet
    const uint8_t* addresses        # of the IP header
    uint32_t address_bytes          # of both together
    const uint8_t* udp
    uint32_t udp_bytes              # as the IP header has it


cdef inline uint32_t get_16(const uint8_t* at) noexcept nogil:
    cdef uint16_t value
    memcpy(&value, at, sizeof(value))
    return be16toh(value)


cdef inline uint32_t get_32(const uint8_t* at) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, at, sizeof(value))
    return be32toh(value)


cdef inline uint64_t get_64(const uint8_t* at) noexcept nogil:
    cdef uint64_t value
    memcpy(&value, at, sizeof(value))
    return be64toh(value)


cdef inline uint64_t sum_of_words(const uint8_t* data, uint32_t length) noexcept nogil:
    """Add up 16-bit words, in the order of this machine: all ones stays all ones."""
    cdef uint64_t total = 0
    cdef uint32_t word = 0
    cdef uint32_t i
    for i in range(length // 4):
        memcpy(&word, data + 4 * i, 4)
        total += word
    if length % 4:
        word = 0
        memcpy(&word, data + (length & ~3), length % 4)
        total += word
    return total


cdef inline bint is_all_ones(uint64_t total) noexcept nogil:
    """Fold a sum of words: with a right checksum among them nothing but ones is left."""
    total = <uint32_t>total + (total >> 32)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return total == 0xFFFF


cdef inline uint32_t ip_offset(const uint8_t* data, uint32_t length,
                               uint32_t* ethertype) noexcept nogil:
    """Find what follows the Ethernet header and up to two VLAN tags."""
    cdef uint32_t at = 14
    ethertype[0] = get_16(data + 12)
    while ethertype[0] in (0x8100, 0x88A8) and at < 22 and at + 4 <= length:
        ethertype[0] = get_16(data + at + 2)
        at += 4
    return at


cdef bint find_datagram(const uint8_t* data, uint32_t length, Datagram* found,
                        bint* is_intact) noexcept nogil:
    """Find a UDP datagram that begins as a generator's do; False if there is none.

    ``is_intact`` tells whether its IP header is.
    """
    cdef uint32_t ethertype
    cdef uint32_t at = ip_offset(data, length, &ethertype)
    cdef const uint8_t* ip = data + at
    cdef uint32_t header, ip_bytes
    length -= at
    if ethertype == 0x0800 and length >= IPV4_BYTES and ip[0] >> 4 == 4:
        header = 4 * (ip[0] & 0xF)
        if header < IPV4_BYTES or ip[9] != PROTOCOL_UDP or get_16(ip + 6) & FRAGMENT:
            return False
        ip_bytes = get_16(ip + 2)
        found.addresses, found.address_bytes = ip + 12, 8
    elif ethertype == 0x86DD and length >= IPV6_BYTES and ip[0] >> 4 == 6:
        header = IPV6_BYTES
        if ip[6] != PROTOCOL_UDP:
            return False
        ip_bytes = IPV6_BYTES + get_16(ip + 4)
        found.addresses, found.address_bytes = ip + 8, 32
    else:
        return False
    if length < header + UDP_BYTES + NUMBERED_BYTES:
        return False
    found.udp = ip + header
    if get_32(found.udp + UDP_BYTES) != MAGIC:
        return False
    found.udp_bytes = ip_bytes - header
    is_intact[0] = (
        header + UDP_BYTES + NUMBERED_BYTES <= ip_bytes <= length
        and (ethertype == 0x86DD or is_all_ones(sum_of_words(ip, header)))
    )
    return True


cdef bint datagram_is_intact(const Datagram* found) noexcept nogil:
    """Hold length, checksum and pattern against what was sent."""
    cdef const uint8_t* body = found.udp + UDP_BYTES + NUMBERED_BYTES
    cdef uint32_t body_bytes = found.udp_bytes - UDP_BYTES - NUMBERED_BYTES
    cdef uint64_t total
    if get_16(found.udp + 4) != found.udp_bytes or get_16(found.udp + 6) == 0:
        return False
    total = sum_of_words(found.addresses, found.address_bytes)
    total += sum_of_words(found.udp, found.udp_bytes)
    # Of the pseudo header, in the order of this machine as the rest.
    total += be16toh(PROTOCOL_UDP) + be16toh(<uint16_t>found.udp_bytes)
    if not is_all_ones(total):
        return False
    return body_bytes <= 4 or memcmp(body, body + 4, body_bytes - 4) == 0


cdef uint32_t stream_of(VerifierState* state, uint16_t number) noexcept nogil:
    """Find a stream, or make it; NO_STREAM if there are too many."""
    cdef uint32_t i
    if state.recent < state.stream_count and state.ids[state.recent] == number:
        return state.recent
    for i in range(state.stream_count):
        if state.ids[i] == number:
            state.recent = i
            return i
    if state.stream_count == MAX_STREAMS:
        return NO_STREAM
    state.recent = state.stream_count
    state.ids[state.recent] = number
    state.stream_count += 1
    return state.recent


cdef inline uint64_t* word_of(Stream* stream, uint64_t number) noexcept nogil:
    return &stream.seen[number % WINDOW // 64]


cdef inline uint64_t bit_of(uint64_t number) noexcept nogil:
    return <uint64_t>1 << (number % 64)


cdef void advance(Stream* stream, uint64_t number) noexcept nogil:
    """Make a number the newest, and forget as many old ones as come in between."""
    cdef uint64_t each
    if number - stream.newest >= WINDOW:
        memset(stream.seen, 0, sizeof(stream.seen))
    else:
        each = stream.newest
        while each != number:
            each += 1
            word_of(stream, each)[0] &= ~bit_of(each)
    stream.newest = number


cdef void note_number(Stream* stream, uint64_t number) noexcept nogil:
    """Count an intact packet of a stream."""
    if stream.packets == 0:
        stream.first = stream.newest = number
    elif number > stream.newest:
        advance(stream, number)
    elif stream.newest - number >= WINDOW or word_of(stream, number)[0] & bit_of(number):
        stream.duplicated += 1
        return
    else:
        stream.reordered += 1
        stream.first = min(stream.first, number)
    word_of(stream, number)[0] |= bit_of(number)
    stream.packets += 1


cdef inline uint32_t bucket_of(uint64_t value) noexcept nogil:
    """Tell the bucket of a value: itself below 32, then 32 for each power of two."""
    cdef int shift
    if value < 1 << SUB_BITS:
        return <uint32_t>value
    shift = 63 - leading_zeros(value) - SUB_BITS
    return <uint32_t>((<uint64_t>shift << SUB_BITS) + (value >> shift))


cdef inline void note_latency(VerifierState* state, int64_t latency) noexcept nogil:
    if latency < 0:
        return                      # sent by another clock
    state.latency[bucket_of(latency)] += 1
    state.latency_max = max(state.latency_max, <uint64_t>latency)


cdef void verify_packet(VerifierState* state, const uint8_t* data, uint32_t length,
                        int64_t now) noexcept nogil:
    """Check one packet and count it."""
    cdef Datagram found
    cdef bint is_intact = False
    cdef const uint8_t* numbered
    cdef uint32_t stream
    if not find_datagram(data, length, &found, &is_intact):
        state.foreign += 1
        return
    if unlikely(not is_intact or not datagram_is_intact(&found), 0):
        state.corrupted += 1
        return
    numbered = found.udp + UDP_BYTES
    stream = stream_of(state, <uint16_t>get_16(numbered + 4))
    if stream == NO_STREAM:
        state.foreign += 1
        return
    note_number(&state.streams[stream], get_64(numbered + 6))
    note_latency(state, now - <int64_t>get_64(numbered + 14))


cdef uint32_t verify_burst(WorkerState* worker, int* error) noexcept nogil:
    """Receive a burst, check each packet, and recycle the frames."""
    cdef VerifierState* state = <VerifierState*>worker.job
    cdef PortState* port = worker.ports[0]
    cdef uint32_t first = 0
    cdef uint32_t usable = 0
    cdef uint32_t received, i
    cdef xdp_desc desc
    cdef timespec time
    received = rx_peek(port, worker.batch_size, &first)
    if received:
        clock_gettime(CLOCK_MONOTONIC, &time)
    for i in range(received):
        if take_packet(port, rx_slot(&port.rx, first + i), &desc):
            verify_packet(state, port.pool.data + desc.addr, desc.len,
                          <int64_t>time.tv_sec * 1000000000 + time.tv_nsec)
            pool_give(port.pool, desc.addr, PLACE_USER)
            usable += 1
    rx_release(port, received)
    port.counters.consumed_packets += usable
    refill(port)
    return received


cdef class Verifier(Job):
    """Receives packets of generators and checks them; others are counted.

    Given to the worker of another port it goes on where it was.
    """

    def __cinit__(self):
        self.own.streams = <Stream*>calloc(MAX_STREAMS, sizeof(Stream))
        if self.own.streams == NULL:
            raise MemoryError
        self.turn = verify_burst
        self.state = &self.own

    def __dealloc__(self):
        free(self.own.streams)

    def check(self, const uint8_t[::1] packet not None, int64_t now_ns):
        """Check one packet of at least 14 bytes, as if it had been received at a time.

        Not while a worker runs.
        """
        if packet.shape[0] >= 14:
            verify_packet(&self.own, &packet[0], <uint32_t>packet.shape[0], now_ns)

    def findings(self):
        """Return what was counted, as the fields of ``l2fwd.verification.Seen``."""
        cdef int i
        return {
            "foreign": self.own.foreign,
            "corrupted": self.own.corrupted,
            "latency_max": self.own.latency_max,
            "latency": [self.own.latency[i] for i in range(LATENCY_BUCKETS)],
            "streams": {
                self.own.ids[i]: (
                    self.own.streams[i].first, self.own.streams[i].newest,
                    self.own.streams[i].packets, self.own.streams[i].reordered,
                    self.own.streams[i].duplicated,
                )
                for i in range(<int>self.own.stream_count)
            },
        }
