"""Packets made by a worker: a template in every frame, and what differs patched into it.

A packet that is as the one before costs a descriptor.  With flows or numbers some words of it are
written, and the checksums worked out from those alone (RFC 1071: the order of the sum is free).
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, clockid_t, timespec

from l2fwd._rings cimport (
    PLACE_POOL, PLACE_TX, FramePool, PortState, ProducerRing, frame_move, reclaim, ring_reserve,
    tx_slot, tx_submit,
)
from l2fwd._worker cimport Job, WorkerState, is_stopping, kick_port
from l2fwd._xdp cimport RELAXED, atomic_load, atomic_store, xdp_desc

from l2fwd.errors import ConfigError


cdef extern from "endian.h" nogil:
    uint16_t htobe16(uint16_t host)
    uint32_t htobe32(uint32_t host)
    uint64_t htobe64(uint64_t host)


cdef enum:
    SECOND_NS = 1000000000
    CATCH_UP_NS = 1000000           # after a stall no more than this is made up for
    COMPLETION_NS = 20000           # how soon to look again for frames that are all under way

PAYLOADS = {"pattern": PAYLOAD_PATTERN, "tstamp": PAYLOAD_TSTAMP, "sequence": PAYLOAD_SEQUENCE}


cdef int64_t read_clock(clockid_t clock) noexcept nogil:
    cdef timespec now
    clock_gettime(clock, &now)
    return <int64_t>now.tv_sec * SECOND_NS + now.tv_nsec


cdef inline void put_16(uint8_t* at, uint16_t value) noexcept nogil:
    value = htobe16(value)
    memcpy(at, &value, sizeof(value))


cdef inline void put_32(uint8_t* at, uint32_t value) noexcept nogil:
    value = htobe32(value)
    memcpy(at, &value, sizeof(value))


cdef inline void put_64(uint8_t* at, uint64_t value) noexcept nogil:
    value = htobe64(value)
    memcpy(at, &value, sizeof(value))


cdef inline uint64_t words_of(uint64_t value) noexcept nogil:
    """Add a number's words to a sum: 2**16 is 1 there, so two halves will do."""
    return <uint32_t>value + (value >> 32)


cdef inline uint16_t checksum_of(uint64_t total) noexcept nogil:
    """Fold a sum of words and invert it."""
    total = <uint32_t>total + (total >> 32)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return <uint16_t>~total


cdef inline uint64_t put_payload(const GeneratorState* state, uint8_t* at,
                                 uint64_t now) noexcept nogil:
    """Write number and time; return the sum of what was written."""
    cdef uint64_t number = state.first + state.made
    cdef uint32_t seconds, microseconds
    if state.payload == PAYLOAD_SEQUENCE:
        put_64(at + 6, number)
        put_64(at + 14, now)
        return words_of(number) + words_of(now)
    if state.payload == PAYLOAD_TSTAMP:
        seconds = <uint32_t>(now // SECOND_NS)
        microseconds = <uint32_t>(now % SECOND_NS // 1000)
        put_32(at + 4, <uint32_t>number)
        put_32(at + 8, seconds)
        put_32(at + 12, microseconds)
        return <uint64_t><uint32_t>number + seconds + microseconds
    return 0


cdef inline void patch_packet(const GeneratorState* state, uint8_t* data,
                              uint64_t now) noexcept nogil:
    """Write what is this packet's own: flow, number, time, both checksums."""
    cdef uint32_t source = state.first_source + state.source
    cdef uint32_t port = state.first_port + state.port
    cdef uint64_t total = state.udp_sum + source + port
    cdef uint16_t check
    total += put_payload(state, data + state.payload_at, now)
    check = checksum_of(total)
    put_32(data + state.source_at, source)
    put_16(data + state.port_at, <uint16_t>port)
    # RFC 768: zero would mean that there is none.
    put_16(data + state.udp_check_at, check if check else <uint16_t>0xFFFF)
    if state.ip_check_at:
        put_16(data + state.ip_check_at, checksum_of(state.ip_sum + source))


cdef inline void next_packet(GeneratorState* state) noexcept nogil:
    """Count a packet, and take the next flow in turn: all sources, then the next port."""
    state.made += 1
    state.source += 1
    if state.source < state.sources:
        return
    state.source = 0
    state.port = state.port + 1 if state.port + 1 < state.ports else 0


cdef uint32_t take_due(Pace* pace, int64_t now, uint32_t most) noexcept nogil:
    """Tell how many of ``most`` packets are due, and take them off the account.

    Each step has its deadline, ``step`` after the one before it, so that nothing drifts.
    """
    cdef uint64_t fraction
    cdef uint32_t due
    if pace.per_step == 0:
        return most
    if pace.next_ns < now - CATCH_UP_NS:
        pace.next_ns = now - CATCH_UP_NS
    while pace.credit < most and pace.next_ns <= now:
        pace.credit += pace.per_step
        fraction = <uint64_t>pace.next_fraction + pace.step_fraction
        pace.next_fraction = <uint32_t>fraction
        pace.next_ns += pace.step_ns + <int64_t>(fraction >> 32)
    due = min(pace.credit, most)
    pace.credit -= due
    return due


cdef void begin(GeneratorState* state, PortState* port) noexcept nogil:
    """Write the template into every frame of a new UMEM; the kernel only reads what we send."""
    cdef uint32_t i
    for i in range(port.pool.count):
        memcpy(port.pool.data + port.pool.addrs[i], state.template, state.length)
    state.is_written_each_time = port.fill_target != 0
    state.pace.next_ns = read_clock(CLOCK_MONOTONIC)


cdef void put_packets(GeneratorState* state, PortState* port, uint32_t first,
                      uint32_t count) noexcept nogil:
    """Put ``count`` packets on the TX ring, into slots from ``first`` on."""
    cdef FramePool* pool = port.pool
    cdef ProducerRing tx = port.tx      # a copy: a store to a packet could alias it
    cdef uint64_t now = 0
    cdef uint64_t addr
    cdef uint32_t i
    if state.payload == PAYLOAD_SEQUENCE:
        now = read_clock(CLOCK_MONOTONIC)
    elif state.payload == PAYLOAD_TSTAMP:
        now = read_clock(CLOCK_REALTIME)
    for i in range(count):
        pool.count -= 1
        addr = pool.addrs[pool.count]
        frame_move(pool, addr, PLACE_POOL, PLACE_TX)
        if state.is_written_each_time:
            memcpy(pool.data + addr, state.template, state.length)
        if state.is_patched:
            patch_packet(state, pool.data + addr, now)
        next_packet(state)
        tx_slot(&tx, first + i)[0] = xdp_desc(addr, state.length, 0)


cdef uint32_t packets_due(GeneratorState* state, WorkerState* worker,
                          uint32_t* first) noexcept nogil:
    """Tell how many packets to make now, and say what to wait for if it is none."""
    cdef PortState* port = worker.ports[0]
    cdef uint32_t most = <uint32_t>min(<uint64_t>worker.batch_size, state.count - state.made)
    cdef uint32_t due
    cdef int64_t now = 0
    worker.wants_room = False
    if most == 0 or is_stopping(worker):
        return 0
    due = ring_reserve(&port.tx, most, first)
    if due == 0:
        worker.wants_room = True
        return 0
    due = min(due, port.pool.count)
    if due == 0:
        worker.pause_ns = COMPLETION_NS
        return 0
    if state.pace.per_step:
        now = read_clock(CLOCK_MONOTONIC)
    due = take_due(&state.pace, now, due)
    if due == 0:
        worker.pause_ns = state.pace.next_ns - now
    return due


cdef uint32_t generate_burst(WorkerState* worker, int* error) noexcept nogil:
    """Make and send up to a batch of what is due."""
    cdef GeneratorState* state = <GeneratorState*>worker.job
    cdef PortState* port = worker.ports[0]
    cdef uint32_t first = 0
    cdef uint32_t count
    if worker.turns == 1:
        begin(state, port)
    reclaim(port)
    count = packets_due(state, worker, &first)
    if count:
        put_packets(state, port, first, count)
        tx_submit(port, count)
        port.counters.generated_packets += count
        port.counters.tx_packets += count
        port.counters.tx_bytes += <uint64_t>count * state.length
    elif state.made == state.count and port.tx_lent == 0:
        atomic_store(&state.is_done, 1, RELAXED)
    error[0] = kick_port(worker, 0)
    return count


cdef class Generator(Job):
    """Makes packets from a template and sends them.

    Given to the worker of another port, of another UMEM, it goes on where it was.

    Parameters
    ----------
    template : Template
        See ``l2fwd.traffic``.
    payload : str
        What its payload begins with: ``pattern``, ``tstamp`` or ``sequence``.
    first_source, sources, first_port, ports : int
        The flows that take turns: last 32 bits of the source addresses, and source ports.
    count : int or None
        Packets to make; None: no end.
    first : int
        Number of the first packet.
    step_ns : float
        Nanoseconds from one step to the next; 0: as fast as can be.
    per_step : int
        Packets of each step.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """

    def __cinit__(self, template, *, str payload="pattern", uint32_t first_source=0,
                  uint32_t sources=1, uint32_t first_port=0, uint32_t ports=1, count=None,
                  uint64_t first=0, double step_ns=0.0, uint32_t per_step=1):
        cdef bytes data = template.data
        cdef GeneratorState* state = &self.own
        if payload not in PAYLOADS:
            raise ConfigError(f"payload must be one of {', '.join(PAYLOADS)}, got {payload!r}")
        if sources < 1 or ports < 1 or per_step < 1 or not 0 <= step_ns < 1e18:
            raise ConfigError("sources, ports and per_step must be at least 1, step_ns 0 or more")
        self.turn = generate_burst
        self.state = state
        self.template = template
        state.template = <uint8_t*>calloc(len(data), 1)
        if state.template == NULL:
            raise MemoryError
        memcpy(state.template, <const uint8_t*>data, len(data))
        state.length = len(data)
        state.payload = PAYLOADS[payload]
        state.source_at, state.port_at = template.source_at, template.port_at
        state.ip_check_at, state.udp_check_at = template.ip_check_at, template.udp_check_at
        state.payload_at = template.payload_at
        state.ip_sum, state.udp_sum = template.ip_sum, template.udp_sum
        state.first_source, state.sources = first_source, sources
        state.first_port, state.ports = first_port, ports
        state.first = first
        state.count = <uint64_t>-1 if count is None else count
        state.pace.per_step = per_step if step_ns else 0
        state.pace.step_ns = <int64_t>step_ns
        state.pace.step_fraction = <uint32_t>((step_ns - <int64_t>step_ns) * 4294967296.0)
        state.is_patched = payload != "pattern" or sources > 1 or ports > 1
        patch_packet(state, state.template, 0)

    def __dealloc__(self):
        free(self.own.template)

    def use(self, template):
        """Go on with another template of the same shape: a link made again has another MAC.

        Not while a worker runs; the next worker takes it.

        Raises
        ------
        ConfigError
            If it differs in length.
        """
        cdef bytes data = template.data
        if len(data) != self.own.length:
            raise ConfigError(f"template has {len(data)} bytes, the one before {self.own.length}")
        memcpy(self.own.template, <const uint8_t*>data, len(data))
        patch_packet(&self.own, self.own.template, 0)
        self.template = template

    @property
    def is_done(self):
        """True once all packets were made, and the kernel has given their frames back."""
        return atomic_load(&self.own.is_done, RELAXED) != 0

    @property
    def made(self):
        """Packets so far."""
        return self.own.made

    def take_due(self, int64_t now_ns, uint32_t most):
        """Take what is due at a time off the account, as a turn does; return how many of ``most``.

        Not while a worker runs.
        """
        return take_due(&self.own.pace, now_ns, most)
