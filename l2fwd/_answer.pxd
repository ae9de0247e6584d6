# Answers to echo requests, ARP requests and neighbour solicitations, as kern/answer.h gives them.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from l2fwd._worker cimport Job, WorkerState


cdef extern from "answer.h":
    enum:
        ASKS_NOTHING                # as many kinds are before it
    struct asked_address:
        uint8_t bytes[16]
        uint32_t version
    struct question:
        uint32_t kind
        uint32_t length             # of the answer, bytes
        asked_address address


cdef struct AnswerState:
    uint8_t mac[6]
    bint any_address                # of an echo request
    uint32_t address_count
    const asked_address* addresses
    uint64_t answered[4]            # by kind; one writer: the worker's thread


cdef uint32_t answer_packet(const AnswerState* state, uint8_t* data, uint32_t length,
                            uint32_t room, uint32_t* kind) noexcept nogil
cdef uint32_t answer_burst(WorkerState* worker, int* error) noexcept nogil


cdef class Answer(Job):
    cdef AnswerState answering
    cdef bytes addresses            # asked_address, one after the other
