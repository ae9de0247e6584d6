"""What is asked for packets sent: a checksum filled in, and the time at which they left."""

import asyncio
import ctypes
import socket
import struct
import subprocess
import time

import numpy as np
import pytest

from l2fwd import (
    ConfigError,
    MultiQueueSocket,
    Umem,
    UmemConfig,
    UnsupportedError,
    XdpSocket,
    link,
    sockets,
    xsk,
)
from l2fwd._rings import Memory, Pool
from l2fwd._socket import Channel, TxRequest
from l2fwd.abi import XDP_PACKET_HEADROOM
from l2fwd.records import TX_TIMESTAMP
from l2fwd.testing import RING_DTYPES, FakeRing

pytestmark = [pytest.mark.privileged, pytest.mark.timeout(60)]

UDP4, UDP6 = (34, 6), (54, 6)  # where the checksum is in IPv4 and in IPv6: start, and offset
SMALL = {"frames": 64, "ring_size": 64, "tx_metadata": True}
CSUMNOTREADY = 1 << 3  # TP_STATUS_CSUMNOTREADY: its receiver takes it for granted


def ones_sum(data):
    """Add up 16-bit words, the carries too."""
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def udp(number, length=60, *, version=4):
    """Return a packet with the sum of the pseudo header in its checksum field."""
    head = 34 if version == 4 else 54
    size = length - head
    payload = bytes((number + i) & 0xFF for i in range(size - 8))
    if version == 4:
        ends = bytes((10, 0, 0, 1, 10, 0, 0, 2))
        ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + size, 0, 0, 64, 17, 0) + ends
    else:
        ends = bytes(range(32))
        ip = struct.pack(">IHBB", 6 << 28, size, 17, 64) + ends
    pseudo = ones_sum(ends + struct.pack(">HH", 17, size))
    ports = struct.pack(">HHHH", 1000 + number, 2000, size, pseudo)
    ethertype = b"\x08\x00" if version == 4 else b"\x86\xdd"
    return bytes.fromhex("020000000002020000000001") + ethertype + ip + ports + payload


def is_summed(packet):
    """Tell whether the checksum of a packet of ``udp`` is right."""
    head, ends = (34, packet[26:34]) if packet[12:14] == b"\x08\x00" else (54, packet[22:54])
    segment = packet[head:]
    pseudo = ends + struct.pack(">HH", 17, len(segment))
    return ones_sum(pseudo + segment + bytes(len(segment) % 2)) == 0xFFFF


class Receiver:
    """A raw socket on ``right`` that tells which checksums are still to be filled in."""

    def __init__(self):
        self.end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.end.bind(("right", 3))
        self.end.settimeout(5)
        self.end.setsockopt(263, 8, 1)  # PACKET_AUXDATA

    def receive(self, count):
        found = [self.end.recvmsg(65536, 256) for _ in range(count)]
        self.statuses = [struct.unpack_from("I", each[1][0][2])[0] for each in found]
        return [each[0] for each in found]


@pytest.fixture
def wire(pair):
    """A receiver on ``right``; ``left``, where the test runs, leaves checksums to the kernel."""
    for netns, ifname in zip(pair, ("left", "right"), strict=True):
        with link.in_netns(netns):
            link.disable_ipv6(ifname)
            subprocess.run(["ethtool", "-K", ifname, "tx", "off"], check=True, capture_output=True)
            link.set_up(ifname)
    with link.in_netns(pair[1]):
        receiver = Receiver()
    with receiver.end, link.in_netns(pair[0]):
        yield receiver


@pytest.fixture(params=["native", "skb"])
def left(wire, request):
    with XdpSocket("left", mode=request.param, **SMALL) as opened:
        yield opened
        assert opened.flush(5)
        stats = opened.stats()
        assert sum(stats.frames.values()) == opened.umem.config.frame_count
        assert stats.frames["lost"] == 0
        assert stats.tx_packets == stats.tx_completed
        assert stats.drops == {}


def as_list(packets):
    return (packets,)


def as_rows(packets):
    rows = np.zeros((len(packets), 100), np.uint8)
    for row, packet in zip(rows, packets, strict=True):
        row[: len(packet)] = np.frombuffer(packet, np.uint8)
    return rows, np.array([len(packet) for packet in packets])


@pytest.mark.parametrize("kind", [as_list, as_rows])
def test_the_checksum_is_filled_in(left, wire, kind):
    sent = [udp(n, 60 + n % 40) for n in range(150)]
    assert not any(map(is_summed, sent))
    for first in range(0, 150, 30):
        part = sent[first : first + 30]
        assert left.write_batch(*kind(part), checksum=UDP4) == 30
        received = wire.receive(30)
        assert all(map(is_summed, received))
        assert [packet[:40] for packet in received] == [packet[:40] for packet in part]
        assert [packet[42:] for packet in received] == [packet[42:] for packet in part]
    left.write(sent[0], checksum=UDP4)
    assert is_summed(wire.receive(1)[0])


def test_each_packet_may_have_it_elsewhere(left, wire):
    versions = [4, 6, 6, 4, 6] * 4
    sent = [udp(n, 80, version=version) for n, version in enumerate(versions)]
    places = np.array([UDP4 if version == 4 else UDP6 for version in versions])
    assert left.write_batch(sent, checksum=places) == 20
    assert all(map(is_summed, wire.receive(20)))
    assert asyncio.run(left.write_batch_async(sent, checksum=places)) == 20
    assert all(map(is_summed, wire.receive(20)))


def test_a_frame_used_again_asks_for_nothing_more(left, wire):
    """The request stays in the frame: it must be taken back, or forgotten, for the next packet."""
    sent = [udp(n) for n in range(64)]
    left.write_batch(sent, checksum=UDP4, timestamp=True)
    wire.receive(64)
    left.flush(5)
    assert len(left.timestamps()) == 64
    for write in (
        left.write_batch,
        lambda packets: left.write_batch(*as_rows(packets)),
        lambda packets: [left.write(each) for each in packets],
    ):
        left.umem.frames[:, :XDP_PACKET_HEADROOM] = 0xFF  # all that could be asked
        write(sent)
        assert wire.receive(64) == sent
        left.flush(5)
        assert len(left.timestamps()) == 0


def test_a_link_with_the_offload_is_left_to_do_it(wire):
    subprocess.run(["ethtool", "-K", "left", "tx", "on"], check=True, capture_output=True)
    with XdpSocket("left", **SMALL) as left:
        left.write(udp(1), checksum=UDP4)
        assert wire.receive(1) == [udp(1)]
        assert wire.statuses[0] & CSUMNOTREADY
        left.write(udp(2))
        wire.receive(1)
        assert not wire.statuses[0] & CSUMNOTREADY


def test_timestamps_tell_when_which_packet_left(left, wire):
    left.write_batch([udp(0)] * 3)
    assert left.packets_written == 3
    before = time.clock_gettime_ns(time.CLOCK_TAI)
    left.write(udp(3), timestamp=True)
    left.write_batch([udp(4)] * 5)
    left.write_batch([udp(9)] * 20, timestamp=True, checksum=UDP4)
    wire.receive(29)
    assert left.flush(5)
    found = left.timestamps()
    assert found.dtype == TX_TIMESTAMP
    assert sorted(found["packet"].tolist()) == [3, *range(9, 29)]
    assert (
        found["timestamp_ns"] >= before - 1_000_000
    ).all()  # the clock that the kernel reads is a fast one
    assert (found["timestamp_ns"] <= time.clock_gettime_ns(time.CLOCK_TAI)).all()
    assert len(left.timestamps()) == 0


def test_packets_are_sent_on_with_a_checksum(wire, pair):
    with XdpSocket("left", **SMALL) as left:
        with link.in_netns(pair[1]), XdpSocket("right", queue=0, frames=64, ring_size=64) as right:
            for _ in range(3):
                right.write_batch([udp(n) for n in range(10)])
                batch = left.read_batch(16, timeout=5)
                assert len(batch) == 10
                number = left.packets_written
                assert batch.send_on(left, checksum=UDP4, timestamp=True) == 10
                received = [right.read(timeout=5) for _ in range(10)]
                assert all(map(is_summed, received))
                left.flush(5)
                numbers = left.timestamps()["packet"].tolist()
                assert sorted(numbers) == list(range(number, number + 10))
            right.write(udp(1))
            batch = left.read_batch(timeout=5)
            left.umem.frames[:, :XDP_PACKET_HEADROOM] = 0xFF
            assert batch.send_on(left) == 1
            assert right.read(timeout=5) == udp(1)
            left.flush(5)
            assert len(left.timestamps()) == 0
        assert sum(left.stats().frames.values()) == 128


def test_packets_in_several_frames(wire, pair):
    for netns, ifname in zip(pair, ("left", "right"), strict=True):
        with link.in_netns(netns):
            link.set_mtu(ifname, 9000)
    lengths = [60, 2015, 2016, 2017, 4032, 4033, 9014]
    sent = [udp(n, length) for n, length in enumerate(lengths)]
    with XdpSocket("left", tx_metadata=True) as left:
        assert left.write_batch(sent, checksum=UDP4, timestamp=True) == 7
        received = wire.receive(7)
        assert [len(packet) for packet in received] == lengths
        assert all(map(is_summed, received))
        assert left.flush(5)
        assert sorted(left.timestamps()["packet"].tolist()) == list(range(7))
        left.umem.frames[:, :XDP_PACKET_HEADROOM] = 0xFF
        assert left.write_batch(sent) == 7
        assert wire.receive(7) == sent
        assert left.flush(5)
        assert len(left.timestamps()) == 0
        with pytest.raises(ConfigError, match="packet 0 has 36289 bytes; it must have 14 to 36288"):
            left.write(bytes(18 * 2016 + 1))
        with pytest.raises(ConfigError, match="its checksum would end at 2017"):
            left.write(sent[-1], checksum=(2010, 5))


def test_queues_and_sockets_share_it(wire, pair):
    sent = [udp(n, 80, version=4 + 2 * (n % 2)) for n in range(20)]
    places = np.array([UDP4, UDP6] * 10, np.uint16)
    with MultiQueueSocket("left", **SMALL) as many:
        assert many.write_batch(sent, checksum=places, timestamp=True) == 20
        assert all(map(is_summed, wire.receive(20)))
        assert all(each.flush(5) for each in many.sockets)
        assert [len(each.timestamps()) for each in many.sockets] == [10, 10]
        (first, _) = many.sockets
        assert first.umem.tx_metadata
    with XdpSocket("left", frames=64, ring_size=64) as plain:
        with pytest.raises(ConfigError, match="tx_metadata is the UMEM's"):
            XdpSocket("left", 1, umem=plain.umem, frames=16, tx_metadata=True)


# What cannot be


def test_it_must_have_been_asked_for_when_the_socket_was_opened(wire):
    with XdpSocket("left", frames=64, ring_size=64) as left:
        with pytest.raises(ConfigError, match="checksum needs a socket opened with tx_metadata"):
            left.write(udp(0), checksum=UDP4)
        with pytest.raises(ConfigError, match="timestamp needs a socket opened with tx_metadata"):
            left.write_batch([udp(0)], timestamp=True)
        assert left.packets_written == 0
        with pytest.raises(ConfigError, match="a UMEM without tx_metadata"):
            left.channel.send_bytes([udp(0)], 0, TxRequest(None, True))


@pytest.mark.parametrize(
    ("checksum", "said"),
    [
        ((34, 25), r"packet 2 has 60 bytes in its first frame, its checksum would end at 61"),
        ((65535, 65535), "would end at 131072"),
        ((34, 65536), r"start and offset must be in \[0, 65535\]"),
        ((-1, 6), r"start and offset must be in \[0, 65535\]"),
        ((34.0, 6.0), "must be two integers, start and offset"),
        (34, r"or of shape \(3, 2\), got int64 of \(\)"),
        (np.zeros((2, 2), int), r"or of shape \(3, 2\), got int64 of \(2, 2\)"),
        ("ab", "must be two integers"),
    ],
)
def test_a_checksum_that_cannot_be_is_named_and_the_socket_goes_on(left, wire, checksum, said):
    packets = [udp(0, 61), udp(1, 61), udp(2, 60)]
    with pytest.raises(ConfigError, match=said):
        left.write_batch(packets, checksum=checksum)
    wire.receive(left.packets_written)
    left.write(udp(7), checksum=UDP4)
    assert is_summed(wire.receive(1)[0])


def test_a_packet_has_less_room(left, wire):
    with pytest.raises(ConfigError, match="packet 0 has 2017 bytes; it must have 14 to 2016"):
        left.write(bytes(2017))
    with pytest.raises(ConfigError, match="inside one frame"):
        left.send_frames(np.array([2048], np.uint64), np.array([60], np.uint32))


def test_a_driver_without_the_offload_is_named_in_zero_copy(wire, monkeypatch):
    monkeypatch.setattr(XdpSocket, "is_zero_copy", True)
    monkeypatch.setattr(sockets, "check_nic_ring", lambda found, lent: [])
    with XdpSocket("left", **SMALL) as left:
        for what in ("checksum", "timestamp"):
            said = (
                f"left: driver veth has no {what} for zero-copy sockets; open it with bind='copy'"
            )
            with pytest.raises(UnsupportedError, match=said):
                left.write(udp(0), **{what: UDP4})


def test_a_kernel_without_it_is_named_and_nothing_is_left(wire, monkeypatch):
    monkeypatch.setattr(xsk, "TX_METADATA_BYTES", 7)  # refused as an unknown flag is
    with pytest.raises(UnsupportedError, match=r"needs Linux 6\.11, or .*6\.8; leave it out"):
        XdpSocket("left", **SMALL)
    with pytest.raises(ConfigError, match="tx_metadata needs frames of 2048 or 4096 bytes"):
        Umem(UmemConfig(frame_size=3000, unaligned=True), 64, tx_metadata=True)
    assert link.find_link("left").xdp_mode == "none"


def test_a_umem_registered_twice_is_still_one_umem(wire):
    """It may be closed unused, and its memory is what the kernel has, all of it."""
    umem = Umem(UmemConfig(frame_count=64), 16, tx_metadata=True)
    umem.close()
    with XdpSocket("left", frames=1000, ring_size=16, tx_metadata=True) as left:
        for first in range(0, 2000, 100):
            sent = [udp(n & 0xFF) for n in range(first, first + 100)]
            assert left.write_batch(sent) == 100
            assert wire.receive(100) == sent
        assert left.stats().kernel["tx_invalid_descs"] == 0


def test_what_a_kernel_completes_out_of_bounds_is_no_timestamp():
    kick = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(lambda fd: 0)
    address = ctypes.cast(kick, ctypes.c_void_p).value
    rings = {name: FakeRing(8, dtype) for name, dtype in RING_DTYPES.items()}
    channel = Channel(
        Pool(Memory(8, 2048), tx_room=32),
        {name: ring.memory for name, ring in rings.items()},
        -1,
        "fake",
        kick_tx=address,
        kick_rx=address,
    )
    assert channel.send_bytes([udp(0)] * 3, 0, TxRequest(None, True)) == 3
    first = rings["tx"].take(3)["addr"][0]
    rings["completion"].put(np.array([2**64 - 1, 8 * 2048, 31], np.uint64))
    assert channel.take_timestamps() == []
    assert channel.send_bytes([udp(0)], 0, TxRequest(None, True)) == 1
    assert first % 2048 == 32
    # Done, and nobody wrote a time: what was asked for is no time.
    rings["completion"].put(rings["tx"].take(1)["addr"])
    assert channel.take_timestamps() == [(3, 0)]
