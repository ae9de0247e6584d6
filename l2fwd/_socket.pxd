# A port driven call by call: the library's sockets.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from l2fwd._rings cimport FramePool, Memory, Port


cdef class Channel(Port)


cdef class Lease:
    cdef Memory memory
    cdef readonly int views
    cdef Py_ssize_t shape[2]
    cdef Py_ssize_t strides[2]
    cdef Channel channel                # set once only views are left of the batch
    cdef object addrs


cdef class TxRequest:
    cdef const uint16_t[:, ::1] checksum
    cdef bint has_checksum
    cdef bint timestamp
    cdef int write(self, FramePool* pool, uint64_t addr, uint32_t length, Py_ssize_t index,
                   uint64_t number) except -1


cdef class Channel(Port):
    cdef object timestamps              # deque of (number, ns) of packets sent
    cdef list late                      # arrays of addresses, of batches that other threads dropped
    cdef int dead                       # errno of SO_ERROR, which the kernel tells only once
    cdef int _require_alive(self) except -1
    cdef int _enter(self) except -1     # once a call: not for two threads at a time
    cdef int _kick(self) except -1
    cdef int _submit(self, uint32_t count) except -1
    cdef list _receive_whole(self, uint32_t most, uint8_t* rows)
    cdef uint32_t _ask(self, TxRequest request, uint64_t addr, uint32_t length, Py_ssize_t index,
                       uint32_t sent) except? 0xFFFFFFFF
    cdef int _reclaim(self) except -1
    cdef bint _send_whole(self, packet, Py_ssize_t index, uint32_t* queued,
                          TxRequest request) except -1
    cdef bint _put_whole(self, const char* data, size_t length, Py_ssize_t index,
                         uint32_t* queued, TxRequest request) except -1
    cdef Py_ssize_t _send_all_whole(self, packets, Py_ssize_t first, TxRequest request) except -1
    cdef void _received(self, uint32_t count) noexcept
