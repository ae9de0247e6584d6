# What a worker does that checks packets of a generator.
from libc.stdint cimport uint16_t, uint32_t, uint64_t

from l2fwd._worker cimport Job


cdef enum:
    WINDOW_WORDS = 1024
    WINDOW = 65536                  # bits in them: numbers of a stream that are remembered
    MAX_STREAMS = 256
    LATENCY_BUCKETS = 1920          # 32 for each power of two


cdef struct Stream:                 # packets of one sending worker
    uint64_t first                  # lowest number seen
    uint64_t newest                 # highest
    uint64_t packets                # intact, each counted once
    uint64_t reordered              # after one that was sent later
    uint64_t duplicated             # seen before, or too late to tell
    uint64_t seen[WINDOW_WORDS]     # a bit for each of the newest WINDOW numbers


cdef struct VerifierState:
    Stream* streams
    uint16_t ids[MAX_STREAMS]
    uint32_t stream_count
    uint32_t recent                 # stream of the packet before
    uint64_t foreign                # not a generator's
    uint64_t corrupted
    uint64_t latency_max            # ns
    uint64_t latency[LATENCY_BUCKETS]


cdef class Verifier(Job):
    cdef VerifierState own
