"""``echo``: the real ping, ping -6 and arping are answered; every byte is as the RFCs say."""

import ctypes
import mmap
import os
import signal
import socket
import struct
import subprocess
import time
from pathlib import Path

import pytest

from l2fwd import link
from l2fwd._answer import Answer
from l2fwd._bpf import run_packet
from l2fwd._rings import Memory, Pool
from l2fwd._worker import Worker
from l2fwd.config import AttachMode
from l2fwd.datapath.echo import echo_program
from l2fwd.errors import ConfigError
from l2fwd.testing import FakeQueue
from l2fwd.tool_config import EchoConfig, pack_address
from tests.answers import (
    MAC,
    OTHER4,
    OURS4,
    OURS6,
    PEER4,
    PEER6,
    arp,
    echo4,
    echo6,
    expected,
    hostile,
    icmp_is_right,
    not_for_us,
    questions,
    solicit,
)

FRAMES = 100_000 if os.environ.get("L2FWD_FUZZ") else 4_000
XDP_PASS, XDP_TX = 2, 3
ADDRESSES = ("--address", OURS4, "--address", OURS6)
WAYS = [
    pytest.param(("--mode", mode, *where), id=f"{mode}-{'kernel' if where else 'worker'}")
    for mode in ("native", "skb")
    for where in ((), ("--in-kernel",))
]


def make_answer(mac=MAC, addresses=(OURS4, OURS6), **settings):
    packed = b"".join(map(pack_address, addresses))
    return Answer(bytes.fromhex(mac.replace(":", "")), packed, **settings)


def assert_same(frame, answer, wanted):
    """Compare an answer with the oracle's, which makes every checksum right."""
    if wanted is None:
        assert answer is None, frame.hex()
        return
    assert answer is not None, frame.hex()
    if answer != wanted:
        at = 16 if frame[12:14] in (b"\x81\x00", b"\x88\xa8") else 12
        check = at + (24 if wanted[at : at + 2] == b"\x08\x00" else 44)
        assert not icmp_is_right(frame), (frame.hex(), answer.hex(), wanted.hex())
        assert not icmp_is_right(answer)
        assert answer[:check] + answer[check + 2 :] == wanted[:check] + wanted[check + 2 :]


# The answer itself


class Brink:
    """Memory that ends where none is: whoever goes beyond dies of it."""

    def __init__(self):
        self._memory = mmap.mmap(-1, 2 * mmap.PAGESIZE)
        view = (ctypes.c_char * (2 * mmap.PAGESIZE)).from_buffer(self._memory)
        second = ctypes.c_void_p(ctypes.addressof(view) + mmap.PAGESIZE)
        assert ctypes.CDLL(None).mprotect(second, mmap.PAGESIZE, 0) == 0
        self.page = memoryview(self._memory)[: mmap.PAGESIZE]

    def answer(self, job, frame, room=0):
        """Answer a frame that ends ``room`` bytes before the end; None if there is no answer."""
        buffer = self.page[len(self.page) - len(frame) - room :]
        buffer[: len(frame)] = frame
        length = job.answer(buffer, len(frame))
        if length:
            return bytes(buffer[:length])
        assert bytes(buffer[: len(frame)]) == frame, "not answered, and changed all the same"
        return None


@pytest.fixture(scope="module")
def brink():
    return Brink()


@pytest.mark.parametrize("frame", questions(), ids=lambda frame: frame[12:60].hex())
def test_an_answer_is_as_the_rfcs_say_to_the_byte(brink, frame):
    answer = brink.answer(make_answer(), frame, room=8)
    assert answer == expected(frame)
    assert icmp_is_right(answer)


@pytest.mark.parametrize("frame", not_for_us(), ids=lambda frame: frame[:60].hex())
def test_what_is_not_asked_of_us_has_no_answer(brink, frame):
    assert expected(frame) is None
    assert brink.answer(make_answer(), frame, room=8) is None


def test_an_advertisement_without_room_is_not_written(brink):
    frame = solicit(option=False)
    assert brink.answer(make_answer(), frame, room=7) is None
    assert len(brink.answer(make_answer(), frame, room=8)) == len(frame) + 8


def test_any_address_is_about_echo_only(brink):
    job = make_answer(addresses=(), any_address=True)
    for frame in (echo4(dst=OTHER4), echo6(dst="2001:db8:1::1")):
        assert brink.answer(job, frame) == expected(frame, addresses=(), any_address=True)
    for frame in (arp(), solicit(), echo4(dst="255.255.255.255"), echo6(dst="ff02::1")):
        assert brink.answer(job, frame, room=8) is None


def test_a_wrong_checksum_stays_wrong(brink):
    for frame in (echo4(), echo6()):
        broken = frame[:-1] + bytes([frame[-1] ^ 1])
        assert not icmp_is_right(brink.answer(make_answer(), broken))


@pytest.mark.parametrize("any_address", [False, True])
def test_hostile_frames_agree_with_the_oracle_and_nothing_beyond_them_is_touched(
    brink, any_address
):
    job = make_answer(any_address=any_address)
    answered = 0
    for frame in hostile(FRAMES, seed=1):
        answer = brink.answer(job, frame, room=8)
        answered += answer is not None
        assert_same(frame, answer, expected(frame, any_address=any_address))
        brink.answer(job, frame)
    assert FRAMES // 20 < answered < FRAMES, "the corpus says nothing"


@pytest.mark.privileged
def test_the_program_agrees_with_the_oracle_about_hostile_frames(bed):
    with link.in_netns(bed.fwd):
        link.set_address("f0", MAC)
        found = link.find_link("f0")
        config = EchoConfig(link_names=("f0",), addresses=(OURS4, OURS6), in_kernel=True)
        program = echo_program(config, found)
        try:
            for frame in (*questions(), *not_for_us(), *hostile(FRAMES, seed=2)):
                if len(frame) < 14:
                    continue  # the test run takes none
                verdict, became = run_packet(program.fd, frame, found.ifindex)
                assert verdict in (XDP_PASS, 4 if found.driver == "veth" else XDP_TX)
                assert_same(frame, None if verdict == XDP_PASS else became, expected(frame))
        finally:
            program.close()


def test_sizes_are_checked():
    with pytest.raises(ConfigError, match="6 bytes"):
        Answer(b"\2\0\0\0\0")
    with pytest.raises(ConfigError, match="20 bytes"):
        Answer(bytes(6), bytes(19))
    with pytest.raises(ConfigError, match="buffer of 10"):
        make_answer().answer(bytearray(10), 11)


# The job


class FakeBed:
    def __init__(self, **sizes):
        self.pool = Pool(Memory(64, 2048))
        size = {"fill": 16, "rx": 16, "tx": 16, "completion": 16} | sizes
        self.queue = FakeQueue(self.pool, size=size, record=True)
        self.queue.port.refill(16)
        self.job = make_answer()
        self.worker = Worker(self.queue.port, job=self.job)

    def counters(self):
        assert sum(self.worker.frames().values()) == self.pool.frame_count
        counted = self.queue.port.counters()
        assert counted["rx_packets"] == (
            counted["tx_packets"] + counted["consumed_packets"] + counted["tx_full_drops"]
        )
        return counted | self.job.counters()


def test_a_burst_is_answered_in_order_and_the_rest_forgotten():
    bed = FakeBed()
    frames = [echo4(), b"\xff" * 60, solicit(option=False), arp(), echo6(), echo4(dst=OTHER4)]
    bed.queue.receive_packets(frames)
    assert bed.worker.turn() == 6
    assert bed.queue.sent == [answer for answer in map(expected, frames) if answer]
    counted = bed.counters()
    assert [counted[f"answered_{kind}"] for kind in ("echo4", "echo6", "arp", "nd")] == [1] * 4
    assert counted["consumed_packets"] == 2


def test_answers_that_do_not_fit_the_tx_ring_are_dropped_and_counted():
    bed = FakeBed(tx=2, completion=2)
    bed.queue.on_kick = lambda: 0
    bed.queue.receive_packets([echo4()] * 5)
    bed.worker.turn()
    counted = bed.counters()
    assert (counted["tx_packets"], counted["tx_full_drops"]) == (2, 3)
    assert counted["answered_echo4"] == 2


# On the wire


def enter(netns, *command):
    return subprocess.run(
        ["nsenter", f"--net=/run/netns/{netns}", *command],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


def configure(netns, *commands):
    for command in commands:
        done = enter(netns, "ip", *command.split())
        assert done.returncode == 0, done.stderr


def enable_ipv6(netns, ifname):
    with link.in_netns(netns):
        Path(f"/proc/sys/net/ipv6/conf/{ifname}/disable_ipv6").write_text("0")


def ping(netns, *arguments, count=5):
    """Return how many of ``count`` pings were answered."""
    done = enter(netns, "ping", "-n", "-c", str(count), "-i", "0.02", "-W", "2", *arguments)
    assert "packets transmitted" in done.stdout, done.stderr
    assert "DUP" not in done.stdout
    return int(done.stdout.split(" received")[0].rsplit(" ", 1)[1])


@pytest.fixture
def dual_bed(bed):
    """A bed whose generator has IPv4 and IPv6, and whose middle has an address too."""
    enable_ipv6(bed.gen, "g0")
    configure(bed.gen, f"addr add {PEER6}/64 dev g0 nodad")
    configure(bed.fwd, "addr add 10.77.0.5/24 dev f0")
    return bed


@pytest.mark.privileged
@pytest.mark.parametrize("way", WAYS)
def test_ping_ping6_arping_and_dad_are_answered_and_the_host_goes_on(dual_bed, forward, way):
    bed = dual_bed
    with link.in_netns(bed.fwd):
        mac = link.find_link("f0").address
    echo = forward(bed, *ADDRESSES, *way, verb="echo", links=("f0",))
    assert ping(bed.gen, OURS4) == 5
    assert ping(bed.gen, "-6", OURS6) == 5
    assert ping(bed.gen, "-s", "1400", OURS4) == 5
    arping = enter(bed.gen, "arping", "-c", "2", "-I", "g0", OURS4)
    assert arping.stdout.upper().count(mac.upper()) == 2, arping.stdout
    # Who looks whether an address is free is told that it is not.
    assert enter(bed.gen, "arping", "-D", "-c", "2", "-w", "3", "-I", "g0", OURS4).returncode == 1
    assert enter(bed.gen, "arping", "-D", "-c", "1", "-w", "1", "-I", "g0", OTHER4).returncode == 0
    configure(bed.gen, f"addr add {OURS6}/64 dev g0")
    deadline = time.monotonic() + 5
    while "dadfailed" not in (state := enter(bed.gen, "ip", "addr", "show", "g0").stdout):
        assert time.monotonic() < deadline, state
        time.sleep(0.05)
    # Nobody has it, and the host is what it was.
    assert ping(bed.gen, "-W", "0.3", OTHER4, count=1) == 0
    assert ping(bed.gen, "10.77.0.5") == 5
    assert ping(bed.fwd, PEER4) == 5
    summary = echo.stop()
    assert summary["unaccounted"] == 0
    assert summary["drops"] == {}
    answered = summary["answered"]
    assert (answered["echo4"], answered["echo6"]) == (10, 5)
    assert answered["arp"] >= 4
    assert answered["nd"] >= 2
    assert summary["forwarded"] == summary["rx_packets"] == sum(answered.values())


@pytest.mark.privileged
@pytest.mark.parametrize("way", WAYS)
def test_ping_over_a_vlan_is_answered_in_it(bed, forward, way):
    vlan = ("name", "g0.7", "type", "vlan", "id", "7")
    done = enter(bed.gen, "ip", "link", "add", "link", "g0", *vlan)
    if "Unknown device type" in done.stderr:
        pytest.skip("this kernel has no VLAN links; the tag is judged on the wire below")
    configure(bed.gen, "link set g0.7 up", "addr add 10.78.0.1/24 dev g0.7")
    echo = forward(bed, "--address", "10.78.0.9", *way, verb="echo", links=("f0",))
    assert ping(bed.gen, "10.78.0.9") == 5
    assert echo.stop()["answered"]["echo4"] == 5


@pytest.mark.privileged
@pytest.mark.parametrize("way", WAYS)
def test_every_answer_on_the_wire_is_as_the_oracle_says(bed, forward, way):
    with link.in_netns(bed.fwd):
        mac = link.find_link("f0").address
    echo = forward(bed, *ADDRESSES, *way, verb="echo", links=("f0",))
    with link.in_netns(bed.gen):
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        wire.bind(("g0", 3))
    with wire:
        wire.setsockopt(263, 8, 1)  # SOL_PACKET, PACKET_AUXDATA: a tag taken off is told
        wire.settimeout(3)
        frames = questions(mac)
        for frame in (f for pair in zip(frames, not_for_us(mac) * 2, strict=False) for f in pair):
            wire.send(frame)
        for frame in frames[len(not_for_us()) * 2 :]:
            wire.send(frame)
        got = []
        while len(got) < len(frames):
            got += receive(wire, bytes.fromhex(mac.replace(":", "")))
    wanted = [expected(frame, mac) for frame in frames]
    assert got == wanted
    assert echo.stop()["tx_packets"] == len(frames)


def receive(wire, source):
    """Return the next frame, in a list, if it is from ``source``; its VLAN tag in its place."""
    data, extra, _, _ = wire.recvmsg(65536, 256)
    if data[6:12] != source:
        return []
    for _, kind, aux in extra:
        status, tci, tpid = struct.unpack_from("=I12xHH", aux)
        if kind == 8 and status & 0x10:  # TP_STATUS_VLAN_VALID
            tpid = tpid if status & 0x40 else 0x8100  # TP_STATUS_VLAN_TPID_VALID
            data = data[:12] + tpid.to_bytes(2, "big") + tci.to_bytes(2, "big") + data[12:]
    return [data]


@pytest.mark.privileged
@pytest.mark.parametrize("way", WAYS)
def test_a_link_made_again_answers_with_its_new_address(bed, forward, way):
    echo = forward(bed, *ADDRESSES, *way, "--mode", "auto", verb="echo", links=("f0",))
    with link.in_netns(bed.fwd):
        before = link.find_link("f0").address
        link.delete_link("f0")
    link.create_veth((bed.gen, "g0"), (bed.fwd, "f0"))
    configure(bed.fwd, "link set f0 address 02:00:00:00:00:55", "link set f0 up")
    configure(bed.gen, f"addr add {PEER4}/24 dev g0", "link set g0 up")
    enter(bed.gen, "ethtool", "-K", "g0", "gro", "off")
    enter(bed.gen, "ethtool", "-K", "g0", "gro", "on")
    echo.wait_for("program_attached")
    deadline = time.monotonic() + 5
    while not ping(bed.gen, "-W", "0.3", OURS4, count=1):
        assert time.monotonic() < deadline, echo.stderr
    seen = enter(bed.gen, "ip", "neigh", "show", OURS4).stdout
    assert "02:00:00:00:00:55" in seen
    assert before not in seen
    assert echo.stop(signal.SIGINT)["unaccounted"] == 0


@pytest.mark.privileged
def test_two_queues_and_two_links_are_served(make_bed, forward):
    bed = make_bed(queues=2)
    configure(bed.sink, "addr flush dev s0", "addr add 10.77.0.3/24 dev s0")
    echo = forward(bed, *ADDRESSES, verb="echo", links=("f0", "f1"))
    assert ping(bed.gen, OURS4) == 5
    assert ping(bed.sink, OURS4) == 5
    summary = echo.stop()
    assert {(port["link"], port["queue"]) for port in summary["ports"]} == {
        (name, queue) for name in ("f0", "f1") for queue in (0, 1)
    }
    assert summary["answered"]["echo4"] == 10


# Bad input


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--address"),
        (["--address", "nonsense"], "nonsense"),
        (["--address", "192.0.2.1/24"], "192.0.2.1/24"),
        (["--address", "224.0.0.1"], "one host"),
        (["--address", "0.0.0.1"], "one host"),
        (["--address", "255.255.255.255"], "one host"),
        (["--address", "127.0.0.1"], "one host"),
        (["--address", "::"], "one host"),
        (["--address", "ff02::1"], "one host"),
        (["--address", "fe80::1%f0"], "leave out the link"),
        (["--address", OURS4, "--mode", "native", "-S"], "not allowed"),
        (["--address", OURS4, "--in-kernel", "--queues", "0"], "queues is about sockets"),
        (["--address", OURS4, "--in-kernel", "-b", "8"], "batch-size is about sockets"),
    ],
)
def test_a_wrong_argument_is_named(words, said):
    done = subprocess.run(
        [os.sys.executable, "-m", "l2fwd", "echo", "f0", *words],
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr


def test_the_modes_are_known():
    config = EchoConfig(link_names=("f0",), addresses=(OURS4,), mode=AttachMode.SKB)
    assert config.uses_sockets
    assert len(EchoConfig(link_names=("f0",), addresses=(OURS4,) * 3).packed_addresses) == 1
