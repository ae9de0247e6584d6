"""The job that answers for addresses: each answer is written over its question, and sent back."""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcmp, memcpy

from l2fwd._rings cimport (
    PLACE_TX, PLACE_USER, PortState, frame_move, pool_give, reclaim, refill, ring_reserve,
    rx_peek, rx_release, rx_slot, take_packet, tx_slot, tx_submit,
)
from l2fwd._worker cimport Job, WorkerState, kick_port
from l2fwd._xdp cimport xdp_desc

from l2fwd.abi import ANSWER_KINDS
from l2fwd.errors import ConfigError


cdef extern from "answer.h" nogil:
    bint is_echo(const question* asked)
    void read_question(const void* data, const void* end, const uint8_t* mac, question* asked)
    int write_answer(void* data, const void* end, const uint8_t* mac, const question* asked)


cdef inline bint is_answered_for(const AnswerState* state, const question* asked) noexcept nogil:
    cdef uint32_t i
    if asked.kind == ASKS_NOTHING:
        return False
    if state.any_address and is_echo(asked):
        return True
    # They are few, and the XDP program has looked the address up already.
    for i in range(state.address_count):
        if memcmp(&asked.address, &state.addresses[i], sizeof(asked_address)) == 0:
            return True
    return False


cdef uint32_t answer_packet(const AnswerState* state, uint8_t* data, uint32_t length,
                            uint32_t room, uint32_t* kind) noexcept nogil:
    """Turn a packet into its answer; return the bytes of that, 0 if there is none.

    ``room`` is how many bytes may be written from ``data`` on.
    """
    cdef question asked
    read_question(data, data + length, state.mac, &asked)
    if not is_answered_for(state, &asked) or asked.length > room:
        return 0
    if write_answer(data, data + asked.length, state.mac, &asked):
        return 0
    kind[0] = asked.kind
    return asked.length


cdef uint32_t answer_burst(WorkerState* worker, int* error) noexcept nogil:
    """Receive a burst, send back what has an answer, and recycle the frames of the rest."""
    cdef AnswerState* state = <AnswerState*>worker.job
    cdef PortState* port = worker.ports[0]
    cdef uint32_t first = 0
    cdef uint32_t tx_first = 0
    cdef uint32_t usable = 0
    cdef uint32_t sent = 0
    cdef uint32_t full = 0
    cdef uint32_t kind = 0
    cdef uint32_t received, room, length, i
    cdef xdp_desc desc

    reclaim(port)
    received = rx_peek(port, worker.batch_size, &first)
    room = ring_reserve(&port.tx, received, &tx_first)
    for i in range(received):
        if not take_packet(port, rx_slot(&port.rx, first + i), &desc):
            continue
        usable += 1
        length = answer_packet(state, port.pool.data + desc.addr, desc.len,
                               port.pool.frame_size - (desc.addr & (port.pool.frame_size - 1)),
                               &kind)
        if length == 0 or sent == room:
            full += length != 0
            pool_give(port.pool, desc.addr, PLACE_USER)
            continue
        desc.len = length
        frame_move(port.pool, desc.addr, PLACE_USER, PLACE_TX)
        tx_slot(&port.tx, tx_first + sent)[0] = desc
        port.counters.tx_bytes += length
        state.answered[kind] += 1
        sent += 1
    tx_submit(port, sent)
    rx_release(port, received)
    refill(port)

    port.counters.tx_packets += sent
    port.counters.tx_full_drops += full
    port.counters.consumed_packets += usable - sent - full
    error[0] = kick_port(worker, 0)
    return received


cdef class Answer(Job):
    """Answers ICMP echo requests, ARP requests and neighbour solicitations; forgets the rest.

    Parameters
    ----------
    mac : bytes
        Six bytes: of the link.  What is sent to another one is not answered.
    addresses : bytes
        Those answered for, each as ``asked_address`` of kern/answer.h.
    any_address : bool
        Answer echo requests, and only those, whatever address is asked.

    Raises
    ------
    ConfigError
        If a size is wrong.
    """

    def __cinit__(self, bytes mac not None, bytes addresses=b"", *, bint any_address=False):
        if len(mac) != sizeof(self.answering.mac):
            raise ConfigError(f"a MAC address has 6 bytes, got {len(mac)}")
        if len(addresses) % sizeof(asked_address):
            raise ConfigError(f"an address has {sizeof(asked_address)} bytes, got {len(addresses)}")
        self.addresses = addresses
        memcpy(self.answering.mac, <const unsigned char*>mac, sizeof(self.answering.mac))
        self.answering.any_address = any_address
        self.answering.address_count = len(addresses) // sizeof(asked_address)
        self.answering.addresses = <const asked_address*><const unsigned char*>addresses
        self.turn = answer_burst
        self.state = &self.answering

    def answer(self, uint8_t[::1] buffer not None, uint32_t length):
        """Answer one packet as the worker does, without a socket.

        Parameters
        ----------
        buffer : writable buffer
            Holds the packet in its first ``length`` bytes, then its answer.
        length : int

        Returns
        -------
        int
            Bytes of the answer; 0 if there is none, and the buffer is as it was.

        Raises
        ------
        ConfigError
            If the buffer is shorter than the packet.
        """
        cdef uint32_t kind = 0
        if length > buffer.shape[0]:
            raise ConfigError(f"a packet of {length} bytes in a buffer of {buffer.shape[0]}")
        if length == 0:
            return 0
        return answer_packet(&self.answering, &buffer[0], length, buffer.shape[0], &kind)

    def counters(self):
        """Return the answers put on the TX ring, by kind."""
        return {f"answered_{name}": self.answering.answered[i]
                for i, name in enumerate(ANSWER_KINDS)}
