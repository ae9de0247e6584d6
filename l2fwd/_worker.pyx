"""The life of a packet: received on one port, sent on another, its frame recycled.

``forward_burst`` is the whole data path of a plain pair of ports, ``decide_burst`` the same with
rules, and a ``Job`` brings another one; ``forward_chains`` and ``decide_chains`` stand for them
where a packet may take several frames.  ``run_worker`` calls it until it is stopped, sleeping while
there is nothing to do.  No Python but a user's policy, no allocation, no lock, and at most one
system call per batch and port in here.
"""

from libc.errno cimport EAGAIN, EBUSY, EINTR, ENETDOWN, ENOBUFS, ENOMEM
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy
from posix.time cimport CLOCK_MONOTONIC, clock_gettime
from posix.unistd cimport usleep

from l2fwd._chains cimport (
    Chains, chain_at, chain_size, give_chain, send_chain, take_chains,
)
from l2fwd._classify cimport (
    CHANGE_DEC_TTL, MAX_BURST, VERDICT_DROP, VERDICT_OUT, VERDICT_PASS, Classifier, Packet, Table,
    change_packet, parse_packet, rule_action, ttl_allows,
)
from l2fwd._decide cimport (
    MAX_PORTS, Decider, Decision, decide, end_asking, host_function, learn, port_of,
)
from l2fwd._rings cimport (
    PLACE_RX, PLACE_TX, PLACE_USER, ConsumerRing, FramePool, Port, PortState, ProducerRing,
    frame_move, frame_start, lose_frame, packet_is_usable, pool_give, reclaim, refill,
    ring_needs_wakeup, ring_pending, ring_reserve, rx_peek, rx_release, rx_slot, take_packet,
    tx_slot, tx_submit,
)
from l2fwd._xdp cimport (
    IN_ORDER, POLLIN, POLLOUT, RELAXED, RELEASE, SO_ERROR, SOL_SOCKET, atomic_load,
    atomic_load_ptr, atomic_store, atomic_store_64, atomic_store_ptr, getsockopt, pollfd, ppoll,
    timespec, unlikely, xdp_desc,
)

from l2fwd.errors import ConfigError, kernel_error


cdef extern from "sys/prctl.h" nogil:
    enum:
        PR_GET_TIMERSLACK
        PR_SET_TIMERSLACK

    int prctl(int option, unsigned long value, ...)


cdef enum:
    IDLE_NS = 100000000             # bound of one sleep; a stop request waits no longer
    UNSETTLED_NS = 5000000          # the same while packets wait to be sent or completed
    MAX_USELESS_KICKS = 4           # sendto calls of one turn that moved nothing
    SWAP_POLL_US = 20
    SECOND_NS = 1000000000
    SHORT_SLEEPS = 4                # of so many naps at most, so many in a row: then nap
    MAX_PATIENCE = 1024             # so many in a row, where naps are of no use
    MAX_COALESCE_US = 1000
    MAX_DRAIN_SLEEPS = 40           # of UNSETTLED_NS: how long a stopping worker waits


cdef inline void swap_macs(unsigned char* data) noexcept nogil:
    """Swap by words of four and two bytes, each read and written once."""
    cdef uint32_t dst_head, src_head
    cdef uint16_t dst_tail, src_tail
    memcpy(&dst_head, data, 4)
    memcpy(&dst_tail, data + 4, 2)
    memcpy(&src_head, data + 6, 4)
    memcpy(&src_tail, data + 10, 2)
    memcpy(data, &src_head, 4)
    memcpy(data + 4, &src_tail, 2)
    memcpy(data + 6, &dst_head, 4)
    memcpy(data + 10, &dst_tail, 2)


cdef inline void rewrite_packet(unsigned char* data, const Rewrite* rewrite) noexcept nogil:
    if rewrite.kind & REWRITE_SWAP_MAC:
        swap_macs(data)
    if rewrite.kind & REWRITE_DST_MAC:
        memcpy(data, rewrite.dst_mac, 6)


cdef uint32_t forward_burst(PortState* src, PortState* dst, const Rewrite* rewrite,
                            uint32_t batch_size) noexcept nogil:
    """Move up to ``batch_size`` packets from ``src`` to ``dst``; return how many arrived.

    A packet is sent by handing on its descriptor: both ports share the UMEM.  What does not
    fit the TX ring is dropped and counted at once, never waited for.
    """
    # Copies, so that their members stay in registers: a store to a packet could alias them.
    cdef FramePool pool
    cdef ConsumerRing rx
    cdef ProducerRing tx
    cdef Rewrite change
    cdef uint32_t rx_first = 0
    cdef uint32_t tx_first = 0
    cdef uint32_t sent = 0
    cdef uint32_t invalid = 0
    cdef uint64_t rx_bytes = 0
    cdef uint64_t tx_bytes = 0
    cdef uint32_t received, room, i
    cdef xdp_desc desc

    reclaim(dst)
    received = rx_peek(src, batch_size, &rx_first)
    if received == 0:
        refill(src)             # the pool was empty when its last packet came
        return 0
    room = ring_reserve(&dst.tx, received, &tx_first)
    pool, rx, tx, change = src.pool[0], src.rx, dst.tx, rewrite[0]

    for i in range(received):
        desc = rx_slot(&rx, rx_first + i)[0]
        if unlikely(not packet_is_usable(&pool, &desc), 0):
            lose_frame(&pool, desc.addr)
            invalid += 1
            continue
        frame_move(&pool, desc.addr, PLACE_RX, PLACE_USER)
        rx_bytes += desc.len
        if unlikely(sent == room, 0):
            pool_give(&pool, desc.addr, PLACE_USER)
            continue
        if change.kind:
            rewrite_packet(pool.data + desc.addr, &change)
        frame_move(&pool, desc.addr, PLACE_USER, PLACE_TX)
        tx_slot(&tx, tx_first + sent)[0] = desc
        tx_bytes += desc.len
        sent += 1

    src.pool[0] = pool
    tx_submit(dst, sent)
    rx_release(src, received)
    refill(src)

    src.counters.rx_packets += received
    src.counters.rx_bytes += rx_bytes
    src.counters.rx_invalid_drops += invalid
    dst.counters.tx_packets += sent
    dst.counters.tx_bytes += tx_bytes
    dst.counters.tx_full_drops += received - invalid - sent
    return received


cdef uint32_t forward_chains(PortState* src, PortState* dst, const Rewrite* rewrite,
                             uint32_t batch_size) noexcept nogil:
    """``forward_burst`` for packets in several frames, and for unaligned UMEMs."""
    cdef Chains chains
    cdef uint32_t queued = 0
    cdef uint32_t i
    cdef uint64_t before = src.counters.rx_packets
    reclaim(dst)
    take_chains(src, batch_size, &chains)
    for i in range(chains.count):
        if rewrite.kind:
            rewrite_packet(src.pool.data + chain_at(&chains, i).addr, rewrite)
        if not send_chain(dst, chain_at(&chains, i), chain_size(&chains, i), &queued):
            give_chain(src.pool, chain_at(&chains, i), chain_size(&chains, i))
    tx_submit(dst, queued)
    refill(src)
    return <uint32_t>(src.counters.rx_packets - before)


cdef inline void show_packet(WorkerState* worker, uint32_t place, uint32_t i, const xdp_desc* desc,
                             uint32_t more) noexcept nogil:
    """Make packet ``i`` of a burst ready for the rules: what the frame at ``desc`` shows of it."""
    cdef Decision* decision = worker.decision
    cdef Packet* packet = &decision.packets[i]
    packet.addr, packet.length, packet.more = desc.addr, desc.len, more
    parse_packet(worker.ports[place].pool.data + desc.addr, desc.len, decision.ifindexes[place],
                 &packet.key)


cdef uint32_t take_burst(WorkerState* worker, uint32_t place, xdp_desc* descs) noexcept nogil:
    """Receive up to a burst and read what it shows to the rules; return how many are usable."""
    cdef PortState* src = worker.ports[place]
    cdef uint32_t first = 0
    cdef uint32_t usable = 0
    cdef uint32_t received, i
    cdef xdp_desc desc
    received = rx_peek(src, min(worker.batch_size, <uint32_t>MAX_BURST), &first)
    for i in range(received):
        if not take_packet(src, rx_slot(&src.rx, first + i), &desc):
            continue
        show_packet(worker, place, usable, &desc, 0)
        descs[usable] = desc
        usable += 1
    if usable and worker.progress[place].done != NULL:
        worker.progress[place].seen = packet_number(src.pool, &descs[usable - 1])
    rx_release(src, received)
    return usable


cdef inline uint64_t packet_number(const FramePool* pool, const xdp_desc* desc) noexcept nogil:
    """Read what number_packet of kern/flows.h wrote in front of the data."""
    cdef uint64_t number = 0
    if desc.addr - frame_start(pool, desc.addr) >= sizeof(number):
        memcpy(&number, pool.data + desc.addr - sizeof(number), sizeof(number))
    return number


cdef inline uint32_t verdict_of(const FramePool* pool, const Packet* packet,
                                const rule_action* action) noexcept nogil:
    # The last hop: the host stack answers for it.
    if action.changes & CHANGE_DEC_TTL and not ttl_allows(pool.data + packet.addr, &packet.key):
        return VERDICT_PASS
    return action.verdict


cdef void give_to_host(WorkerState* worker, uint32_t place, const Packet* packet) noexcept nogil:
    """Hand a packet to this host's stack, as if it had just been received on the link.

    Not one in several frames: the kernel takes live frames of one page (bpf_prog_test_run_xdp).
    """
    cdef PortState* src = worker.ports[place]
    cdef uint8_t* data = src.pool.data + packet.addr
    if worker.give_back != NULL and packet.more == 0 and worker.give_back(
            worker.host_fd, data, packet.length, packet.key.in_ifindex) == 0:
        src.counters.host_packets += 1
    else:
        src.counters.rx_host_drops += 1


cdef bint send_packet(PortState* src, PortState* dst, xdp_desc* desc, const Packet* packet,
                      const rule_action* action, uint32_t* queued) noexcept nogil:
    """Change a packet and put it on a TX ring, behind the ``queued`` ones; or count the drop."""
    cdef uint32_t first = 0
    if ring_reserve(&dst.tx, queued[0] + 1, &first) <= queued[0]:
        dst.counters.tx_full_drops += 1
        return False
    if action.changes and not change_packet(src.pool, desc, &packet.key, action):
        src.counters.rx_change_drops += 1
        return False
    frame_move(src.pool, desc.addr, PLACE_USER, PLACE_TX)
    tx_slot(&dst.tx, first + queued[0])[0] = desc[0]
    dst.counters.tx_bytes += desc.len
    queued[0] += 1
    return True


cdef int settle(WorkerState* worker, uint32_t place, uint32_t i) noexcept nogil:
    """Find the port that packet ``i`` is for; -1 if it is for none, and that has been seen to."""
    cdef Decision* decision = worker.decision
    cdef PortState* src = worker.ports[place]
    cdef const rule_action* action = decision.actions[i]
    cdef uint32_t verdict = verdict_of(src.pool, &decision.packets[i], action)
    cdef int out
    if verdict == VERDICT_OUT:
        out = port_of(decision, action.out_ifindex)
        if out >= 0:
            return out
        src.counters.tx_no_link_drops += 1
    elif verdict == VERDICT_PASS:
        give_to_host(worker, place, &decision.packets[i])
    elif verdict == VERDICT_DROP:
        src.counters.rx_rule_drops += 1
    else:
        src.counters.rx_policy_drops += 1
    return -1


cdef bint act(WorkerState* worker, uint32_t place, uint32_t i, xdp_desc* desc,
              uint32_t* queued) noexcept nogil:
    """Do with packet ``i`` what was decided; False if its frame is free again."""
    cdef Decision* decision = worker.decision
    cdef int out = settle(worker, place, i)
    return out >= 0 and send_packet(worker.ports[place], worker.ports[out], desc,
                                    &decision.packets[i], decision.actions[i], &queued[out])


cdef void decide_all(WorkerState* worker, uint32_t place, uint32_t count) noexcept nogil:
    """Find what becomes of the burst, and tell the kernel of it."""
    if count:
        decide(worker.decision, worker.table, count, worker.ports[place].pool.data)
        if worker.decision.learner.insert != NULL:
            learn(worker.decision, worker.table, count)


cdef uint32_t decide_burst(WorkerState* worker, uint32_t place) noexcept nogil:
    """Forward a burst by the rules; return how many packets arrived.

    Decided together, learned together, then sent in the order they came.
    """
    cdef PortState* src = worker.ports[place]
    cdef xdp_desc descs[MAX_BURST]
    cdef uint32_t queued[MAX_PORTS]
    cdef uint32_t usable, i
    cdef uint64_t before = src.counters.rx_packets
    for i in range(worker.port_count):
        reclaim(worker.ports[i])
        queued[i] = 0
    usable = take_burst(worker, place, descs)
    decide_all(worker, place, usable)
    for i in range(usable):
        if not act(worker, place, i, &descs[i], queued):
            pool_give(src.pool, descs[i].addr, PLACE_USER)
    for i in range(worker.port_count):
        tx_submit(worker.ports[i], queued[i])
        worker.ports[i].counters.tx_packets += queued[i]
    refill(src)
    return <uint32_t>(src.counters.rx_packets - before)


cdef void show_chains(WorkerState* worker, uint32_t place, Chains* chains) noexcept nogil:
    """Make a burst ready for the rules, which look at the first frame of each packet."""
    cdef uint32_t i, j, more
    for i in range(chains.count):
        more = 0
        for j in range(1, chain_size(chains, i)):
            more += chain_at(chains, i)[j].len
        show_packet(worker, place, i, chain_at(chains, i), more)
    if chains.count and worker.progress[place].done != NULL:
        worker.progress[place].seen = packet_number(worker.ports[place].pool,
                                                    chain_at(chains, chains.count - 1))


cdef bint act_on_chain(WorkerState* worker, uint32_t place, uint32_t i, Chains* chains,
                       uint32_t* queued) noexcept nogil:
    """``act``, for a packet in several frames."""
    cdef PortState* src = worker.ports[place]
    cdef Decision* decision = worker.decision
    cdef int out = settle(worker, place, i)
    if out < 0:
        return False
    if decision.actions[i].changes and not change_packet(
            src.pool, chain_at(chains, i), &decision.packets[i].key, decision.actions[i]):
        src.counters.rx_change_drops += 1
        return False
    return send_chain(worker.ports[out], chain_at(chains, i), chain_size(chains, i), &queued[out])


cdef uint32_t decide_chains(WorkerState* worker, uint32_t place) noexcept nogil:
    """``decide_burst`` for packets in several frames, and for unaligned UMEMs."""
    cdef PortState* src = worker.ports[place]
    cdef Chains chains
    cdef uint32_t queued[MAX_PORTS]
    cdef uint32_t i
    cdef uint64_t before = src.counters.rx_packets
    for i in range(worker.port_count):
        reclaim(worker.ports[i])
        queued[i] = 0
    take_chains(src, worker.batch_size, &chains)
    show_chains(worker, place, &chains)
    decide_all(worker, place, chains.count)
    for i in range(chains.count):
        if not act_on_chain(worker, place, i, &chains, queued):
            give_chain(src.pool, chain_at(&chains, i), chain_size(&chains, i))
    for i in range(worker.port_count):
        tx_submit(worker.ports[i], queued[i])
    refill(src)
    return <uint32_t>(src.counters.rx_packets - before)


cdef bint kick_was_useful(PortState* port, int error, uint32_t before) noexcept nogil:
    """Count what ``sendto`` answered; tell whether it took packets off the ring all the same."""
    cdef bint moved = ring_pending(&port.tx.ring) != before
    if error == EBUSY:
        port.counters.tx_busy_drops += moved    # xsk_generic_xmit: completed, never sent
    elif error == EAGAIN:
        port.counters.tx_again += 1
        reclaim(port)                           # a full completion ring stops TX
    elif error == ENOBUFS or error == ENOMEM:
        port.counters.tx_no_buffer += 1
    return moved


cdef int kick_tx(PortState* port) noexcept nogil:
    """Have the kernel send what the TX ring holds; return 0, or errno if the socket is dead.

    In copy mode nothing leaves without this call, and one call may send only part.  What
    cannot be sent now stays on the ring for the next turn.
    """
    cdef uint32_t useless = 0
    cdef uint32_t before = ring_pending(&port.tx.ring)
    cdef int error
    while before and useless < MAX_USELESS_KICKS and (
            port.is_polled or ring_needs_wakeup(&port.tx)):
        port.counters.tx_wakeups += 1
        error = -port.kick_tx(port.tx_fd)
        if error == 0:
            return 0
        if error == ENETDOWN:
            port.counters.tx_link_down += 1
            return 0                            # packets wait on the TX ring for the link
        if error not in (EAGAIN, EBUSY, EINTR, ENOBUFS, ENOMEM):
            return error
        if not kick_was_useful(port, error, before):
            useless += 1
        before = ring_pending(&port.tx.ring)
    return 0


cdef void kick_rx(PortState* port) noexcept nogil:
    """Wake a driver that ran out of fill-ring frames (need_wakeup on the fill ring).

    A polled one is woken each time: it receives, and completes what was sent, in this call only.
    """
    if port.is_polled or port.fill_target and ring_needs_wakeup(&port.fill):
        port.counters.rx_wakeups += 1
        port.kick_rx(port.fd)


cdef int kick_port(WorkerState* worker, uint32_t place) noexcept nogil:
    """Have a port send; return 0, or errno with ``worker.failed`` set."""
    cdef int error = kick_tx(worker.ports[place])
    if unlikely(error != 0, 0):
        worker.failed = worker.ports[place]
    return error


cdef int kick_all(WorkerState* worker) noexcept nogil:
    """Have all ports send; return 0, or errno with ``worker.failed`` set."""
    cdef int error = 0
    cdef uint32_t i
    for i in range(worker.port_count):
        error = error or kick_port(worker, i)
    return error


cdef uint32_t turn(WorkerState* worker, int* error) noexcept nogil:
    """Serve every port once; return how many packets were received or made."""
    worker.turns += 1
    worker.pause_ns = 0
    return worker.turn(worker, error)


cdef uint32_t turn_of_pair(WorkerState* worker, int* error) noexcept nogil:
    """Forward between two ports, or from one port back to itself."""
    cdef uint32_t moved = 0
    cdef uint32_t last = worker.port_count - 1
    cdef const Rewrite* rewrite
    cdef uint32_t i
    for i in range(1 + worker.both_ways):
        rewrite = &worker.leftward if i else &worker.rightward
        if worker.is_plain:
            moved += forward_burst(worker.ports[i], worker.ports[last - i], rewrite,
                                   worker.batch_size)
        else:
            moved += forward_chains(worker.ports[i], worker.ports[last - i], rewrite,
                                    worker.batch_size)
        error[0] = kick_port(worker, last - i)
        if error[0]:
            break
    return moved


cdef uint32_t turn_with_rules(WorkerState* worker, int* error) noexcept nogil:
    cdef uint32_t moved = 0
    cdef uint32_t i
    # In order with the load of the table: who sees an even epoch after putting a new table there
    # knows that the old one is not used any more (Worker.swap).
    atomic_store(&worker.epoch, worker.epoch + 1, IN_ORDER)
    worker.table = <Table*>atomic_load_ptr(<void**>&worker.decision.table, IN_ORDER)
    for i in range(worker.port_count):
        if worker.ports[i].fill_target and error[0] == 0:
            if worker.is_plain:
                moved += decide_burst(worker, i)
            else:
                moved += decide_chains(worker, i)
            error[0] = kick_all(worker)
    for i in range(worker.port_count):
        tell_progress(worker, &worker.progress[i])
    atomic_store(&worker.epoch, worker.epoch + 1, RELEASE)
    return moved


cdef void tell_progress(WorkerState* worker, Progress* progress) noexcept nogil:
    """Tell the kernel up to which packet all have left, so that flows may go over to it."""
    cdef uint32_t i
    while progress.done != NULL:
        if progress.pending == 0:
            if progress.seen == progress.done[0]:
                return
            progress.pending = progress.seen
            for i in range(worker.port_count):
                progress.targets[i] = worker.ports[i].counters.tx_packets
        for i in range(worker.port_count):
            if worker.ports[i].counters.tx_completed < progress.targets[i]:
                reclaim(worker.ports[i])
            if worker.ports[i].counters.tx_completed < progress.targets[i]:
                return
        atomic_store_64(progress.done, progress.pending, RELEASE)
        progress.pending = 0


cdef inline bint is_settled(const WorkerState* worker) noexcept nogil:
    """Tell whether all ports wait for nothing but new packets."""
    cdef const PortState* port
    cdef uint32_t i
    for i in range(worker.port_count):
        port = worker.ports[i]
        if port.tx_lent or port.rx_lent != port.fill_target:
            return False
    return True


cdef int socket_error(int fd) noexcept nogil:
    """Read SO_ERROR: ENETDOWN once the link is gone, which poll() does not tell."""
    cdef int error = 0
    cdef unsigned int length = sizeof(error)
    if getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) < 0:
        return 0
    return error


cdef int idle(WorkerState* worker, int64_t timeout_ns) noexcept nogil:
    """Sleep until a packet arrives; return 0, or errno of a socket that died meanwhile."""
    cdef timespec timeout = timespec(0, timeout_ns)
    cdef pollfd fds[2 * MAX_PORTS]
    cdef uint32_t count = worker.port_count
    cdef uint32_t i
    cdef int error
    cdef short room
    cdef int events = 0
    for i in range(worker.port_count):
        # The frames that TX was holding may be back by now.
        reclaim(worker.ports[i])
        refill(worker.ports[i])
        kick_rx(worker.ports[i])
        # POLLOUT only to wait for room: a TX ring is nearly always ready, the sleep would spin.
        room = POLLOUT if worker.wants_room else 0
        if worker.ports[i].tx_fd == worker.ports[i].fd:
            fds[i] = pollfd(worker.ports[i].fd, POLLIN | room, 0)
            continue
        fds[i] = pollfd(worker.ports[i].fd, POLLIN, 0)
        if room or ring_pending(&worker.ports[i].tx.ring):
            # Asking has the kernel send what waits.
            fds[count] = pollfd(worker.ports[i].tx_fd, room, 0)
            count += 1
    worker.sleeps += 1
    if ppoll(fds, count, &timeout, NULL) > 0:
        for i in range(count):
            events |= fds[i].revents
        if not events & ~(POLLIN | POLLOUT):
            return 0
    for i in range(worker.port_count):
        error = socket_error(worker.ports[i].fd)
        if error:
            worker.failed = worker.ports[i]
            return error
    return 0


cdef uint32_t lent(const WorkerState* worker, bint to_tx) noexcept nogil:
    """Count the frames that all ports have lent, for RX or for TX."""
    cdef uint32_t total = 0
    cdef uint32_t i
    for i in range(worker.port_count):
        total += worker.ports[i].tx_lent if to_tx else worker.ports[i].rx_lent
    return total


cdef int drain(WorkerState* worker) noexcept nogil:
    """Forward what was received before the programs were detached, then return."""
    cdef int error = 0
    cdef int sleeps = 0
    # Packets still arrive if a program is attached; those beyond what was lent are not ours.
    cdef uint32_t most = lent(worker, False)
    cdef uint32_t drained = 0
    cdef uint32_t moved, i
    while error == 0 and sleeps < MAX_DRAIN_SLEEPS and drained <= most:
        moved = turn(worker, &error)
        drained += moved
        if moved == 0 and error == 0:
            for i in range(worker.port_count):
                reclaim(worker.ports[i])
            if lent(worker, True) == 0:
                return 0
            error = idle(worker, UNSETTLED_NS)
            sleeps += 1
    return error


cdef bint is_stopping(const WorkerState* worker) noexcept nogil:
    return atomic_load(&worker.stop, RELAXED)


cdef int64_t sleep_bound(const WorkerState* worker) noexcept nogil:
    """How long the worker may sleep if no packet arrives, in ns."""
    cdef int64_t bound = IDLE_NS if is_settled(worker) else UNSETTLED_NS
    if worker.busy_poll:
        return 0
    return min(bound, worker.pause_ns) if worker.pause_ns else bound


cdef bint rings_are_large_enough(const WorkerState* worker) noexcept nogil:
    """Tell whether the frames lent hold twice what came since the last sleep."""
    cdef uint32_t i
    for i in range(worker.port_count):
        if worker.ports[i].fill_target and worker.ports[i].fill_target < 2 * worker.rest.moved:
            return False
    return True


cdef bint packets_come_close(WorkerState* worker, int64_t now) noexcept nogil:
    """Tell whether the next packets will be here sooner than it pays to be woken for each.

    Being woken costs more than forwarding some packets does.  But packets that wait for each
    other's answers must not be kept: so only after some short sleeps, for as long as the naps
    gather two packets or more, and after each that did not, only after twice as many.
    """
    cdef Rest* rest = &worker.rest
    cdef bint is_short = now - rest.began_ns < SHORT_SLEEPS * rest.coalesce_ns
    cdef bint was_useful = rest.moved > (1 if rest.is_nap else 0)
    if rest.is_nap:
        rest.patience = SHORT_SLEEPS if was_useful else min(2 * rest.patience, MAX_PATIENCE)
    rest.short_sleeps = rest.short_sleeps + 1 if is_short and was_useful else 0
    return (rest.short_sleeps >= rest.patience and worker.pause_ns == 0
            and not worker.wants_room and rings_are_large_enough(worker))


cdef int sleep(WorkerState* worker) noexcept nogil:
    """Let packets gather, or wait for one; return 0, or errno of a socket that died meanwhile."""
    cdef Rest* rest = &worker.rest
    cdef timespec nap = timespec(0, rest.coalesce_ns)
    cdef timespec clock
    cdef int64_t now
    cdef uint32_t i
    if rest.coalesce_ns == 0 or worker.busy_poll:
        return idle(worker, sleep_bound(worker))
    clock_gettime(CLOCK_MONOTONIC, &clock)
    now = <int64_t>clock.tv_sec * SECOND_NS + clock.tv_nsec
    rest.is_nap = packets_come_close(worker, now)
    rest.began_ns = now
    rest.moved = 0
    if not rest.is_nap:
        return idle(worker, sleep_bound(worker))
    worker.naps += 1
    for i in range(worker.port_count):
        kick_rx(worker.ports[i])
    ppoll(NULL, 0, &nap, NULL)
    return 0


cdef int run_worker(WorkerState* worker) noexcept nogil:
    """Work until stopped; return 0, or errno with ``worker.failed`` set."""
    cdef int error = 0
    cdef uint32_t moved, i
    # Of this thread; a sleep would be 50 us longer otherwise.
    cdef int slack_ns = prctl(PR_GET_TIMERSLACK, 0)
    prctl(PR_SET_TIMERSLACK, 1)
    while error == 0 and not is_stopping(worker):
        moved = turn(worker, &error)
        if moved or error:
            worker.rest.moved += moved
            for i in range(worker.port_count):
                kick_rx(worker.ports[i])
        # Between naps what came while a burst was served is left to the next: it would go in
        # smaller and smaller ones, a system call each.
        if error == 0 and moved < (worker.batch_size if worker.rest.is_nap else 1):
            error = sleep(worker)
    error = error or drain(worker)
    prctl(PR_SET_TIMERSLACK, slack_ns)
    return error


cdef int set_rewrite(Rewrite* rewrite, bytes dst_mac, bint swap_mac) except -1:
    rewrite.kind = REWRITE_SWAP_MAC if swap_mac else REWRITE_NOTHING
    if dst_mac is not None:
        if len(dst_mac) != 6:
            raise ConfigError(f"a MAC address has 6 bytes, got {len(dst_mac)}")
        rewrite.kind |= REWRITE_DST_MAC
        memcpy(rewrite.dst_mac, <const unsigned char*>dst_mac, 6)
    return 0


cdef class Job:
    """What a worker does with its one port in place of forwarding.

    Each kind brings a turn function and its state; one job is one worker's.
    """

    @property
    def is_done(self):
        """True once there is nothing left to do, ever."""
        return False

    def counters(self):
        """Return what this kind of job counts beside its port, by name; callable while it runs."""
        return {}


cdef class Worker:
    """Forwards between ports that share a frame pool.

    Parameters
    ----------
    *ports : Port
        Of one ``Pool``: two that forward everything to each other, one that sends everything back,
        or with a ``decider`` up to 16.  The worker's thread alone uses them while it runs.
    batch_size : int
        Packets per burst, at least one; with a decider at most 256 are taken at once.
    both_ways : bool
        False: from the first port to the second only.  Without a decider.
    busy_poll : bool
        True: never sleep.
    coalesce_us : int
        While packets come close after each other, let them gather for so many us, 1000 at most;
        0: never.
    dst_mac : bytes or None
        Six bytes, written to every packet sent on the second port.  Without a decider.
    swap_mac : bool
        Swap source and destination MAC, in both directions.  Without a decider.
    decider : Decider, optional
        Says what becomes of each packet; its ``ifindexes`` are those of ``ports``.
    progress : sequence of int
        By port: address of the uint64 that tells the kernel which packets have left; 0 for none.
    give_back, host_fd : int
        Address of the function that gives a packet to the host stack, and the program it runs;
        without it such packets are dropped and counted.
    job : Job, optional
        Done with the one port.

    Raises
    ------
    ConfigError
        If the ports have different pools, or a size is wrong.
    """

    def __cinit__(self, *ports, uint32_t batch_size=64, bint both_ways=True,
                  bint busy_poll=False, uint32_t coalesce_us=0, bytes dst_mac=None,
                  bint swap_mac=False,
                  Decider decider=None, progress=(), uintptr_t give_back=0, int host_fd=-1,
                  Job job=None):
        cdef Port port
        most = 1 if job is not None else 2 if decider is None else MAX_PORTS
        if len(set(ports)) != len(ports) or not 1 <= len(ports) <= most:
            raise ConfigError(
                "a worker needs one port or two different ones, up to 16 with a decider, "
                "one with a job"
            )
        if decider is not None and decider.state.port_count != len(ports):
            raise ConfigError("the decider is made for other ports")
        self.ports = ports
        cdef bint is_plain = True
        for i, port in enumerate(ports):
            if port.pool is not self.ports[0].pool:
                raise ConfigError("all ports of a worker must share one frame pool")
            self.state.ports[i] = &port.state
            is_plain = is_plain and port.state.is_plain
        self.state.is_plain = is_plain
        if batch_size < 1:
            raise ConfigError("batch_size must be at least 1")
        if len(progress) not in (0, len(ports)):
            raise ConfigError(f"progress needs one entry a port, got {len(progress)}")
        self.state.port_count = len(ports)
        self.state.batch_size = batch_size
        self.state.both_ways = both_ways and len(ports) > 1
        self.state.busy_poll = busy_poll
        if coalesce_us > MAX_COALESCE_US:
            raise ConfigError(f"coalesce_us must be at most {MAX_COALESCE_US}, got {coalesce_us}")
        self.state.rest.coalesce_ns = <int64_t>coalesce_us * 1000
        self.state.rest.patience = SHORT_SLEEPS
        set_rewrite(&self.state.rightward, dst_mac, swap_mac)
        set_rewrite(&self.state.leftward, None, swap_mac)
        self.decider = decider
        self.job = job
        self.state.turn = turn_of_pair if decider is None else turn_with_rules
        if job is not None:
            self.state.turn, self.state.job = job.turn, job.state
        self.state.decision = &decider.state if decider is not None else NULL
        self.state.give_back = <host_function>give_back
        self.state.host_fd = host_fd
        for i, address in enumerate(progress):
            self.state.progress[i].done = <uint64_t*><uintptr_t>address

    def run(self):
        """Work until ``stop``.  Releases the GIL for the whole run, but for a policy in Python.

        Raises
        ------
        KernelError
            If a socket died, for example because its link went away.  ``failed`` names it.
        ConfigError
            If a port is closed, or another thread drives it.
        """
        cdef int error
        self._begin()
        with nogil:
            error = run_worker(&self.state)
        self._end(error)

    def turn(self):
        """Serve every port once, without sleeping; return the packets received or made.

        Raises
        ------
        KernelError
            As ``run``.
        """
        cdef int error = 0
        cdef uint32_t moved
        self._begin()
        with nogil:
            moved = turn(&self.state, &error)
        self._end(error)
        return moved

    def swap(self, Classifier classifier not None):
        """Put other rules in force; return once the worker cannot be in the old ones any more.

        Callable from any other thread.

        Raises
        ------
        ConfigError
            If the worker has no decider.
        """
        if self.decider is None:
            raise ConfigError("a worker without a decider has no rules")
        cdef uint32_t epoch
        atomic_store_ptr(<void**>&self.decider.state.table, &classifier.table, IN_ORDER)
        epoch = atomic_load(&self.state.epoch, IN_ORDER)
        with nogil:
            while epoch & 1 and atomic_load(&self.state.epoch, IN_ORDER) == epoch:
                usleep(SWAP_POLL_US)
        self.decider.classifier = classifier

    def stop(self):
        """Ask ``run`` to drain and return.  Callable from any thread; does not wait.

        A policy in Python is asked for a quarter of a second more: what it leaves is dropped.
        """
        if self.decider is not None:
            end_asking(&self.decider.state.policy)
        atomic_store(&self.state.stop, 1, RELAXED)

    @property
    def failed(self):
        """Name of the port whose socket died, or None."""
        cdef Port port
        for port in self.ports:
            if self.state.failed == &port.state:
                return port.name
        return None

    @property
    def turns(self):
        """Turns of the loop so far, and after how many it waited for a packet, and napped."""
        return self.state.turns, self.state.sleeps, self.state.naps

    def frames(self):
        """Count all frames of the UMEM by place; the sum is ``frame_count``.

        Returns
        -------
        dict[str, int]
            ``pool``, ``fill``, ``kernel_rx``, ``rx``, ``tx``, ``kernel_tx``, ``completion``,
            ``lost``.  Exact while the worker does not run.
        """
        pool = self.ports[0].pool
        places = {"pool": pool.free_count}
        for port in self.ports:
            for place, count in port.frames().items():
                places[place] = places.get(place, 0) + count
        places["lost"] = pool.lost_count
        return places

    cdef int _begin(self) except -1:
        """Claim all ports: one thread drives a socket, always."""
        cdef Port port
        for port in self.ports:
            port._require_idle()
        for port in self.ports:
            port.is_used = True
        return 0

    cdef int _end(self, int error) except -1:
        cdef Port port
        for port in self.ports:
            port.is_used = False
        if error:
            raise kernel_error(error, "forward on", self.failed or "AF_XDP socket")
        return 0
