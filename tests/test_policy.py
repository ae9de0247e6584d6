"""Policies against the fake kernel: who is asked, what the answers do, what is learned."""

import ctypes
import errno
import logging
import re
import subprocess
import sys
import time
from ctypes import CFUNCTYPE, POINTER, c_int, c_uint32, c_void_p
from pathlib import Path

import numpy as np
import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Dot1Q, Ether

import l2fwd
from l2fwd import ConfigError, Policy, PolicyBatch
from l2fwd.__main__ import main
from l2fwd._classify import Classifier
from l2fwd._decide import Decider
from l2fwd._rings import Memory, Pool
from l2fwd._worker import Worker
from l2fwd.abi import CHANGES, VERDICTS
from l2fwd.policy import asker, load_policy
from l2fwd.records import ACTION, FLOW, NOT_LEARNED, PACKET
from l2fwd.rule_layout import hash_key
from l2fwd.rule_table import compile_rules
from l2fwd.rules import RuleTable, parse_rules
from l2fwd.testing import FakeQueue

ROOT = Path(__file__).parent.parent
EXAMPLES, DOCS = ROOT / "examples", ROOT / "docs"
LINKS = {"left": 11, "right": 12, "third": 13}
DROPS = (
    "rx_policy_drops",
    "rx_rule_drops",
    "rx_host_drops",
    "rx_change_drops",
    "tx_no_link_drops",
    "tx_full_drops",
)
BURST = CFUNCTYPE(None, c_void_p, c_void_p, c_uint32, c_void_p)
PER_PACKET = CFUNCTYPE(None, c_void_p, c_void_p, c_void_p)
INSERT = CFUNCTYPE(c_int, c_int, c_void_p, c_void_p, POINTER(c_uint32))
GIVE_BACK = CFUNCTYPE(c_int, c_int, c_void_p, c_uint32, c_uint32)


def packet(number=0, *, dport=53, payload=b"", head=None):
    """UDP from 10.1.0.NUMBER to 10.0.0.NUMBER."""
    head = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") if head is None else head
    ip = IP(src=f"10.1.0.{number}", dst=f"10.0.0.{number}")
    return bytes(head / ip / UDP(sport=1000 + number, dport=dport) / payload).ljust(60, b"\0")


def array_at(address, dtype, count):
    """View ``count`` structs that a C function got a pointer to."""
    return np.frombuffer((ctypes.c_char * (dtype.itemsize * count)).from_address(address), dtype)


class Bed:
    """Fake queues, and a worker that decides."""

    def __init__(self, policy=None, *, rules="", miss="user", links=2, worker=None, **options):
        names = dict(list(LINKS.items())[:links])
        pool = Pool(Memory(64, 2048))
        self.queues = [FakeQueue(pool, size=16, name=name, record=True) for name in names]
        for queue in self.queues:
            queue.port.refill(16)
        self.rules = parse_rules(rules) if rules else RuleTable()
        compiled = compile_rules(self.rules.ranked(), names, 1024)
        mask = policy.mask if policy else bytes(64)
        classifier = Classifier(compiled.masks, compiled.entries, miss, mask)
        if policy is not None:
            options["ask"] = asker(policy, np.asarray(pool.memory), names)
            options |= {"for_burst": policy.for_burst, "for_packet": policy.for_packet}
        ifindexes = list(names.values())
        self.decider = Decider(classifier, ifindexes, rules=len(self.rules), **options)
        ports = [queue.port for queue in self.queues]
        self.worker = Worker(*ports, decider=self.decider, **(worker or {}))
        self.left, self.right = self.queues[:2]

    def turn(self, *packets):
        """Let packets arrive on the left; return what is sent on the right."""
        before = len(self.right.sent)
        assert self.left.receive_packets(packets) == len(packets)
        self.worker.turn()
        self.check_books()
        return self.right.sent[before:]

    def count(self, counter):
        return sum(queue.port.counters()[counter] for queue in self.queues)

    @property
    def drops(self):
        counts = {name: self.count(name) for name in DROPS}
        return {name: count for name, count in counts.items() if count}

    def check_books(self):
        frames = self.worker.frames()
        assert sum(frames.values()) == 64, frames
        handled = self.count("tx_packets") + self.count("host_packets") + sum(self.drops.values())
        assert self.count("rx_packets") == handled


def to_the_right(batch):
    actions = batch.actions()
    batch.out(actions, slice(None), "right")
    return actions


# Asked, and answering


def test_the_names_are_those_of_the_package():
    assert l2fwd.Policy is Policy
    assert l2fwd.PolicyBatch is PolicyBatch
    assert l2fwd.FlowConfig().per_second > 0


def test_a_policy_sees_each_packet_with_its_fields_and_its_bytes():
    seen = []

    def decide(batch):
        assert isinstance(batch, PolicyBatch)
        key = batch.packets["key"]
        assert key["in_ifindex"].tolist() == [LINKS["left"]] * len(batch)
        assert [bytes(src[:4]) for src in key["src"]] == [b"\x0a\x01\0\x00", b"\x0a\x01\0\x01"]
        assert key["dport"].tolist() == [53, 53]
        assert batch.frames[batch.row, batch.column + 12].tolist() == [8, 8]
        seen.extend(batch.bytes_of(i).tobytes() for i in range(len(batch)))
        return to_the_right(batch)

    packets = [packet(0), packet(1, payload=bytes(100))]
    assert Bed(Policy(decide)).turn(*packets) == packets
    assert seen == packets


def test_a_batch_may_be_kept_but_for_the_frames():
    kept = []

    def decide(batch):
        kept.append(batch)
        return batch.actions()

    bed = Bed(Policy(decide))
    bed.turn(packet(1))
    bed.turn(packet(2))
    assert [batch.packets["key"]["src"][0, 3] for batch in kept] == [1, 2]


def test_what_a_policy_writes_into_the_window_is_sent():
    def decide(batch):
        batch.frames[batch.row, batch.column + 50] = np.arange(7, 7 + len(batch))
        return to_the_right(batch)

    sent = Bed(Policy(decide)).turn(packet(0), packet(1))
    assert [each[50] for each in sent] == [7, 8]
    assert sent[0][:50] + b"\0" + sent[0][51:] == packet(0)


def test_only_rules_that_say_user_ask_and_their_hits_count():
    asked = []

    def decide(batch):
        asked.extend(batch.packets["key"]["dport"].tolist())
        return to_the_right(batch)

    rules = "proto udp dport 1 -> user\nproto udp dport 2 -> drop"
    bed = Bed(Policy(decide), rules=rules, miss="drop")
    sent = bed.turn(packet(dport=1), packet(dport=2), packet(dport=3), packet(dport=1))
    assert (len(sent), asked) == (2, [1, 1])
    assert bed.drops == {"rx_rule_drops": 2}
    assert [bed.decider.hits(rule) for rule in (0, 1)] == [(2, 120), (1, 60)]


@pytest.mark.parametrize(
    ("arrives", "leaves"), [("left", "right"), ("right", "left"), ("third", None)]
)
def test_out_without_a_link_is_the_other_one_of_the_pair(arrives, leaves):
    def decide(batch):
        actions = batch.actions()
        batch.out(actions)
        return actions

    bed = Bed(Policy(decide), links=3)
    bed.queues[list(LINKS).index(arrives)].receive_packets([packet()])
    bed.worker.turn()
    sent = {queue.port.name: queue.sent for queue in bed.queues if queue.sent}
    assert sent == ({leaves: [packet()]} if leaves else {})
    assert bed.drops == ({} if leaves else {"tx_no_link_drops": 1})


def test_out_drop_and_pass_are_chosen_by_mask_indices_and_slice():
    def decide(batch):
        actions = batch.actions()
        batch.out(actions, [0, 1, 2], "right")
        batch.drop(actions, batch.packets["key"]["src"][:, 3] == 1)
        batch.drop(actions, slice(4, None))
        return actions

    bed = Bed(Policy(decide))
    assert bed.turn(*map(packet, range(6))) == [packet(0), packet(2)]
    assert bed.drops == {"rx_rule_drops": 3, "rx_host_drops": 1}


def test_macs_are_set_for_each_packet_or_for_all():
    macs = np.array([[2, 0, 0, 0, 9, n] for n in range(3)], np.uint8)

    def decide(batch):
        actions = batch.actions()
        batch.out(actions, slice(None), set_dst_mac=macs, set_src_mac=bytes(5) + b"\7")
        batch.out(actions, [1], swap_mac=True)
        return actions

    sent = Bed(Policy(decide)).turn(*map(packet, range(3)))
    heads = [bytes(mac) + bytes(5) + b"\7" for mac in macs]
    heads[1] = packet()[6:12] + packet()[:6]
    assert sent == [heads[i] + packet(i)[12:] for i in range(3)]


def test_vlan_tags_come_and_go_and_the_ttl_goes_down():
    def decide(batch):
        actions = batch.actions()
        batch.out(actions, [0], push_vlan=100, dec_ttl=True)
        batch.out(actions, [1], pop_vlan=True)
        return actions

    mac = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    tagged = packet(head=mac / Dot1Q(vlan=7))
    pushed, popped = Bed(Policy(decide)).turn(packet(), tagged)
    older = Ether(packet())
    older[IP].ttl = 63
    del older[IP].chksum
    assert pushed == packet()[:12] + bytes.fromhex("81000064") + bytes(older)[12:]
    assert popped == tagged[:12] + tagged[16:]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"link": "eth9"}, "out must be one of left, right, got 'eth9'"),
        ({"set_dst_mac": b"\2"}, "set_dst_mac must be 6 bytes"),
        ({"set_src_mac": np.zeros(5, np.uint8)}, "set_src_mac must be 6 bytes"),
        ({"push_vlan": 4095}, "push_vlan must be in"),
    ],
)
def test_what_cannot_be_done_is_an_error_in_the_policy(settings, complaint):
    batch = PolicyBatch(
        np.zeros(1, PACKET), np.zeros((1, 2048), np.uint8), {"left": 11, "right": 12}
    )
    with pytest.raises(ConfigError, match=complaint):
        batch.out(batch.actions(), slice(None), **settings)


def test_what_is_passed_goes_to_the_host_as_it_arrived():
    given = []

    @GIVE_BACK
    def give_back(fd, data, length, ifindex):
        given.append((fd, ctypes.string_at(data, length), ifindex))
        return -errno.ENOMEM if len(given) == 2 else 0

    address = ctypes.cast(give_back, c_void_p).value
    worker = {"give_back": address, "host_fd": 42}
    bed = Bed(Policy(PolicyBatch.actions), worker=worker)
    bed.turn(packet(0), packet(1))
    assert given == [(42, packet(i), LINKS["left"]) for i in range(2)]
    assert bed.count("host_packets") == 1
    assert bed.drops == {"rx_host_drops": 1}


# Answers that are none


def raises(batch):
    raise RuntimeError("oh no")


def exits(batch):
    raise SystemExit


@pytest.mark.parametrize(
    "decide",
    [
        raises,
        exits,
        lambda batch: None,
        lambda batch: [0] * len(batch),
        lambda batch: batch.actions()[:-1],
        lambda batch: batch.actions()[None],
        lambda batch: np.zeros(len(batch)),
        lambda batch, more: batch.actions(),
    ],
    ids=["raises", "exits", "none", "list", "short", "2d", "dtype", "signature"],
)
def test_a_policy_that_fails_costs_its_batch_is_said_once_and_forwarding_goes_on(decide, caplog):
    bed = Bed(Policy(decide), rules="proto udp dport 1 -> out right")
    with caplog.at_level(logging.ERROR, "l2fwd.policy"):
        assert bed.turn(packet(0), packet(dport=1), packet(1)) == [packet(dport=1)]
        assert bed.turn(packet(0), packet(dport=1)) == [packet(dport=1)]
    assert bed.drops == {"rx_policy_drops": 3}
    counted = bed.decider.counters()
    assert (counted["calls"], counted["failures"]) == (2, 2)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "policy failed, its packets are dropped; said once"
    ]
    assert caplog.records[0].exc_info


def test_a_policy_that_recovers_is_asked_again(caplog):
    answers = [raises, to_the_right]
    bed = Bed(Policy(lambda batch: answers.pop(0)(batch)))
    assert bed.turn(packet(0)) == []
    assert bed.turn(packet(1)) == [packet(1)]


@pytest.mark.parametrize("verdict", [VERDICTS["user"], 4, 0xFFFF])
def test_an_impossible_verdict_is_dropped_and_not_learned(verdict):
    def decide(batch):
        actions = to_the_right(batch)
        actions["verdict"][0] = verdict
        return actions

    inserted = Inserted()
    bed = Bed(Policy(decide), **inserted.options)
    assert bed.turn(packet(0), packet(1)) == [packet(1)]
    assert bed.drops == {"rx_policy_drops": 1}
    assert inserted.sources == [1]


def test_an_unknown_link_is_dropped_and_not_learned():
    def decide(batch):
        actions = to_the_right(batch)
        actions["out_ifindex"][0] = 4711
        return actions

    inserted = Inserted()
    bed = Bed(Policy(decide), **inserted.options)
    assert bed.turn(packet(0), packet(1)) == [packet(1)]
    assert bed.drops == {"tx_no_link_drops": 1}
    assert inserted.sources == [1]


def test_without_a_policy_what_should_be_asked_is_dropped(caplog):
    bed = Bed(None)
    assert bed.turn(packet()) == []
    assert bed.drops == {"rx_policy_drops": 1}
    assert not caplog.records


def test_a_slow_policy_is_asked_no_more_soon_after_stop():
    """However many packets are waiting, and all of them are in the books."""

    def decide(batch):
        time.sleep(0.3)
        return to_the_right(batch)

    bed = Bed(Policy(decide), worker={"batch_size": 1})
    bed.left.receive_packets([packet(n) for n in range(16)])
    bed.worker.stop()
    bed.worker.run()
    asked = bed.decider.counters()["calls"]
    assert 1 <= asked < 16
    assert bed.right.sent == [packet(n) for n in range(asked)]
    assert bed.drops == {"rx_policy_drops": 16 - asked}
    bed.check_books()


# C functions


@BURST
def burst_to_the_right(packets, actions, count, umem):
    answers = array_at(actions, ACTION, count)
    assert not answers.view(np.uint8).any(), "pass, until told otherwise"
    asked = array_at(packets, PACKET, count)
    answers["verdict"] = VERDICTS["out"]
    answers["verdict"][asked["key"]["src"][:, 3] == 1] = VERDICTS["drop"]
    for start in asked["addr"].tolist():
        ctypes.memset(umem + start + 50, 7, 1)


@PER_PACKET
def packet_to_the_right(packet, action, data):
    array_at(action, ACTION, 1)["verdict"] = VERDICTS["out"]
    if array_at(packet, PACKET, 1)["key"]["src"][0, 3] == 1:
        array_at(action, ACTION, 1)["verdict"] = VERDICTS["drop"]
    ctypes.memset(data + 50, 7, 1)


def address(function):
    return ctypes.cast(function, c_void_p).value


def capsule(function, name=b"void (struct packet *)"):
    make = ctypes.PYFUNCTYPE(ctypes.py_object, c_void_p, ctypes.c_char_p, c_void_p)
    return make(("PyCapsule_New", ctypes.pythonapi))(address(function), name, None)


class Compiled:
    """What Numba's cfunc looks like."""

    def __init__(self, function):
        self.address = address(function)


@pytest.mark.parametrize("form", [lambda f: f, address, capsule, Compiled])
@pytest.mark.parametrize(
    ("per", "function"), [("burst", burst_to_the_right), ("packet", packet_to_the_right)]
)
def test_a_c_function_decides_and_writes(per, function, form):
    bed = Bed(Policy.from_function(form(function), per=per))
    sent = bed.turn(*map(packet, range(4)))
    assert [each[29] for each in sent] == [0, 2, 3]
    assert [each[50] for each in sent] == [7, 7, 7]
    assert bed.drops == {"rx_rule_drops": 1}
    assert bed.decider.counters()["calls"] == 1


def test_a_c_function_is_asked_after_stop_too():
    bed = Bed(Policy.from_function(packet_to_the_right, per="packet"))
    bed.left.receive_packets([packet(0)])
    bed.worker.stop()
    time.sleep(0.3)  # longer than a policy in Python would be asked
    bed.worker.run()
    assert len(bed.right.sent) == 1


@pytest.fixture(scope="module")
def documented(tmp_path_factory):
    """The C code of docs/policies.md, compiled."""
    folder = tmp_path_factory.mktemp("c")
    (code,) = re.findall(r"```c\n(.*?)```", (DOCS / "policies.md").read_text(), re.DOTALL)
    (folder / "policy.c").write_text(code)
    command = ["cc", "-O2", "-shared", "-fPIC", "policy.c", "-o", "policy.so"]
    subprocess.run(command, check=True, cwd=folder)
    return ctypes.CDLL(str(folder / "policy.so"))


@pytest.mark.parametrize("per", ["burst", "packet"])
def test_the_c_code_in_the_documents_does_what_it_says(documented, per):
    inserted = Inserted()
    policy = Policy.from_function(getattr(documented, f"per_{per}"), per=per)
    bed = Bed(policy, **inserted.options)
    kept = [packet(payload=b"\1"), bytes(14), packet()[:42]]
    assert bed.turn(packet(payload=b"\0"), *kept) == kept
    assert bed.drops == {"rx_rule_drops": 1}
    assert inserted.sources == []


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (0, "other than NULL, got 0"),
        (-1, "other than NULL, got -1"),
        (1 << 64, "other than NULL"),
        (BURST(0), "other than NULL, got 0"),
        ("rewrite", "got str"),
        (to_the_right, "got function"),
    ],
)
def test_what_is_no_c_function_is_refused(function, complaint):
    with pytest.raises(ConfigError, match=complaint):
        Policy.from_function(function)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({}, "exactly one of"),
        ({"decide": raises, "for_burst": 1}, "exactly one of"),
        ({"for_packet": 1, "for_burst": 1}, "exactly one of"),
        ({"decide": "raises"}, "decide must be callable, got str"),
        ({"decide": raises, "fields": ("src", "colour")}, "got 'colour'"),
        ({"decide": raises, "fields": "src"}, "got 's'"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(settings, complaint):
    with pytest.raises(ConfigError, match=complaint):
        Policy(**settings)


def test_a_c_function_per_something_else_is_refused():
    with pytest.raises(ConfigError, match="per must be burst or packet, got 'flow'"):
        Policy.from_function(1, per="flow")


# Learning


class Inserted:
    """The kernel's flow table: takes as many of each insert as ``room``."""

    def __init__(self, room=1000):
        self.flows = np.zeros(0, FLOW)
        self.room = room
        self._insert = INSERT(self._take)
        self.options = {"insert": address(self._insert), "flows_fd": 5, "queue": 3}

    def _take(self, fd, keys, values, count):
        taken = min(count[0], self.room)
        hashes, flows = array_at(keys, np.dtype("=u8"), taken), array_at(values, FLOW, taken)
        assert hashes.tolist() == [hash_key(key.tobytes()) for key in flows["key"]]
        self.flows = np.concatenate([self.flows, flows])
        error = fd != 5 or taken < count[0]
        count[0] = taken
        return -errno.E2BIG if error else 0

    @property
    def keys(self):
        return self.flows["key"]

    @property
    def sources(self):
        return self.keys["packet"]["src"][:, 3].tolist()


def learned(bed):
    return {key: bed.decider.counters()[key] for key in ("inserted", "limited", "failed")}


def test_an_answer_is_learned_once_per_flow():
    inserted = Inserted()
    bed = Bed(Policy(to_the_right, fields=("src",)), **inserted.options)
    bed.turn(packet(1), packet(2), packet(1, dport=80), packet(2))
    assert inserted.sources == [1, 2]
    assert learned(bed) == {"inserted": 2, "limited": 0, "failed": 0}
    assert inserted.keys["queue"].tolist() == [3, 3]
    # Only what tells flows apart is in the key, and the action is whole.
    assert not inserted.keys["packet"]["dport"].any()
    assert not inserted.keys["packet"]["dst_mac"].any()
    action = inserted.flows["action"]
    assert action["out_ifindex"].tolist() == [LINKS["right"]] * 2
    assert action["rule"].tolist() == [0xFFFFFFFF] * 2, "no rule's: the miss policy's"
    assert inserted.flows["last_seen"].all()
    assert not inserted.flows["wait_for"].any()


def test_the_other_link_is_learned_by_its_ifindex():
    inserted = Inserted()
    bed = Bed(Policy.from_function(packet_to_the_right, per="packet"), **inserted.options)
    bed.turn(packet(0), packet(1))
    action = inserted.flows["action"]
    assert action["verdict"].tolist() == [VERDICTS["out"], VERDICTS["drop"]]
    assert action["out_ifindex"].tolist() == [LINKS["right"], 0]


def test_an_answer_for_once_is_not_learned():
    def decide(batch):
        actions = to_the_right(batch)
        batch.once(actions, [1])
        assert actions["flags"].tolist() == [0, NOT_LEARNED, 0]
        return actions

    inserted = Inserted()
    bed = Bed(Policy(decide), **inserted.options)
    assert len(bed.turn(*map(packet, range(3)))) == 3
    assert inserted.sources == [0, 2]


def test_all_fields_tell_flows_apart_unless_fewer_are_named():
    assert Policy(raises).mask == b"\xff" * 29 + bytes(3) + b"\xff" * 32
    assert Policy(raises, fields=("dport",)).mask == bytes(26) + b"\xff\xff\xff" + bytes(35)


@pytest.mark.parametrize(("per_second", "at_once"), [(1, 1), (10, 1), (50, 5)])
def test_no_more_is_learned_than_allowed_and_the_rest_is_forwarded(per_second, at_once):
    inserted = Inserted()
    bed = Bed(Policy(to_the_right), inserts_per_second=per_second, **inserted.options)
    packets = [packet(n) for n in range(10)]
    assert bed.turn(*packets) == packets
    assert inserted.sources == list(range(at_once))
    assert learned(bed) == {"inserted": at_once, "limited": 10 - at_once, "failed": 0}


def test_what_was_not_learned_for_lack_of_time_may_be_learned_later():
    inserted = Inserted()
    bed = Bed(Policy(to_the_right), inserts_per_second=100, **inserted.options)
    deadline = time.monotonic() + 10
    while len(inserted.sources) < 16 and time.monotonic() < deadline:
        bed.turn(*[packet(n) for n in range(16)])
        time.sleep(0.01)
    assert set(inserted.sources) == set(range(16))


def test_flows_that_the_kernel_refuses_are_counted():
    inserted = Inserted(room=2)
    bed = Bed(Policy(to_the_right), **inserted.options)
    packets = [packet(n) for n in range(5)]
    assert bed.turn(*packets) == packets
    assert learned(bed) == {"inserted": 2, "limited": 0, "failed": 3}


def test_a_failed_policy_teaches_nothing(caplog):
    inserted = Inserted()
    bed = Bed(Policy(raises), rules="proto udp dport 1 -> out right", **inserted.options)
    bed.turn(packet(3, dport=1), packet(4))
    assert inserted.sources == [3]


# Files


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "policy FILE: No such file or directory"),
        ("def policy(:", r"policy FILE: invalid syntax \(p.py, line 1\)"),
        ("x = 1", "policy FILE defines no policy: a Policy, or a function of a batch"),
        ("policy = 1", "policy FILE defines no policy: a Policy, or a function of a batch"),
        ("\nimport no_such_thing", "policy FILE, line 2: ModuleNotFoundError: No module named"),
        ("raise ValueError('one\\ntwo')", "policy FILE, line 1: ValueError: one two"),
        ("open('/no/such')", r"policy FILE, line 1: FileNotFoundError: \[Errno 2\].*/no/such"),
        ("import sys; sys.exit(3)", "policy FILE, line 1: SystemExit: 3"),
        (
            "from l2fwd import Policy\npolicy = Policy()",
            "policy FILE, line 2: a policy needs exactly one of",
        ),
    ],
)
def test_a_file_that_is_no_policy_is_told_in_one_line(text, complaint, tmp_path, capsys):
    path = tmp_path / "p.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match="^" + complaint.replace("FILE", str(path))) as caught:
        load_policy(str(path))
    line = str(caught.value)
    assert "\n" not in line
    assert main(["forward", "a0", "b0", "--miss", "user", "--policy", str(path)]) == 2
    assert capsys.readouterr().err == f"l2fwd forward: {line}\n"


def test_a_policy_is_found_by_name_and_may_be_a_plain_function(tmp_path):
    path = tmp_path / "p.py"
    path.write_text(
        "from l2fwd import Policy\n"
        "def policy(batch): ...\n"
        "other = Policy(policy, fields=('src',))\n"
    )
    assert load_policy(str(path)).decide.__name__ == "policy"
    assert load_policy(f"{path}:").decide.__name__ == "policy"
    assert load_policy(f"{path}:other").fields == ("src",)
    with pytest.raises(ConfigError, match="defines no another"):
        load_policy(f"{path}:another")


def test_a_policy_that_nobody_asks_is_refused(capsys):
    path = str(EXAMPLES / "numpy_filter.py")
    assert main(["forward", "a0", "b0", "--policy", path]) == 2
    assert "add --miss user, or a rule '... -> user'" in capsys.readouterr().err


# The examples, without a kernel; tests/test_examples.py has them on links


def test_the_load_balancer_keeps_a_flow_and_uses_all_back_ends():
    bed = Bed(load_policy(str(EXAMPLES / "load_balancer.py")))
    first = [each for n in range(0, 160, 16) for each in bed.turn(*map(packet, range(n, n + 16)))]
    again = [each for n in range(0, 160, 16) for each in bed.turn(*map(packet, range(n, n + 16)))]
    assert first == again
    assert {each[:6] for each in first} == {bytes((2, 0, 0, 0, 1, n)) for n in range(4)}
    assert [each[6:] for each in first] == [packet(n)[6:] for n in range(160)]
    arp = packet()[:12] + b"\x08\x06" + bytes(46)
    assert bed.turn(arp) == [arp]
    bed.right.receive_packets([packet(1)])
    bed.worker.turn()
    assert bed.left.sent == [packet(1)], "back from a back end: as it was"


def test_the_filter_drops_what_is_marked_and_nothing_else():
    bed = Bed(load_policy(str(EXAMPLES / "numpy_filter.py")), **Inserted().options)
    marked = packet(payload=b"DROPME")
    others = [
        packet(payload=b"DROPMF"),
        packet(payload=b" DROPME"),
        marked[:47],  # ends within the mark, and the bytes behind it are in the frame still
        marked[:14] + b"\x46" + marked[15:],
        marked[:23] + b"\x06" + marked[24:],
        bytes(42) + b"DROPME" + bytes(12),
    ]
    assert bed.turn(marked, marked + bytes(1000)) == []
    assert bed.turn(*others, marked) == others
    assert bed.drops == {"rx_rule_drops": 3}
    assert learned(bed)["inserted"] == 0


def test_the_numba_rewrite_gives_the_next_hop_the_dscp_and_a_right_checksum():
    pytest.importorskip("numba")
    bed = Bed(load_policy(str(EXAMPLES / "numba_rewrite.py")), **Inserted().options)
    packets = [packet(n) for n in range(200)]
    packets += [bytes(Ether(packet(7), tos=tos)) for tos in ()]
    for first in range(0, len(packets), 16):
        burst = packets[first : first + 16]
        for before, after in zip(burst, bed.turn(*burst), strict=True):
            expected = Ether(before)
            expected.dst = f"02:00:00:00:02:{before[33]:02x}"
            expected[IP].tos = 46 << 2
            del expected[IP].chksum
            assert after == bytes(expected)
    tagged = packet(head=Ether() / Dot1Q(vlan=7))
    assert bed.turn(tagged) == [tagged]
    assert learned(bed)["inserted"] == 0


def test_without_numba_its_example_says_how_to_get_it(tmp_path):
    """As a script and as a policy: one line, exit code 2."""
    (tmp_path / "numba.py").write_text("raise ImportError")
    path = str(EXAMPLES / "numba_rewrite.py")
    as_policy = ["-m", "l2fwd", "forward", "a0", "b0", "--miss", "user", "--policy", path]
    for command in ([path, "a0", "b0"], as_policy):
        done = subprocess.run(
            [sys.executable, *command],
            env={"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert len(done.stderr.splitlines()) == 1
        assert "it needs Numba: pip install numba" in done.stderr


def test_the_changes_have_the_names_of_the_rules():
    asked = {name: True for name in CHANGES if not name.startswith("set_")}
    asked["push_vlan"] = 5
    batch = PolicyBatch(np.zeros(1, PACKET), np.zeros((1, 2048), np.uint8), dict(LINKS))
    actions = batch.actions()
    batch.out(actions, **asked, set_dst_mac=bytes(6), set_src_mac=bytes(6))
    assert actions["changes"][0] == sum(CHANGES.values())
    assert actions["vlan"][0] == 5
