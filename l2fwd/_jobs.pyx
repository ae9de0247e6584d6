"""Jobs of a worker that forward nothing.  Each is one turn function, and its state."""

from libc.stdint cimport uint32_t, uint64_t

from l2fwd._chains cimport Chains, chain_at, chain_size, give_chain, take_chains
from l2fwd._rings cimport (
    PLACE_USER, PortState, pool_give, refill, rx_peek, rx_release, rx_slot, take_packet,
)
from l2fwd._worker cimport Job, WorkerState
from l2fwd._xdp cimport xdp_desc


cdef uint32_t drop_burst(WorkerState* worker, int* error) noexcept nogil:
    """Receive a burst and recycle its frames at once."""
    cdef PortState* port = worker.ports[0]
    cdef uint32_t first = 0
    cdef uint32_t usable = 0
    cdef uint32_t received, i
    cdef xdp_desc desc
    if not port.is_plain:
        return drop_chains(worker, port)
    received = rx_peek(port, worker.batch_size, &first)
    for i in range(received):
        if take_packet(port, rx_slot(&port.rx, first + i), &desc):
            pool_give(port.pool, desc.addr, PLACE_USER)
            usable += 1
    rx_release(port, received)
    port.counters.consumed_packets += usable
    refill(port)
    return received


cdef uint32_t drop_chains(WorkerState* worker, PortState* port) noexcept nogil:
    """``drop_burst`` for packets in several frames."""
    cdef Chains chains
    cdef uint64_t before = port.counters.rx_packets
    cdef uint32_t i
    take_chains(port, worker.batch_size, &chains)
    for i in range(chains.count):
        give_chain(port.pool, chain_at(&chains, i), chain_size(&chains, i))
    port.counters.consumed_packets += chains.count
    refill(port)
    return <uint32_t>(port.counters.rx_packets - before)


cdef class Drop(Job):
    """Receives packets and forgets them."""

    def __cinit__(self):
        self.turn = drop_burst
