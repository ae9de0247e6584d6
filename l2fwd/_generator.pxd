# What a worker does that makes packets.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from l2fwd._worker cimport Job


cdef enum Payload:
    PAYLOAD_PATTERN                 # the same in every packet
    PAYLOAD_TSTAMP                  # struct pktgen_hdr
    PAYLOAD_SEQUENCE                # NUMBERED of traffic.py


cdef struct Pace:
    uint32_t per_step               # packets each time; 0: as fast as can be
    uint32_t credit                 # of the last step, not made yet
    int64_t next_ns                 # when the next step is due, CLOCK_MONOTONIC
    uint32_t next_fraction          # 2**-32 ns
    int64_t step_ns
    uint32_t step_fraction


cdef struct GeneratorState:
    uint8_t* template               # length bytes
    uint32_t length
    Payload payload
    uint32_t source_at              # offsets in the packet; see Template in traffic.py
    uint32_t port_at
    uint32_t ip_check_at
    uint32_t udp_check_at
    uint32_t payload_at
    uint64_t ip_sum
    uint64_t udp_sum
    uint32_t first_source
    uint32_t sources
    uint32_t first_port
    uint32_t ports
    uint32_t source                 # of the next packet, from 0 on
    uint32_t port
    bint is_written_each_time       # frames do not keep the template
    bint is_patched                 # no packet is as the one before it
    uint64_t first                  # number of the first packet
    uint64_t made
    uint64_t count
    Pace pace
    uint32_t is_done                # read by another thread


cdef class Generator(Job):
    cdef GeneratorState own
    cdef readonly object template
