"""A port driven call by call instead of by a worker: receive, send, wait.

``Channel`` moves whole batches without a Python object per packet; only what is copied to ``bytes``
makes one.  Packets received belong to the caller until ``recycle`` or ``send_frames``.
"""

from cpython.buffer cimport (
    PyBUF_FORMAT, PyBUF_ND, PyBUF_SIMPLE, PyBUF_STRIDES, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.bytes cimport (
    PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE,
)
from cpython.exc cimport PyErr_CheckSignals
from cpython.pythread cimport PyThread_get_thread_ident
from libc.errno cimport EINTR, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from l2fwd._chains cimport (
    MAX_FRAGMENTS, Chains, chain_at, chain_size, give_chain, next_length, send_chain,
    take_chains,
)
from l2fwd._metadata cimport (
    RX_METADATA_BYTES, XDP_TX_METADATA, XDP_TXMD_FLAGS_CHECKSUM, XDP_TXMD_FLAGS_TIMESTAMP,
    ask_nothing, metadata_of, take_metadata, take_timestamp, tx_metadata,
)
from l2fwd._rings cimport (
    ETHERNET_HEADER_BYTES, PLACE_POOL, PLACE_TX, PLACE_USER, FramePool, Memory, Port, PortState,
    completion_slot, frame_move, packet_is_usable, pool_give, reclaim, refill, ring_needs_wakeup,
    ring_peek, ring_reserve, rx_peek, rx_release, rx_slot, take_completed, take_packet, tx_slot,
    tx_submit,
)
from l2fwd._worker cimport kick_tx, socket_error
from l2fwd._xdp cimport L2FWD_DEBUG, POLLIN, POLLOUT, pollfd, ppoll, timespec, xdp_desc

import time
from collections import deque

from l2fwd.errors import ConfigError, kernel_error


cdef extern from *:
    int count_trailing_zeros "__builtin_ctzll"(unsigned long long number) noexcept nogil


cdef enum:
    REFILL_BURST = 64               # frames lent together; a store to a shared line each
    MAX_TIMESTAMPS = 65536          # kept for the caller, the newest


# A wait is cut into pieces: neither the end of the link nor ``close`` by another thread wakes poll.
WATCH_SECONDS = 0.25


cdef class Lease:
    """The packet memory as lent to one batch: a buffer of uint8 that counts its views."""

    def __cinit__(self, Memory memory not None):
        self.memory = memory
        self.shape[:] = memory.shape
        self.strides[:] = memory.strides

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        buffer.buf = self.memory.start
        buffer.obj = self
        buffer.len = self.shape[0] * self.shape[1]
        buffer.itemsize = 1
        buffer.readonly = 0
        buffer.ndim = 2
        buffer.format = <char*>"B" if flags & PyBUF_FORMAT else NULL
        buffer.shape = self.shape if flags & PyBUF_ND else NULL
        buffer.strides = self.strides if flags & PyBUF_STRIDES == PyBUF_STRIDES else NULL
        buffer.suboffsets = NULL
        self.views += 1

    def __releasebuffer__(self, Py_buffer* buffer):
        self.views -= 1
        if self.views == 0 and self.channel is not None:
            self.give_back(self.channel, self.addrs)

    def give_back(self, Channel channel not None, addrs):
        """Recycle the frames of a batch that is gone, once the last view of them is."""
        if self.views:
            self.channel, self.addrs = channel, addrs
        else:
            self.channel = None
            channel.recycle_late(addrs)


cdef inline uint64_t frame_index(const FramePool* pool, uint64_t addr) noexcept nogil:
    return addr >> count_trailing_zeros(pool.frame_size)


cdef inline bint take_lent(FramePool* pool, uint64_t addr) noexcept nogil:
    """Tell whether a frame is the caller's, who gives it up: else it would be in two places."""
    if addr >= pool.umem_size or pool.places[frame_index(pool, addr)] != PLACE_USER:
        return False
    if not L2FWD_DEBUG:                 # there frame_move does it, and looks at it
        pool.places[frame_index(pool, addr)] = PLACE_POOL
    return True


cdef inline void top_up(PortState* port) noexcept nogil:
    """Lend frames for RX again, once there is a burst of them to lend."""
    if port.fill_target - port.rx_lent >= min(<uint32_t>REFILL_BURST, (port.fill_target + 3) // 4):
        refill(port)


cdef inline uint32_t send_room(const FramePool* pool) noexcept nogil:
    """Return the bytes of the longest packet that one frame sends."""
    return pool.frame_size - pool.tx_room


cdef inline uint64_t next_addr(const FramePool* pool) noexcept nogil:
    """Tell where in the frame on top of the pool a packet to be sent begins."""
    return pool.addrs[pool.count - 1] + pool.tx_room


cdef inline void put_frame(PortState* port, uint32_t slot, uint64_t addr, uint32_t length,
                           uint32_t options) noexcept nogil:
    """Put the frame on top of the pool, now written, on the TX ring."""
    port.pool.count -= 1
    frame_move(port.pool, addr, PLACE_POOL, PLACE_TX)
    tx_slot(&port.tx, slot)[0] = xdp_desc(addr, length, options)
    port.counters.tx_bytes += length


cdef class TxRequest:
    """What is asked for each packet of one call.

    Parameters
    ----------
    checksum : uint16, shape (1, 2) or (n, 2), or None
        From which byte on to sum, for all packets or each, and how far from there the result goes.
    timestamp : bool
    """

    def __cinit__(self, const uint16_t[:, ::1] checksum, bint timestamp):
        self.has_checksum = checksum is not None
        if self.has_checksum:
            self.checksum = checksum
        self.timestamp = timestamp

    cdef int write(self, FramePool* pool, uint64_t addr, uint32_t length, Py_ssize_t index,
                   uint64_t number) except -1:
        """Write it in front of packet ``index``; its descriptor's options are XDP_TX_METADATA.

        The kernel says EINVAL, and sends nothing more, where a checksum lies outside a packet.
        """
        cdef tx_metadata* metadata = metadata_of(pool, addr)
        cdef Py_ssize_t row = index if self.has_checksum and self.checksum.shape[0] > 1 else 0
        cdef uint32_t end
        if metadata == NULL:
            raise ConfigError("nothing can be asked for packets of a UMEM without tx_metadata")
        memset(metadata, 0, sizeof(tx_metadata))
        if self.has_checksum:
            end = <uint32_t>self.checksum[row, 0] + self.checksum[row, 1] + 2
            if end > length:
                raise ConfigError(
                    f"packet {index} has {length} bytes in its first frame, its checksum would "
                    f"end at {end}"
                )
            metadata.checksum_start = self.checksum[row, 0]
            metadata.checksum_offset = self.checksum[row, 1]
            metadata.flags |= XDP_TXMD_FLAGS_CHECKSUM
        if self.timestamp:
            metadata.flags |= XDP_TXMD_FLAGS_TIMESTAMP
            metadata.number = number
        return 0


cdef class Channel(Port):
    """A port for the library: no thread of its own, the caller's calls drive it.

    Parameters
    ----------
    As ``Port``.  All channels of one ``Pool`` must be used by one thread; the first call decides
    which, ``hand_over`` lets another one be the next.
    """

    def __cinit__(self, *arguments, **settings):
        self.late = []
        self.timestamps = deque(maxlen=MAX_TIMESTAMPS)

    cdef int _enter(self) except -1:
        """Refuse a second thread: the rings have one producer and one consumer."""
        cdef unsigned long me = PyThread_get_thread_ident()
        if self.is_open and self.pool.thread != me:
            if self.pool.thread:
                raise ConfigError(
                    f"{self.name} is used by another thread; open a socket with a UMEM of its own "
                    "for each thread, or call hand_over there first"
                )
            self.pool.thread = me
        return self._require_idle()

    def hand_over(self):
        """Let another thread be the next to use this channel and all others of its pool."""
        self._enter()
        self.pool.thread = 0

    def close(self):
        """As ``Port.close``, from any thread: waits for a send of another one."""
        while self.is_used:
            time.sleep(50e-6)
        Port.close(self)

    def receive(self, uint64_t[::1] addrs not None, uint32_t[::1] lengths not None,
                metadata=None):
        """Take received packets, up to the length of the arrays; return how many.

        Parameters
        ----------
        addrs : uint64, shape (n,)
            Gets the byte offset of each packet in the UMEM.
        lengths : uint32, shape (n,)
            Gets its bytes.
        metadata : uint8, shape (n, 24), optional
            Gets what the program wrote in front of it, records.RX_METADATA.
        """
        cdef PortState* port = &self.state
        cdef FramePool* pool = port.pool
        cdef uint32_t first = 0
        cdef uint32_t count = 0
        cdef uint32_t received, i
        cdef xdp_desc desc
        cdef uint8_t* rows = rows_of(metadata, addrs.shape[0])
        self._enter()
        received = rx_peek(port, <uint32_t>addrs.shape[0], &first)
        for i in range(received):
            if take_packet(port, rx_slot(&port.rx, first + i), &desc):
                addrs[count], lengths[count] = desc.addr, desc.len
                if rows != NULL:
                    take_metadata(pool, desc.addr, rows + count * RX_METADATA_BYTES)
                pool.places[frame_index(pool, desc.addr)] = PLACE_USER
                count += 1
        self.pool.user_count += count
        self._received(received)
        return count

    def receive_bytes(self, uint32_t most, metadata=None):
        """Take up to ``most`` packets as a list of bytes, and recycle their frames.

        ``metadata`` as in ``receive``, ``most`` rows.
        """
        cdef PortState* port = &self.state
        cdef uint32_t first = 0
        cdef uint32_t received, i
        cdef xdp_desc desc
        cdef char* data
        cdef list packets = []
        cdef uint8_t* rows = rows_of(metadata, most)
        self._enter()
        if not port.is_plain:
            return self._receive_whole(most, rows)
        received = rx_peek(port, most, &first)
        for i in range(received):
            if take_packet(port, rx_slot(&port.rx, first + i), &desc):
                if rows != NULL:
                    take_metadata(port.pool, desc.addr, rows + len(packets) * RX_METADATA_BYTES)
                data = <char*>port.pool.data + desc.addr
                packets.append(PyBytes_FromStringAndSize(data, desc.len))
                pool_give(port.pool, desc.addr, PLACE_USER)
        self._received(received)
        return packets

    def receive_one(self):
        """Take one packet as bytes, and recycle its frame; None if there is none."""
        cdef PortState* port = &self.state
        cdef uint32_t first = 0
        cdef bytes packet = None
        cdef xdp_desc desc
        cdef list whole
        self._enter()
        if not port.is_plain:
            whole = self._receive_whole(1, NULL)
            return whole[0] if whole else None
        while packet is None and rx_peek(port, 1, &first):
            if take_packet(port, rx_slot(&port.rx, first), &desc):
                packet = PyBytes_FromStringAndSize(<char*>port.pool.data + desc.addr, desc.len)
                pool_give(port.pool, desc.addr, PLACE_USER)
            self._received(1)
        return packet

    def receive_into(self, unsigned char[::1] buffer not None):
        """Copy the next packet into ``buffer``; return its length, -1 if there is none.

        Raises
        ------
        ConfigError
            If it is longer than the buffer; it stays the next one.
        """
        cdef PortState* port = &self.state
        cdef uint32_t first = 0
        cdef const xdp_desc* slot
        cdef xdp_desc desc
        self._enter()
        if not port.is_plain:
            return self._receive_whole_into(buffer)
        while rx_peek(port, 1, &first):
            slot = rx_slot(&port.rx, first)
            desc = slot[0]
            if packet_is_usable(port.pool, &desc) and desc.len > <size_t>buffer.shape[0]:
                raise ConfigError(
                    f"the packet has {desc.len} bytes, the buffer {buffer.shape[0]}; "
                    "use a larger one"
                )
            if not take_packet(port, slot, &desc):
                self._received(1)
                continue
            memcpy(&buffer[0], port.pool.data + desc.addr, desc.len)
            pool_give(port.pool, desc.addr, PLACE_USER)
            self._received(1)
            return desc.len
        return -1

    cdef list _receive_whole(self, uint32_t most, uint8_t* rows):
        """``receive_bytes`` where a packet may take several frames: what they hold is joined."""
        cdef Chains chains
        cdef const xdp_desc* descs
        cdef uint32_t i, j
        cdef list packets = []
        take_chains(&self.state, most, &chains)
        for i in range(chains.count):
            descs = chain_at(&chains, i)
            if rows != NULL:
                take_metadata(self.state.pool, descs[0].addr, rows + i * RX_METADATA_BYTES)
            packets.append(b"".join([
                PyBytes_FromStringAndSize(<char*>self.state.pool.data + descs[j].addr, descs[j].len)
                for j in range(chain_size(&chains, i))
            ]))
            give_chain(self.state.pool, descs, chain_size(&chains, i))
        top_up(&self.state)
        return packets

    def _receive_whole_into(self, unsigned char[::1] buffer):
        cdef uint32_t length = next_length(&self.state)
        cdef bytes packet
        if length > <size_t>buffer.shape[0]:
            raise ConfigError(
                f"the packet has {length} bytes, the buffer {buffer.shape[0]}; use a larger one"
            )
        for packet in self._receive_whole(1, NULL):
            memcpy(&buffer[0], PyBytes_AS_STRING(packet), PyBytes_GET_SIZE(packet))
            return PyBytes_GET_SIZE(packet)
        return -1

    cdef void _received(self, uint32_t count) noexcept:
        cdef PortState* port = &self.state
        rx_release(port, count)
        top_up(port)

    def recycle(self, const uint64_t[::1] addrs not None):
        """Give frames of received packets back, but those that ``send_frames`` took.

        Callable after ``close``, too.
        """
        cdef FramePool* pool = &self.pool.pool
        cdef Py_ssize_t i
        if self.is_open:
            self._enter()
        for i in range(addrs.shape[0]):
            if take_lent(pool, addrs[i]):
                self.pool.user_count -= 1
                pool_give(pool, addrs[i], PLACE_USER)
        if self.is_open:
            top_up(&self.state)

    def recycle_late(self, addrs):
        """As ``recycle``, from any thread: then the one that drives the socket does it."""
        cdef unsigned long me = PyThread_get_thread_ident()
        if self.is_open and self.pool.thread and self.pool.thread != me:
            self.late.append(addrs)
        else:
            self.recycle(addrs)

    def send_bytes(self, list packets not None, Py_ssize_t first=0, TxRequest request=None):
        """Copy packets (bytes, or any buffer of bytes) to the TX ring, from index ``first`` on.

        A list, as to take them out of anything else may run code of its own, which could close
        the socket or send on it.  ``request`` is for all of them, its rows from index 0 on.

        Returns
        -------
        int
            How many found room.

        Raises
        ------
        ConfigError
            Naming the packet that is too short or too long; none from it on is sent.
        """
        cdef PortState* port = &self.state
        cdef FramePool* pool = port.pool
        cdef uint32_t slot = 0
        cdef uint32_t room
        cdef uint32_t sent = 0
        cdef uint64_t addr
        cdef uint32_t length
        self._enter()
        self._reclaim()
        if not port.is_plain:
            return self._send_all_whole(packets, first, request)
        room = ring_reserve(&port.tx, min(<uint32_t>(len(packets) - first), pool.count), &slot)
        try:
            for packet in packets[first:first + room]:  # a copy: nobody else changes it
                addr = next_addr(pool)
                length = copy_packet(pool, addr, packet, first + sent)
                put_frame(port, slot + sent, addr, length,
                          self._ask(request, addr, length, first + sent, sent))
                sent += 1
        finally:
            self._submit(sent)
        return sent

    def send_one(self, packet):
        """Copy one packet to the TX ring; False if there is no room.

        Raises
        ------
        ConfigError
            If it is too short or too long.
        """
        cdef PortState* port = &self.state
        cdef uint32_t slot = 0
        cdef uint64_t addr
        self._enter()
        self._reclaim()
        if not port.is_plain:
            return self._send_all_whole((packet,), 0, None) == 1
        if port.pool.count == 0 or ring_reserve(&port.tx, 1, &slot) == 0:
            return False
        addr = next_addr(port.pool)
        put_frame(port, slot, addr, copy_packet(port.pool, addr, packet, 0), 0)
        ask_nothing(port.pool, addr)
        self._submit(1)
        return True

    def send_rows(self, const unsigned char[:, :] rows not None,
                  const uint32_t[::1] lengths not None, Py_ssize_t first=0,
                  TxRequest request=None):
        """Copy packets, one per row, to the TX ring; as ``send_bytes``."""
        cdef PortState* port = &self.state
        cdef FramePool* pool = port.pool
        cdef uint32_t slot = 0
        cdef uint32_t room, i, j
        cdef uint32_t sent = 0
        cdef uint64_t addr
        cdef bint is_packed = rows.strides[1] == 1
        if lengths.shape[0] != rows.shape[0]:
            raise ConfigError(f"{rows.shape[0]} rows, but {lengths.shape[0]} lengths")
        self._enter()
        self._reclaim()
        if not port.is_plain:
            return self._send_all_whole(_RowsOf(rows, lengths), first, request)
        room = ring_reserve(&port.tx, min(<uint32_t>(rows.shape[0] - first), pool.count), &slot)
        try:
            for i in range(room):
                if lengths[first + i] > <size_t>rows.shape[1]:
                    raise ConfigError(
                        f"packet {first + i} has {lengths[first + i]} bytes, "
                        f"its row {rows.shape[1]}"
                    )
                check_length(pool, lengths[first + i], first + i)
                addr = next_addr(pool)
                if is_packed:
                    memcpy(pool.data + addr, &rows[first + i, 0], lengths[first + i])
                else:
                    for j in range(lengths[first + i]):
                        pool.data[addr + j] = rows[first + i, j]
                put_frame(port, slot + sent, addr, lengths[first + i],
                          self._ask(request, addr, lengths[first + i], first + i, sent))
                sent += 1
        finally:
            self._submit(sent)
        return sent

    def send_frames(self, const uint64_t[::1] addrs not None,
                    const uint32_t[::1] lengths not None, Py_ssize_t first=0,
                    TxRequest request=None):
        """Move frames of received packets to the TX ring, from index ``first`` on.

        They must be of this channel's pool, and the caller's: then they are the kernel's.

        Returns
        -------
        int
            How many found room.

        Raises
        ------
        ConfigError
            If a frame is not the caller's, or a length does not fit it; none from it on is sent.
        """
        cdef PortState* port = &self.state
        cdef FramePool* pool = port.pool
        cdef uint32_t slot = 0
        cdef uint32_t options, room
        cdef uint32_t sent = 0
        cdef Py_ssize_t i
        if lengths.shape[0] != addrs.shape[0]:
            raise ConfigError(f"{addrs.shape[0]} addresses, but {lengths.shape[0]} lengths")
        self._enter()
        self._reclaim()
        room = ring_reserve(&port.tx, <uint32_t>(addrs.shape[0] - first), &slot)
        try:
            for i in range(first, first + room):
                check_frame(pool, addrs[i], lengths[i], i)
                if pool.places[frame_index(pool, addrs[i])] != PLACE_USER:
                    raise not_lent(addrs[i])
                options = self._ask(request, addrs[i], lengths[i], i, sent)
                take_lent(pool, addrs[i])
                self.pool.user_count -= 1
                frame_move(pool, addrs[i], PLACE_USER, PLACE_TX)
                tx_slot(&port.tx, slot + sent)[0] = xdp_desc(addrs[i], lengths[i], options)
                port.counters.tx_bytes += lengths[i]
                sent += 1
        finally:
            self._submit(sent)
        return sent

    cdef uint32_t _ask(self, TxRequest request, uint64_t addr, uint32_t length, Py_ssize_t index,
                       uint32_t sent) except? 0xFFFFFFFF:
        """Write what is asked for a packet; return the options of its descriptor."""
        if request is None:
            ask_nothing(self.state.pool, addr)
            return 0
        request.write(self.state.pool, addr, length, index, self.state.counters.tx_packets + sent)
        return XDP_TX_METADATA

    cdef int _reclaim(self) except -1:
        """Take completed frames back, and the timestamps that were asked for."""
        cdef PortState* port = &self.state
        cdef uint32_t first = 0
        cdef uint32_t count, i
        cdef uint64_t number = 0
        cdef uint64_t timestamp = 0
        if port.pool.tx_room == 0:
            reclaim(port)
            return 0
        count = ring_peek(&port.completion, port.tx_lent, &first)
        for i in range(count):
            if take_timestamp(port.pool, completion_slot(&port.completion, first + i)[0],
                              &number, &timestamp):
                self.timestamps.append((number, timestamp))
        if count:
            take_completed(port, first, count)
        return 0

    def take_timestamps(self):
        """Take what was told of packets sent: a list of (number, ns), number from 0 on."""
        self._enter()
        self._reclaim()
        taken = list(self.timestamps)
        self.timestamps.clear()
        return taken

    cdef Py_ssize_t _send_all_whole(self, packets, Py_ssize_t first,
                                    TxRequest request) except -1:
        """``send_bytes`` where a packet may take several frames."""
        cdef uint32_t queued = 0
        cdef Py_ssize_t sent = 0
        try:
            while first + sent < len(packets) and self._send_whole(
                    packets[first + sent], first + sent, &queued, request):
                sent += 1
        finally:
            tx_submit(&self.state, queued)
            if queued:
                self._kick()
        return sent

    cdef bint _send_whole(self, packet, Py_ssize_t index, uint32_t* queued,
                          TxRequest request) except -1:
        """Copy one packet to the TX ring, behind ``queued`` descriptors; False if there is no room.

        Raises
        ------
        ConfigError
            If it is too short or too long.
        """
        cdef size_t most = self.state.max_fragments * <size_t>send_room(self.state.pool)
        cdef Py_buffer buffer
        PyObject_GetBuffer(packet, &buffer, PyBUF_SIMPLE)
        try:
            if not ETHERNET_HEADER_BYTES <= <size_t>buffer.len <= most:
                raise ConfigError(
                    f"packet {index} has {buffer.len} bytes; it must have 14 to {most}"
                )
            return self._put_whole(<const char*>buffer.buf, buffer.len, index, queued, request)
        finally:
            PyBuffer_Release(&buffer)

    cdef bint _put_whole(self, const char* data, size_t length, Py_ssize_t index,
                         uint32_t* queued, TxRequest request) except -1:
        cdef PortState* port = &self.state
        cdef FramePool* pool = port.pool
        cdef xdp_desc descs[MAX_FRAGMENTS]
        cdef uint32_t slot = 0
        cdef uint32_t options
        cdef uint32_t room = send_room(pool)
        cdef uint32_t count = <uint32_t>((length + room - 1) // room)
        cdef uint32_t i
        if count > pool.count or (
                ring_reserve(&port.tx, queued[0] + count, &slot) < queued[0] + count):
            return False
        options = self._ask(request, next_addr(pool), <uint32_t>min(length, <size_t>room), index, 0)
        for i in range(count):
            descs[i].addr = next_addr(pool)
            pool.count -= 1
            descs[i].len = <uint32_t>min(length, <size_t>room)
            frame_move(pool, descs[i].addr, PLACE_POOL, PLACE_USER)
            memcpy(pool.data + descs[i].addr, data, descs[i].len)
            if i:
                ask_nothing(pool, descs[i].addr)
            data += descs[i].len
            length -= descs[i].len
        if not send_chain(port, descs, count, queued):
            return False
        tx_slot(&port.tx, slot + queued[0] - count).options |= options
        return True

    cdef int _submit(self, uint32_t count) except -1:
        if count == 0:
            return 0
        tx_submit(&self.state, count)
        self.state.counters.tx_packets += count
        return self._kick()

    cdef int _kick(self) except -1:
        """Have the kernel send what is on the TX ring; what cannot be sent now stays there."""
        cdef int error
        self.is_used = True             # close() by another thread has to wait
        with nogil:
            error = kick_tx(&self.state)
        self.is_used = False
        if error:
            raise kernel_error(error, "send on", self.name)
        return 0

    def flush(self):
        """Send what is still on the TX ring, and take completed frames back; return what is out."""
        self._enter()
        self._kick()
        self._reclaim()
        return self.state.tx_lent

    def wait(self, bint to_send, double seconds):
        """Wait until a packet is there, or the TX ring has room; False after ``seconds``.

        Below zero: for ever.  Signals are handled meanwhile.

        Raises
        ------
        ConfigError
            If another thread closed the socket.
        KernelError
            If the socket died, for example with its link.
        """
        cdef pollfd waited
        cdef timespec timeout
        cdef int ready, error
        cdef double left = seconds if seconds >= 0 else float("inf")
        cdef double watch = WATCH_SECONDS
        cdef double end = time.monotonic() + left
        self._enter()
        while self.late:
            self.recycle(self.late.pop())
        self._reclaim()
        refill(&self.state)
        if self.state.fill_target and ring_needs_wakeup(&self.state.fill):
            self.state.counters.rx_wakeups += 1
            self.state.kick_rx(self.state.fd)
        waited.fd = self.state.fd
        waited.events = POLLOUT if to_send else POLLIN
        timeout.tv_sec = 0
        while True:
            timeout.tv_nsec = <long>(min(left, watch) * 1e9)
            waited.revents = 0
            with nogil:
                ready = ppoll(&waited, 1, &timeout, NULL)
                error = errno
            if ready > 0:
                return True
            if ready < 0 and error != EINTR:
                raise kernel_error(error, "wait for", self.name)
            PyErr_CheckSignals()
            self._require_alive()
            left = end - time.monotonic()
            if left <= 0:
                return False

    cdef int _require_alive(self) except -1:
        self._require_idle()
        if not self.dead:
            self.dead = socket_error(self.state.fd)
        if self.dead:
            raise kernel_error(self.dead, "wait for", self.name)
        return 0

    @property
    def free_frames(self):
        """Frames in the pool."""
        return self.state.pool.count

    @property
    def tx_packets(self):
        """Frames put on the TX ring, ever."""
        return self.state.counters.tx_packets

    @property
    def sent_out(self):
        """Frames handed to the kernel to send and not back yet."""
        return self.state.tx_lent


cdef class _RowsOf:
    """Packets, one per row of an array, as bytes."""

    cdef object rows
    cdef object lengths

    def __cinit__(self, rows, lengths):
        self.rows = rows
        self.lengths = lengths

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        if self.lengths[index] > self.rows.shape[1]:
            raise ConfigError(
                f"packet {index} has {self.lengths[index]} bytes, its row {self.rows.shape[1]}"
            )
        return self.rows[index, :self.lengths[index]].copy()


cdef uint8_t* rows_of(metadata, Py_ssize_t count) except? NULL:
    """Return where an array for the metadata of ``count`` packets begins; NULL for none."""
    cdef uint8_t[:, ::1] rows
    if metadata is None or count == 0:
        return NULL
    rows = metadata
    if rows.shape[0] < count or rows.shape[1] != RX_METADATA_BYTES:
        raise ConfigError(f"metadata must have shape ({count}, {RX_METADATA_BYTES})")
    return &rows[0, 0]


cdef int check_length(const FramePool* pool, size_t length, Py_ssize_t index) except -1:
    if length < ETHERNET_HEADER_BYTES or length > send_room(pool):
        raise ConfigError(
            f"packet {index} has {length} bytes; it must have 14 to {send_room(pool)}"
        )
    return 0


cdef int check_frame(const FramePool* pool, uint64_t addr, size_t length,
                     Py_ssize_t index) except -1:
    cdef uint64_t offset = addr & (pool.frame_size - 1)
    if addr >= pool.umem_size or length < ETHERNET_HEADER_BYTES or offset < pool.tx_room or (
            length > pool.frame_size - offset):
        raise ConfigError(
            f"packet {index} has {length} bytes at {addr}; it must have 14 or more, inside one "
            f"frame of {pool.frame_size}"
        )
    return 0


cdef object not_lent(uint64_t addr):
    return ConfigError(
        f"the frame at {addr} is not yours: it was never received, or given back since"
    )


cdef uint32_t copy_packet(FramePool* pool, uint64_t addr, object packet,
                          Py_ssize_t index) except? 0:
    cdef Py_buffer buffer
    cdef size_t length
    if PyBytes_CheckExact(packet):
        length = PyBytes_GET_SIZE(packet)
        check_length(pool, length, index)
        memcpy(pool.data + addr, PyBytes_AS_STRING(packet), length)
        return <uint32_t>length
    PyObject_GetBuffer(packet, &buffer, PyBUF_SIMPLE)
    try:
        check_length(pool, buffer.len, index)
        memcpy(pool.data + addr, buffer.buf, buffer.len)
        return <uint32_t>buffer.len
    finally:
        PyBuffer_Release(&buffer)


cdef inline Py_ssize_t span(Py_ssize_t size, Py_ssize_t row_bytes, uint64_t addr,
                            uint32_t length) except -1:
    """Return how many of ``length`` bytes at ``addr`` lie in its row of a window."""
    if row_bytes == 0:
        return 0
    if addr >= <uint64_t>size:
        raise IndexError(f"byte {addr} is outside a window of {size}")
    return min(<Py_ssize_t>length, row_bytes - <Py_ssize_t>addr % row_bytes)


def to_bytes(const unsigned char[:, ::1] window, const uint64_t[::1] addrs,
             const uint32_t[::1] lengths):
    """Copy packets that lie in ``window``: a list of bytes.

    Parameters
    ----------
    window : uint8, shape (rows, row bytes)
        Packet ``i`` begins ``addrs[i]`` bytes after its first, and ends with its row at the latest.
    addrs : uint64, shape (n,)
    lengths : uint32, shape (n,)
    """
    cdef Py_ssize_t row_bytes = window.shape[1]
    cdef Py_ssize_t size = window.shape[0] * row_bytes
    cdef Py_ssize_t i, length
    cdef list packets = []
    for i in range(addrs.shape[0]):
        length = span(size, row_bytes, addrs[i], lengths[i])
        packets.append(PyBytes_FromStringAndSize(<const char*>&window[0, addrs[i]], length))
    return packets


def longest_of(const uint32_t[::1] lengths):
    """Return the greatest of ``lengths``, 0 if there is none."""
    cdef uint32_t longest = 0
    cdef Py_ssize_t i
    for i in range(lengths.shape[0]):
        longest = max(longest, lengths[i])
    return longest


def to_rows(const unsigned char[:, ::1] window, const uint64_t[::1] addrs,
            const uint32_t[::1] lengths, Py_ssize_t first, unsigned char[:, ::1] rows,
            uint64_t[::1] row_addrs, uint32_t[::1] row_lengths):
    """Copy packets that lie in ``window``, as in ``to_bytes``, to ``rows`` from ``first`` on.

    Parameters
    ----------
    rows : uint8, shape (m, longest)
        Gets zeros behind a packet.
    row_addrs : uint64, shape (m,)
        Gets where in ``rows`` each begins.
    row_lengths : uint32, shape (m,)
        Gets what was copied of each.
    """
    cdef Py_ssize_t row_bytes = window.shape[1]
    cdef Py_ssize_t size = window.shape[0] * row_bytes
    cdef Py_ssize_t width = rows.shape[1]
    cdef Py_ssize_t i, length
    cdef unsigned char* row
    if addrs.shape[0] != lengths.shape[0] or first + addrs.shape[0] > rows.shape[0]:
        raise IndexError(f"no room for {addrs.shape[0]} packets from row {first} on")
    for i in range(addrs.shape[0]):
        length = min(span(size, row_bytes, addrs[i], lengths[i]), width)
        row = &rows[first + i, 0]
        memcpy(row, &window[0, addrs[i]], length)
        memset(row + length, 0, width - length)
        row_addrs[first + i] = (first + i) * width
        row_lengths[first + i] = <uint32_t>length
