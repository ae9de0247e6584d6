"""Making packets and checking them, against the fake kernel: bytes, numbers, pace, rings."""

import errno
import os
import random
import struct
import threading
import time

import numpy as np
import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw

from l2fwd._generator import Generator
from l2fwd._rings import Memory, Pool
from l2fwd._verifier import Verifier
from l2fwd._worker import Worker
from l2fwd.errors import ConfigError
from l2fwd.testing import FakeQueue
from l2fwd.traffic import NUMBERED, PKTGEN, PKTGEN_MAGIC, Traffic
from l2fwd.verification import Seen, has_passed, judge

MANY = 1_000_000 if os.environ.get("L2FWD_FUZZ") == "1" else 100_000
LOCAL = bytes.fromhex("020000000001")
IPV6 = {"src_ip": "2001:db8::1:ffff", "size": 90}
WINDOW = 65536


def make(stream=1, **settings):
    """Return a generator of traffic; ``first``, ``step_ns`` and ``per_step`` are its own."""
    own = {
        name: settings.pop(name) for name in ("first", "step_ns", "per_step") if name in settings
    }
    traffic = Traffic(**settings)
    return Generator(
        traffic.template(LOCAL, stream),
        payload=traffic.payload,
        first_source=traffic.first_source,
        sources=traffic.sources,
        first_port=traffic.src_port,
        ports=traffic.ports,
        count=traffic.count,
        **own,
    )


class Bed:
    """A fake queue and the worker that sends on it."""

    def __init__(self, generator, size=16, frame_count=64, batch_size=8, start=0):
        self.pool = Pool(Memory(frame_count, 2048))
        self.queue = FakeQueue(self.pool, size=size, start=start, record=True)
        self.generator = generator
        self.worker = Worker(self.queue.port, job=generator, batch_size=batch_size)

    @property
    def sent(self):
        return self.queue.sent

    @property
    def counters(self):
        return self.queue.port.counters()

    def turns(self, count):
        return [self.worker.turn() for _ in range(count)]

    def check_books(self):
        counters = self.counters
        assert sum(self.worker.frames().values()) == self.pool.frame_count
        assert counters["generated_packets"] == counters["tx_packets"] == self.generator.made
        assert counters["tx_bytes"] == counters["tx_packets"] * len(self.generator.template.data)
        assert counters["tx_full_drops"] == 0


def numbers(packets):
    return [NUMBERED.unpack_from(packet, len(packet) - 22)[2] for packet in packets]


def rebuilt(packet):
    """Return the packet with all lengths and checksums as scapy computes them."""
    parsed = Ether(packet)
    for layer, names in ((IP, ("len", "chksum")), (IPv6, ("plen",)), (UDP, ("len", "chksum"))):
        if layer in parsed:
            for name in names:
                delattr(parsed[layer], name)
    return bytes(parsed)


# The bytes


@pytest.mark.parametrize("payload", ["pattern", "tstamp", "sequence"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"sources": 5, "ports": 3},
        {"sources": 70000, "src_ip": "10.0.255.250", "size": 67},
        {"vlan_id": 9, "vlan_priority": 3, "sources": 4},
        {**IPV6, "ports": 7},
        {**IPV6, "sources": 70000, "vlan_id": 1, "size": 1514},
    ],
)
def test_scapy_finds_every_length_and_checksum_right(payload, settings):
    bed = Bed(make(payload=payload, **{"size": 80, **settings}))
    bed.turns(6)
    assert len(bed.sent) == 48
    assert [rebuilt(packet) for packet in bed.sent] == bed.sent
    for packet in bed.sent:
        parsed = Ether(packet)
        assert (Dot1Q in parsed) == ("vlan_id" in settings)
        assert len(bytes(parsed[UDP].payload)) == parsed[UDP].len - 8
    bed.check_books()


def test_a_checksum_of_zero_is_sent_as_all_ones():
    """RFC 768; one of 65,536 packets comes upon it."""
    bed = Bed(make(sources=70000), size=2048, frame_count=2048, batch_size=2048)
    bed.turns(35)
    checks = {packet[40:42] for packet in bed.sent}
    assert len(bed.sent) == 35 * 2048
    assert b"\0\0" not in checks
    assert b"\xff\xff" in checks


def test_flows_take_turns_all_sources_then_the_next_port():
    bed = Bed(make(sources=3, ports=2, src_ip="10.0.0.254", src_port=50))
    bed.turns(2)
    flows = [(Ether(packet)[IP].src, Ether(packet)[UDP].sport) for packet in bed.sent]
    sources = ["10.0.0.254", "10.0.0.255", "10.0.1.0"]
    once = [(source, port) for port in (50, 51) for source in sources]
    assert flows == (once * 3)[:16]


def test_numbers_go_on_past_32_bits_and_times_do_not_go_back():
    before = time.monotonic_ns()
    bed = Bed(make(stream=0xBEEF, payload="sequence", first=2**32 - 5))
    bed.turns(3)
    found = [NUMBERED.unpack_from(packet, 42) for packet in bed.sent]
    assert [number for _, _, number, _ in found] == list(range(2**32 - 5, 2**32 + 19))
    times = [moment for *_, moment in found]
    assert before <= times[0]
    assert times == sorted(times)
    assert times[-1] <= time.monotonic_ns()
    assert {stream for _, stream, _, _ in found} == {0xBEEF}


def test_the_pktgen_header_tells_number_and_wall_clock():
    before = int(time.time())
    bed = Bed(make(payload="tstamp", first=2**32 - 1))
    bed.turns(1)
    found = [PKTGEN.unpack_from(packet, 42) for packet in bed.sent]
    assert [number for _, number, _, _ in found] == [2**32 - 1, 0, 1, 2, 3, 4, 5, 6]
    for magic, _, seconds, microseconds in found:
        assert magic == PKTGEN_MAGIC
        assert before <= seconds <= time.time()
        assert microseconds < 1_000_000


def test_packets_that_are_all_the_same_are_written_once_a_frame():
    bed = Bed(make())
    bed.turns(1)
    np.asarray(bed.pool.memory)[:, 60] = 0xEE
    bed.turns(20)
    assert {packet[60] for packet in bed.sent[8:]} == {0xEE}, "only their descriptors are sent"


def test_of_numbered_packets_only_what_differs_is_written():
    bed = Bed(make(payload="sequence", size=80))
    bed.turns(1)
    np.asarray(bed.pool.memory)[:, 70] = 0xEE
    bed.turns(20)
    assert {packet[70] for packet in bed.sent[8:]} == {0xEE}
    assert [NUMBERED.unpack_from(packet, 42)[2] for packet in bed.sent] == list(range(168))


def test_frames_that_receive_as_well_are_written_each_time():
    bed = Bed(make())
    bed.queue.port.refill(16)
    for _ in range(10):
        bed.turns(1)
        np.asarray(bed.pool.memory)[:] = 0xEE
    assert set(bed.sent) == {bed.sent[0]}
    assert rebuilt(bed.sent[0]) == bed.sent[0]


# Count, rings, stop


def test_it_ends_when_the_last_packet_is_completed():
    bed = Bed(make(count=20, payload="sequence"))
    bed.queue.on_kick = lambda: bed.queue.transmit() is None
    assert bed.turns(5) == [8, 8, 4, 0, 0]
    bed.queue.complete(16)
    assert bed.turns(2) == [0, 0]
    assert not bed.generator.is_done, "four are under way"
    bed.queue.complete()
    assert bed.turns(1) == [0]
    assert bed.generator.is_done
    assert numbers(bed.sent) == list(range(20))
    bed.check_books()


def test_a_count_of_nothing_is_done_at_once():
    """The share of a worker, where there are more of them than packets."""
    generator = Generator(Traffic().template(LOCAL), count=0)
    bed = Bed(generator)
    assert bed.turns(1) == [0]
    assert generator.is_done


def test_a_full_ring_is_waited_for_and_nothing_is_dropped():
    bed = Bed(make(payload="sequence"), size=4)
    answer = -errno.EAGAIN
    bed.queue.on_kick = lambda: answer
    assert bed.turns(3) == [4, 0, 0]
    assert bed.counters["tx_packets"] == 4
    bed.queue.on_kick = bed.queue.send_all
    bed.turns(4)
    assert numbers(bed.sent) == list(range(len(bed.sent)))
    assert len(bed.sent) >= 12
    bed.check_books()


def test_a_link_that_is_down_keeps_the_packets_on_the_ring():
    bed = Bed(make(payload="sequence"))
    bed.queue.on_kick = lambda: -errno.ENETDOWN
    assert bed.turns(4) == [8, 8, 0, 0]
    bed.queue.on_kick = bed.queue.send_all
    bed.turns(2)
    assert numbers(bed.sent) == list(range(len(bed.sent)))
    bed.check_books()


def test_frames_that_are_all_under_way_are_waited_for():
    bed = Bed(make(payload="sequence"), size=64, frame_count=8)
    bed.queue.on_kick = lambda: bed.queue.transmit() is None
    assert bed.turns(3) == [8, 0, 0]
    bed.queue.complete(3)
    assert bed.turns(1) == [3]
    assert numbers(bed.sent) == list(range(11))
    bed.check_books()


def test_one_system_call_is_made_for_a_batch():
    bed = Bed(make())
    bed.turns(10)
    assert bed.counters["tx_wakeups"] == 10


def test_a_stopped_generator_makes_no_more_but_sends_what_it_made():
    bed = Bed(make(payload="sequence"))
    bed.queue.on_kick = lambda: -errno.ENETDOWN
    bed.turns(2)
    bed.queue.on_kick = bed.queue.send_all
    bed.worker.stop()
    bed.worker.run()
    assert numbers(bed.sent) == list(range(16))
    assert bed.worker.frames()["pool"] == 64
    bed.check_books()


def run_until(worker, is_enough, seconds=5.0):
    """Run a worker in a thread of its own until ``is_enough``; return the seconds it took."""
    thread = threading.Thread(target=worker.run)
    began = time.monotonic()
    thread.start()
    try:
        while not is_enough() and time.monotonic() < began + seconds:
            time.sleep(0.001)
        return time.monotonic() - began
    finally:
        worker.stop()
        thread.join(5)
        assert not thread.is_alive()


def test_a_generator_that_is_done_sleeps():
    bed = Bed(make(count=1000))
    run_until(bed.worker, lambda: bed.generator.is_done)
    assert len(bed.sent) == 1000
    bed = Bed(make(count=8))
    run_until(bed.worker, lambda: False, seconds=0.3)
    turns, _, _ = bed.worker.turns
    assert turns < 60, "polls are bounded by 5 ms, and by 100 ms once all frames are back"


def test_a_generator_goes_on_with_another_umem_where_it_was():
    """As after a link was deleted and made again."""
    generator = make(payload="sequence", count=30, sources=3)
    before = Bed(generator)
    before.turns(2)
    after = Bed(generator)
    after.turns(4)
    packets = before.sent + after.sent
    assert numbers(packets) == list(range(30))
    assert [Ether(packet)[IP].src[-1] for packet in packets] == list("123" * 10)
    assert [rebuilt(packet) for packet in packets] == packets
    assert generator.is_done


def test_a_generator_goes_on_with_the_address_of_a_link_made_again():
    settings = {"payload": "sequence", "count": 16, "sources": 3}
    generator = make(**settings)
    before = Bed(generator)
    before.turns(1)
    other = bytes.fromhex("020000000099")
    generator.use(Traffic(**settings).template(other, 1))
    after = Bed(generator)
    after.turns(2)
    assert {packet[6:12] for packet in before.sent} == {LOCAL}
    assert {packet[6:12] for packet in after.sent} == {other}
    assert numbers(before.sent + after.sent) == list(range(16))
    assert [rebuilt(packet) for packet in after.sent] == after.sent
    with pytest.raises(ConfigError, match="the one before 64"):
        generator.use(Traffic(size=100).template(other))


@pytest.mark.parametrize(
    "settings",
    [{"payload": "x"}, {"sources": 0}, {"ports": 0}, {"per_step": 0}, {"step_ns": -1.0}],
)
def test_a_generator_of_nothing_is_refused(settings):
    with pytest.raises(ConfigError):
        Generator(Traffic().template(LOCAL), **settings)


# Pace


def drain(generator, now, batch=64):
    """Take all that is due at a time, as one turn after the other does; return the sum."""
    total = 0
    while due := generator.take_due(now, batch):
        total += due
    return total


def paced(step_ns, per_step=1):
    """Return a generator whose account is even at time 1 s."""
    generator = make(step_ns=step_ns, per_step=per_step)
    drain(generator, 10**9)
    return generator


@pytest.mark.parametrize("rate", [0.5, 1, 7, 999, 3e4, 333_333, 1e6, 14_880_952.38, 1e8])
def test_a_rate_does_not_drift(rate):
    generator = paced(1e9 / rate)
    chance = random.Random(int(rate))
    now, made = 10**9, 0
    while now < 21 * 10**9 and made < 300_000:
        now += chance.randint(1, 990_000)
        made += drain(generator, now)
    # The account may have been up to one packet ahead at the start.
    assert abs(made - rate * (now - 10**9) / 1e9) <= 2


@pytest.mark.parametrize("rate", [1, 1000, 1e6, 1e8])
@pytest.mark.parametrize("stall_ns", [2 * 10**6, 10**9, 3600 * 10**9])
def test_a_stall_is_not_made_up_for_by_a_burst(rate, stall_ns):
    generator = paced(1e9 / rate)
    burst = drain(generator, 10**9 + stall_ns)
    assert burst <= rate / 1000 + 1, "a millisecond's worth"
    later = drain(generator, 10**9 + stall_ns + 10**6)
    assert later <= rate / 1000 + 2


def test_no_more_than_a_batch_is_taken_at_a_time():
    generator = paced(1.0)
    assert [generator.take_due(2 * 10**9, 64) for _ in range(3)] == [64, 64, 64]


def test_a_cycle_gives_a_batch_each_time():
    generator = paced(100_000.0, per_step=64)
    now = 10**9
    for _ in range(1000):
        assert drain(generator, now + 99_000) == 0
        now += 100_000
        assert drain(generator, now + 1) == 64


def test_what_of_a_cycle_did_not_fit_the_ring_is_still_due():
    generator = paced(100_000.0, per_step=64)
    now = 10**9 + 100_001
    assert generator.take_due(now, 20) == 20
    assert generator.take_due(now, 64) == 44
    assert generator.take_due(now, 64) == 0


def test_a_paced_worker_keeps_below_its_rate_and_sleeps_in_between():
    bed = Bed(make(step_ns=500_000.0))
    seconds = run_until(bed.worker, lambda: False, seconds=0.4)
    assert 0.2 * 2000 * seconds < bed.generator.made <= 2000 * (seconds + 0.3) + 4
    turns, sleeps, _ = bed.worker.turns
    assert sleeps > 0
    assert turns < 8 * bed.generator.made
    bed.check_books()


# Checking


def packets_of(count, **settings):
    bed = Bed(make(**{"payload": "sequence", "count": count, **settings}), size=64)
    while bed.generator.made < count:
        bed.worker.turn()
    return list(bed.sent)


def verdict_on(packets, verifier=None):
    verifier = verifier or Verifier()
    for packet in packets:
        verifier.check(packet, time.monotonic_ns())
    return judge([Seen(**verifier.findings())])


@pytest.mark.parametrize(
    "settings",
    [{}, {"size": 1514}, {"size": 67}, {"vlan_id": 3, "size": 68}, IPV6, {**IPV6, "size": 91},
     {"pattern": 0}, {"sources": 50, "ports": 3}, {"first": 2**32 - 20}, {"first": 2**64 - 60}],
)  # fmt: skip
def test_what_was_made_is_found_whole_and_in_order(settings):
    settings = {"size": 64, **settings}
    verdict = verdict_on(packets_of(50, **settings))
    assert verdict["packets"] == 50
    assert has_passed(verdict)
    assert verdict["missed"] == settings.get("first", 0)
    assert verdict["latency_us"]["p50"] <= verdict["latency_us"]["max"]


@pytest.mark.parametrize("settings", [{"size": 79}, {**IPV6, "size": 101}])
def test_no_bit_can_change_unseen(settings):
    (packet,) = packets_of(1, **settings)
    free = set(range(12))  # a forwarder's to change
    if "src_ip" in settings:
        free |= {14, 15, 16, 17, 21}  # traffic class, flow label, hop limit: no checksum has them
    for byte in set(range(len(packet))) - free:
        for bit in range(8):
            changed = bytearray(packet)
            changed[byte] ^= 1 << bit
            verdict = verdict_on([bytes(changed)])
            assert verdict["packets"] == 0, (byte, bit)
            assert verdict["corrupted"] + verdict["foreign"] == 1
            if byte >= len(packet) - 22:
                assert verdict["corrupted"] == 1


def test_a_packet_cut_short_is_not_taken_for_one():
    (packet,) = packets_of(1, size=120)
    for length in range(14, 120):
        verdict = verdict_on([packet[:length]])
        assert (verdict["packets"], verdict["corrupted"] + verdict["foreign"]) == (0, 1)
    assert verdict_on([packet + bytes(20)])["packets"] == 1, "a link may pad"


def test_noise_is_foreign():
    chance = random.Random(5)
    heads = [b"\x08\x00E", b"\x08\x00F", b"\x86\xdd`", b"\x81\x00\0\0\x08\x00E", b"\x88\xa8" * 6]
    verifier = Verifier()
    for _ in range(20_000):
        head = bytes(12) + chance.choice(heads)
        noise = head + chance.randbytes(chance.randint(0, 90))
        verifier.check(noise.ljust(14, b"\0"), 0)
    verdict = verdict_on([], verifier)
    assert (verdict["packets"], verdict["foreign"] + verdict["corrupted"]) == (0, 20_000)


def test_fragments_and_datagrams_without_a_checksum_are_not_counted():
    (packet,) = packets_of(1)
    parsed = Ether(packet)
    del parsed[IP].chksum
    parsed[IP].flags = "MF"
    assert verdict_on([bytes(parsed)])["foreign"] == 1
    bare = packet[:40] + b"\0\0" + packet[42:]
    assert verdict_on([bare])["corrupted"] == 1


def test_a_forwarder_may_tag_route_and_readdress():
    """TTL, MAC addresses and tags are its to change."""
    (packet,) = packets_of(1)
    parsed = Ether(packet)
    parsed[IP].ttl -= 1
    del parsed[IP].chksum
    routed = bytes(parsed)
    tagged = bytes(12) + b"\x88\xa8\0\x05\x81\x00\0\x06" + packet[12:]
    assert verdict_on([routed])["packets"] == verdict_on([tagged])["packets"] == 1


def numbered(sequence, stream=1, _made={}):  # noqa: B006 - made once for all tests
    """Return packet ``sequence`` of a stream."""
    template = _made.setdefault(stream, packets_of(1, stream=stream)[0])
    parsed = bytearray(template)
    struct.pack_into("!Q", parsed, 48, sequence)
    parsed[40:42] = b"\0\0"
    pseudo = bytes(parsed[26:34]) + struct.pack("!HH", 17, len(parsed) - 34)
    words = struct.unpack(f"!{(len(pseudo) + len(parsed) - 34) // 2}H", pseudo + parsed[34:])
    check = ~(sum(words) % 65535) & 0xFFFF
    parsed[40:42] = struct.pack("!H", check or 0xFFFF)
    return bytes(parsed)


@pytest.mark.parametrize(
    ("sequence", "found"),
    [
        ([0, 1, 2], (3, 0, 0, 0)),
        ([0, 2, 1, 3], (4, 0, 1, 0)),
        ([0, 1, 1, 2], (3, 0, 0, 1)),
        ([0, 3], (2, 2, 0, 0)),
        ([5, 6], (2, 0, 0, 0)),
        ([3, 0, 1, 2], (4, 0, 3, 0)),
        ([0, 2, 1, 1], (3, 0, 1, 1)),
        ([0, WINDOW, 1], (3, WINDOW - 2, 1, 0)),
        ([0, WINDOW, 0], (2, WINDOW - 1, 0, 1)),
        ([0, WINDOW + 1, 1], (2, WINDOW, 0, 1)),
        ([0, 10 * WINDOW, 10 * WINDOW - 1], (3, 10 * WINDOW - 2, 1, 0)),
        ([1, 2**63, 2**63 + 1], (3, 2**63 - 2, 0, 0)),
    ],
)
def test_the_order_of_numbers_tells_what_became_of_them(sequence, found):
    verdict = verdict_on(map(numbered, sequence))
    names = ("packets", "lost", "reordered", "duplicated")
    assert tuple(verdict[name] for name in names) == found


def test_any_order_within_the_window_is_judged_as_by_a_set():
    chance = random.Random(9)
    for _ in range(30):
        last = chance.randint(10, 400)
        sequence = [n for n in range(last) if chance.random() > 0.1]
        sequence += chance.choices(range(last), k=20)
        sequence.sort(key=lambda n: n + chance.randint(0, 20))
        newest, reordered = -1, 0
        there = set()
        for number in sequence:
            reordered += number < newest and number not in there
            newest = max(newest, number)
            there.add(number)
        verdict = verdict_on(map(numbered, sequence))
        assert verdict["packets"] == len(there)
        assert verdict["lost"] == max(there) + 1 - min(there) - len(there)
        assert verdict["reordered"] == reordered
        assert verdict["duplicated"] == len(sequence) - len(there)


def test_streams_are_told_apart_and_too_many_are_foreign():
    verdict = verdict_on(numbered(n, stream) for n in range(3) for stream in range(300))
    assert (verdict["streams"], verdict["packets"], verdict["foreign"]) == (256, 768, 132)
    assert has_passed(verdict)


def test_latencies_are_ranked():
    verifier = Verifier()
    packets = [numbered(n) for n in range(1000)]
    (sent_ns,) = {NUMBERED.unpack_from(packet, 42)[3] for packet in packets}
    for n, packet in enumerate(packets):
        verifier.check(packet, sent_ns + 1000 * (n + 1))
    verifier.check(numbered(1000), sent_ns - 1)  # another clock: no time is taken
    latency = judge([Seen(**verifier.findings())])["latency_us"]
    for name, exact in (("p50", 500), ("p99", 990), ("p999", 999)):
        assert exact <= latency[name] <= exact * 33 / 32
    assert latency["max"] == 1000


def test_latencies_of_any_size_have_a_bucket():
    verifier = Verifier()
    packet = numbered(0)
    (*_, sent_ns) = NUMBERED.unpack_from(packet, 42)
    for shift in range(62):
        verifier.check(packet, sent_ns + (1 << shift))
    assert sum(verifier.findings()["latency"]) == 62
    assert judge([Seen(**verifier.findings())])["latency_us"]["max"] == 2**61 / 1000


# Both together


@pytest.mark.parametrize("settings", [{}, {"sources": 10, "ports": 10}, IPV6])
def test_what_is_sent_arrives_while_the_ring_indices_pass_32_bits(settings):
    """Show 5 in small: every packet is in the books of both ends, and checked."""
    start = 2**32 - 1000
    sender = Bed(make(payload="sequence", count=MANY, **settings), size=256, frame_count=512,
                 batch_size=64, start=start)  # fmt: skip
    pool = Pool(Memory(512, 2048))
    receiver = FakeQueue(pool, size=256, start=start)
    receiver.port.refill(256)
    verifier = Verifier()
    worker = Worker(receiver.port, job=verifier, batch_size=64)

    def cross():
        sender.queue.transmit()
        assert receiver.receive_packets(sender.sent) == len(sender.sent)
        sender.sent.clear()
        sender.queue.complete()
        worker.turn()
        return 0

    sender.queue.on_kick = cross
    while not sender.generator.is_done:
        sender.worker.turn()
    sender.check_books()
    counters = receiver.port.counters()
    assert counters["rx_packets"] == counters["consumed_packets"] == MANY
    assert sum(worker.frames().values()) == 512
    assert receiver.rings["rx"].producer == (start + MANY) % 2**32
    verdict = judge([Seen(**verifier.findings())])
    assert (verdict["packets"], verdict["streams"]) == (MANY, 1)
    assert has_passed(verdict)


def test_what_is_lost_between_them_is_missed_to_the_packet():
    chance = random.Random(3)
    sent = packets_of(5000)
    arrived = [packet for packet in sent if chance.random() > 0.2]
    verdict = verdict_on(arrived)
    last = NUMBERED.unpack_from(arrived[-1], 42)[2]
    assert verdict["packets"] == len(arrived)
    assert verdict["lost"] + verdict["missed"] == last + 1 - len(arrived)


def test_the_payload_scapy_shows_is_the_pattern():
    (packet,) = packets_of(1, size=100, pattern=0xA1B2C3D4)
    assert bytes(Ether(packet)[Raw])[22:] == bytes.fromhex("a1b2c3d4" * 10)[: 100 - 64]
