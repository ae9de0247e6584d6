# What a worker can do with a port in place of forwarding.
from libc.stdint cimport uint32_t

from l2fwd._worker cimport Job, WorkerState


cdef uint32_t drop_burst(WorkerState* worker, int* error) noexcept nogil


cdef class Drop(Job):
    pass
