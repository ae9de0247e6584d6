"""What becomes of a burst of packets that went up: rules, then a policy, then the flow table.

A rule decides, or sends the packet to the policy: a Python callable for the whole burst, or a
C function at full rate.  What was decided is learned: inserted into the kernel's flow table,
once per flow, and so many a second at most; a packet beyond that is forwarded all the same.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from posix.time cimport clock_gettime, timespec

from l2fwd._classify cimport (
    MAX_BURST, VERDICT_OUT, VERDICT_USER, Classifier, Packet, Table, classify, hash_key,
    packet_key, rule_action,
)

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


cdef int ask_python(Policy* policy) noexcept with gil:
    if policy.ask == NULL:
        return -1
    try:
        (<object>policy.ask)(policy.asked)
    except BaseException as error:  # a user's code may raise anything
        # The first one whole, then counted: a traceback a burst would fill a disk.
        if policy.failures == 0:
            _logger.error("policy failed: %s", error, exc_info=True)
        return -1
    return 0


cdef void ask_policy(Policy* policy, uint8_t* umem) noexcept nogil:
    """Have the policy fill its actions; they say pass until it does."""
    cdef uint32_t i
    policy.calls += 1
    memset(policy.actions, 0, policy.asked * sizeof(rule_action))
    if policy.for_burst != NULL:
        policy.for_burst(policy.packets, policy.actions, policy.asked, umem)
    elif policy.for_packet != NULL:
        for i in range(policy.asked):
            policy.for_packet(&policy.packets[i], &policy.actions[i],
                              umem + policy.packets[i].addr)
    elif ask_python(policy) < 0:
        policy.failures += 1
        for i in range(policy.asked):
            policy.actions[i].verdict = VERDICT_USER        # no answer: dropped and counted


cdef inline void collect(Policy* policy, const Packet* packet, uint32_t index) noexcept nogil:
    policy.packets[policy.asked] = packet[0]
    policy.indices[policy.asked] = <uint16_t>index
    policy.asked += 1


cdef void decide(Decision* decision, const Table* table, uint32_t count,
                 uint8_t* umem) noexcept nogil:
    """Find an action for each of the first ``count`` packets; none is NULL then."""
    cdef Policy* policy = &decision.policy
    cdef const rule_action* action
    cdef uint32_t i
    policy.asked = 0
    classify(table, decision.packets, count, decision.actions)
    for i in range(count):
        if decision.actions[i] == NULL:
            decision.actions[i] = &table.miss
        action = decision.actions[i]
        if action.rule < decision.rules:
            decision.hits[action.rule].packets += 1
            decision.hits[action.rule].bytes += decision.packets[i].length
        if action.verdict == VERDICT_USER:
            collect(policy, &decision.packets[i], i)
    if policy.asked == 0:
        return
    ask_policy(policy, umem)
    for i in range(policy.asked):
        action = decision.actions[policy.indices[i]]
        policy.actions[i].rule = action.rule                # it counts the kernel's hits too
        policy.actions[i].flags |= ACTION_BY_POLICY
        decision.actions[policy.indices[i]] = &policy.actions[i]


cdef inline bint is_known(Learner* learner, uint64_t hashed) noexcept nogil:
    """Tell whether a flow was learned a moment ago, and remember that it is now."""
    cdef uint64_t* recent = &learner.recent[hashed & (RECENT_KEYS - 1)]
    if recent[0] == hashed:
        return True
    recent[0] = hashed
    return False


cdef inline void add_tokens(Learner* learner) noexcept nogil:
    """Let a tenth of a second's inserts come at once."""
    cdef uint64_t now = now_ns()
    cdef double most = learner.per_second / 10.0
    learner.tokens = min(most, learner.tokens + (now - learner.filled) * 1e-9
                         * learner.per_second)
    learner.filled = now
    if now > learner.forget:
        memset(learner.recent, 0, sizeof(learner.recent))
        learner.forget = now + RECENT_NS


cdef inline void mask_flow(flow_key* key, const Packet* packet, const Table* table,
                           uint16_t queue) noexcept nogil:
    cdef const uint64_t* words = <const uint64_t*>&packet.key
    cdef const uint64_t* mask = <const uint64_t*>&table.flow_mask
    cdef uint64_t* masked = <uint64_t*>&key.packet
    cdef int i
    key.queue, key.mask_slot, key.zero = queue, table.flow_slot, 0
    for i in range(8):
        masked[i] = words[i] & mask[i]


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
        key = &learner.keys[found]
        mask_flow(key, &decision.packets[i], table, learner.queue)
        if is_known(learner, hash_key(table.seed, &key.packet)):
            continue
        if learner.tokens < found + 1:
            learner.limited += 1
            # Not remembered, so that a later packet may be the one that is learned.
            learner.recent[hash_key(table.seed, &key.packet) & (RECENT_KEYS - 1)] = 0
            continue
        memset(&learner.flows[found], 0, sizeof(flow))
        learner.flows[found].action = action[0]
        learner.flows[found].last_seen = learner.filled
        found += 1
    if found == 0:
        return
    learner.tokens -= found
    inserted = found
    learner.insert(learner.fd, learner.keys, learner.flows, &inserted)
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
        ``ask(count)`` reads ``packets`` and fills ``actions``, both this object's; it may raise.
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
    def packets(self):
        """What the policy is asked about: uint8, shape (256, 80), ``policy.PACKET`` a row."""
        return <uint8_t[:MAX_BURST, :sizeof(Packet)]><uint8_t*>self.state.policy.packets

    @property
    def actions(self):
        """Where it answers: uint8, shape (256, 32), ``policy.ACTION`` a row."""
        return <uint8_t[:MAX_BURST, :sizeof(rule_action)]><uint8_t*>self.state.policy.actions

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
        """Return ``inserted``, ``limited``, ``failed`` flows; ``calls``, ``failures`` of the policy."""
        return {
            "inserted": self.state.learner.inserted,
            "limited": self.state.learner.limited,
            "failed": self.state.learner.failed,
            "calls": self.state.policy.calls,
            "failures": self.state.policy.failures,
        }
