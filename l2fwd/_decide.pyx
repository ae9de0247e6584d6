"""What becomes of a burst of packets that went up: rules, then a policy, then the flow table.

A rule decides, or sends the packet to the policy: a Python callable for the whole burst, or a
C function at full rate.  What was decided is learned: inserted into the kernel's flow table,
once per flow, and so many a second at most; a packet beyond that is forwarded all the same.
"""

from cpython.buffer cimport PyBUF_READ, PyBUF_WRITE
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from posix.time cimport clock_gettime, timespec

from l2fwd._classify cimport (
    KEY_WORDS, VERDICT_OUT, VERDICT_USER, Classifier, Packet, Table, classify, hash_key, packet_key,
    rule_action,
)
from l2fwd._xdp cimport RELAXED, atomic_load_64, atomic_store_64

import logging

from l2fwd.errors import ConfigError

_logger = logging.getLogger("l2fwd.policy")

DEFAULT_INSERTS_PER_SECOND = 50_000


cdef extern from "time.h" nogil:
    int CLOCK_MONOTONIC_COARSE


cdef inline uint64_t now_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now)
    return <uint64_t>now.tv_sec * 1000000000 + <uint64_t>now.tv_nsec


cdef void end_asking(Policy* policy) noexcept nogil:
    """Ask a policy in Python no more, in a moment: a slow one must not hold up a stop."""
    if atomic_load_64(&policy.deadline, RELAXED) == 0:      # asked again, it stays the first
        atomic_store_64(&policy.deadline, now_ns() + LAST_ASKS_NS, RELAXED)


cdef inline bint is_too_late(Policy* policy) noexcept nogil:
    cdef uint64_t deadline = atomic_load_64(&policy.deadline, RELAXED)
    return deadline != 0 and now_ns() > deadline


cdef bint ask_python(Policy* policy) noexcept with gil:
    """Have the callable fill ``actions``; False if it did not."""
    if policy.ask == NULL:
        return False
    try:
        (<object>policy.ask)(
            PyMemoryView_FromMemory(<char*>policy.packets, policy.asked * sizeof(Packet),
                                    PyBUF_READ),
            PyMemoryView_FromMemory(<char*>policy.actions, policy.asked * sizeof(rule_action),
                                    PyBUF_WRITE))
        return True
    except BaseException as error:  # a user's code may raise anything
        # The first one whole, then counted: a traceback a burst would fill a disk.
        if policy.failures == 0:
            _logger.error("policy failed, its packets are dropped; said once: %s", error,
                          exc_info=True)
    return False


cdef void refuse_to_answer(Policy* policy) noexcept nogil:
    """Leave all to nobody: dropped, and counted."""
    cdef uint32_t i
    for i in range(policy.asked):
        policy.actions[i].verdict = VERDICT_USER


cdef void ask_policy(Policy* policy, uint8_t* umem) noexcept nogil:
    """Have the policy fill its actions; they say pass until it does."""
    cdef uint32_t i
    memset(policy.actions, 0, policy.asked * sizeof(rule_action))
    if policy.ask != NULL and is_too_late(policy):
        refuse_to_answer(policy)
        return
    policy.calls += 1
    if policy.for_burst != NULL:
        policy.for_burst(policy.packets, policy.actions, policy.asked, umem)
    elif policy.for_packet != NULL:
        for i in range(policy.asked):
            policy.for_packet(&policy.packets[i], &policy.actions[i],
                              umem + policy.packets[i].addr)
    elif not ask_python(policy):
        policy.failures += 1
        refuse_to_answer(policy)


cdef inline void collect(Policy* policy, const Packet* packet, uint32_t index) noexcept nogil:
    policy.packets[policy.asked] = packet[0]
    policy.indices[policy.asked] = <uint16_t>index
    policy.asked += 1


cdef inline uint32_t other_link(const Decision* decision, const Packet* packet) noexcept nogil:
    """The link that the pair of a packet's link forwards to; 0 if it is of none."""
    cdef int place = port_of(decision, packet.key.in_ifindex)
    return decision.ifindexes[1 - place] if 0 <= place <= 1 else 0


cdef void decide(Decision* decision, const Table* table, uint32_t count,
                 uint8_t* umem) noexcept nogil:
    """Find an action for each of the first ``count`` packets; none is NULL then."""
    cdef Policy* policy = &decision.policy
    cdef const rule_action* action
    cdef rule_action* answer
    cdef uint32_t i
    policy.asked = 0
    classify(table, decision.packets, count, decision.actions)
    for i in range(count):
        if decision.actions[i] == NULL:
            decision.actions[i] = &table.miss
        action = decision.actions[i]
        if action.rule < decision.rules:
            decision.hits[action.rule].packets += 1
            decision.hits[action.rule].bytes += (
                decision.packets[i].length + decision.packets[i].more)
        if action.verdict == VERDICT_USER:
            collect(policy, &decision.packets[i], i)
    if policy.asked == 0:
        return
    ask_policy(policy, umem)
    for i in range(policy.asked):
        answer = &policy.actions[i]
        answer.rule = decision.actions[policy.indices[i]].rule  # it counts the kernel's hits too
        answer.flags |= ACTION_BY_POLICY
        if answer.verdict == VERDICT_OUT and answer.out_ifindex == 0:
            answer.out_ifindex = other_link(decision, &decision.packets[policy.indices[i]])
        decision.actions[policy.indices[i]] = answer


cdef inline bint is_known(Learner* learner, uint64_t hashed) noexcept nogil:
    """Tell whether a flow was learned a moment ago, and remember that it is now."""
    cdef uint64_t* recent = &learner.recent[hashed & (RECENT_KEYS - 1)]
    if recent[0] == hashed:
        return True
    recent[0] = hashed
    return False


cdef inline void add_tokens(Learner* learner) noexcept nogil:
    """Let a tenth of a second's inserts come at once, and one in any case."""
    cdef uint64_t now = now_ns()
    cdef double most = max(1.0, learner.per_second / 10.0)
    learner.tokens = min(most, learner.tokens + (now - learner.filled) * 1e-9
                         * learner.per_second)
    learner.filled = now
    if now > learner.forget:
        memset(learner.recent, 0, sizeof(learner.recent))
        learner.forget = now + RECENT_NS


cdef inline void mask_flow(flow_key* key, const Packet* packet, const Table* table,
                           uint16_t queue) noexcept nogil:
    cdef uint64_t words[KEY_WORDS]
    cdef uint64_t mask[KEY_WORDS]
    cdef int i
    # Copies: these structs have other members, and the compiler may rely on that.
    memcpy(words, &packet.key, sizeof(packet_key))
    memcpy(mask, &table.flow_mask, sizeof(packet_key))
    for i in range(KEY_WORDS):
        words[i] &= mask[i]
    memcpy(&key.packet, words, sizeof(packet_key))
    key.queue, key.mask_slot, key.zero = queue, table.flow_slot, 0


cdef inline void put_flow(flow* learned, const rule_action* action, uint64_t now) noexcept nogil:
    """Fill in all but the key."""
    learned.action = action[0]
    learned.packets, learned.bytes = 0, 0
    learned.last_seen = now
    learned.wait_for = FLOW_NEW


cdef inline bint is_possible(const Decision* decision, const rule_action* action) noexcept nogil:
    return action.verdict < VERDICT_OUT or (
        action.verdict == VERDICT_OUT and port_of(decision, action.out_ifindex) >= 0)


cdef void learn(Decision* decision, const Table* table, uint32_t count) noexcept nogil:
    """Put what was decided into the kernel's flow table, before the packets are sent."""
    cdef Learner* learner = &decision.learner
    cdef const rule_action* action
    cdef flow_key* key
    cdef uint32_t i, inserted
    cdef uint32_t found = 0
    add_tokens(learner)
    for i in range(count):
        action = decision.actions[i]
        if action.flags & ACTION_NOT_LEARNED or not is_possible(decision, action):
            continue
        key = &learner.flows[found].key
        mask_flow(key, &decision.packets[i], table, learner.queue)
        if is_known(learner, hash_key(table.seed, &key.packet)):
            continue
        if learner.tokens < found + 1:
            learner.limited += 1
            # Not remembered, so that a later packet may be the one that is learned.
            learner.recent[hash_key(table.seed, &key.packet) & (RECENT_KEYS - 1)] = 0
            continue
        put_flow(&learner.flows[found], action, learner.filled)
        learner.hashes[found] = hash_flow(key)
        found += 1
    if found == 0:
        return
    learner.tokens -= found
    inserted = found
    learner.insert(learner.fd, learner.hashes, learner.flows, &inserted)
    learner.inserted += inserted
    learner.failed += found - inserted


cdef class Decider:
    """Rules, a policy and a learner for one worker.

    Parameters
    ----------
    classifier : Classifier
        The rules in force at first.
    ifindexes : sequence of int
        Of the worker's ports, in their order.
    rules : int
        Rule ids that hits are counted for, from 0 on.
    ask : callable, optional
        ``ask(packets, actions)`` fills the actions, ``records.ACTION`` each, of the packets,
        ``records.PACKET`` each.  Both are memoryviews that are valid inside the call; it may raise.
    for_burst, for_packet : int
        Address of a C function in place of ``ask``.  Burst: ``void f(const struct packet *, struct
        rule_action *, uint32_t count, uint8_t *umem)``; packet: ``void f(const struct packet *,
        struct rule_action *, uint8_t *data)``.
    queue : int
        RX queue id of the flows learned.
    insert, flows_fd : int
        Address of the function that inserts flows, and the table's fd; 0 to learn nothing.
    inserts_per_second : int
        At least one.
    """

    def __cinit__(self, Classifier classifier not None, ifindexes, *, uint32_t rules=0, ask=None,
                  uintptr_t for_burst=0, uintptr_t for_packet=0, uint16_t queue=0,
                  uintptr_t insert=0, int flows_fd=-1,
                  uint64_t inserts_per_second=DEFAULT_INSERTS_PER_SECOND):
        if inserts_per_second < 1:
            raise ConfigError("inserts_per_second must be at least 1")
        if len(ifindexes) > MAX_PORTS:
            raise ConfigError(f"{len(ifindexes)} links, {MAX_PORTS} are possible")
        for place, ifindex in enumerate(ifindexes):
            self.state.ifindexes[place] = ifindex
        self.state.port_count = len(ifindexes)
        self.classifier = classifier
        self.ask = ask
        self.state.policy.ask = <void*>ask if ask is not None else NULL
        self.state.table = &classifier.table
        self.state.rules = rules
        self.state.hits = <rule_hits*>calloc(max(rules, 1), sizeof(rule_hits))
        if self.state.hits == NULL:
            raise MemoryError
        self.state.policy.for_burst = <burst_policy>for_burst
        self.state.policy.for_packet = <packet_policy>for_packet
        self.state.learner.insert = <insert_function>insert
        self.state.learner.fd = flows_fd
        self.state.learner.queue = queue
        self.state.learner.per_second = inserts_per_second

    def __dealloc__(self):
        free(self.state.hits)

    @property
    def rules(self):
        """Rule ids that hits are counted for."""
        return self.state.rules

    def hits(self, uint32_t rule):
        """Return packets and bytes that a rule has taken."""
        if rule >= self.state.rules:
            raise ConfigError(f"rule must be below {self.state.rules}, got {rule}")
        return self.state.hits[rule].packets, self.state.hits[rule].bytes

    def counters(self):
        """Return flows ``inserted``, ``limited``, ``failed``; the policy's ``calls``, failures."""
        return {
            "inserted": self.state.learner.inserted,
            "limited": self.state.learner.limited,
            "failed": self.state.learner.failed,
            "calls": self.state.policy.calls,
            "failures": self.state.policy.failures,
        }
