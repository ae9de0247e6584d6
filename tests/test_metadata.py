"""What a NIC knows about a packet: timestamp, hash and VLAN tag, as a veth tells them."""

import socket
import subprocess
import time

import numpy as np
import pytest

from l2fwd import (
    Batch,
    ConfigError,
    HashType,
    MultiQueueSocket,
    RxHas,
    UnsupportedError,
    XdpSocket,
    _bpf,
    link,
    link_programs,
)
from l2fwd.abi import XDP_PACKET_HEADROOM
from l2fwd.bpf import Program
from l2fwd.netdev import xdp_features
from l2fwd.records import RX_METADATA

pytestmark = [pytest.mark.privileged, pytest.mark.timeout(60)]

UDP = bytes.fromhex(
    "020000000002 020000000001 0800"
    "4500 001c 0000 0000 4011 0000 0a000001 0a000002"
    "04d2 162e 0008 0000"
).ljust(60, b"\0")  # fmt: skip


@pytest.fixture
def wire(pair):
    """A raw socket on ``right``, whose packets come on queue 0; the test runs where ``left`` is."""
    with link.in_netns(pair[1]):
        subprocess.run(["ethtool", "-L", "right", "tx", "1"], check=True)
    for netns, ifname in zip(pair, ("left", "right"), strict=True):
        with link.in_netns(netns):
            link.disable_ipv6(ifname)
            link.set_up(ifname)
    with link.in_netns(pair[1]):
        end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        end.bind(("right", 0))
    with end, link.in_netns(pair[0]):
        yield end


@pytest.fixture
def xsk(wire):
    with XdpSocket("left", frames=64, ring_size=64, rx_metadata=True) as opened:
        yield opened


def udp(port):
    """A packet of a flow of its own."""
    return UDP[:34] + port.to_bytes(2, "big") + UDP[36:]


def read(xsk, count):
    """Return ``count`` packets and their metadata."""
    packets, parts = [], []
    while len(packets) < count:
        with xsk.read_batch(timeout=5) as batch:
            assert len(batch), f"{len(packets)} of {count} packets came"
            packets += batch.tolist()
            parts.append(batch.metadata)
    return packets, np.concatenate(parts).astype(RX_METADATA)


def test_the_hash_is_that_of_the_flow_and_the_same_for_all_its_packets(xsk, wire):
    sent = [udp(1000 + n % 3) for n in range(30)]
    for packet in sent:
        wire.send(packet)
    packets, metadata = read(xsk, 30)
    assert packets == sent
    assert metadata.dtype == RX_METADATA
    # A veth has no clock, and these have no tag.
    assert metadata["has"].tolist() == [RxHas.HASH] * 30
    assert not metadata["timestamp_ns"].any()
    assert set(metadata["hash_type"].tolist()) == {HashType.L4}
    hashes = metadata["hash"].reshape(10, 3)
    assert (hashes == hashes[0]).all()
    assert len(set(hashes[0].tolist())) == 3


def test_the_vlan_tag_that_is_beside_the_packet(xsk, wire, pair):
    """A bridge takes tags out of packets, and leaves it to the link to put them back."""
    with link.in_netns(pair[1]):
        link.create_veth((pair[1], "inner"), (pair[1], "outer"), queues=1, mtu=1400)
        bridge = ["ip", "link", "add", "bridge", "type", "bridge", "mcast_snooping", "0"]
        subprocess.run(bridge, check=True)
        for name in ("inner", "outer", "bridge"):
            link.disable_ipv6(name)
            link.set_up(name)
        for name in ("inner", "right"):
            subprocess.run(["ip", "link", "set", name, "master", "bridge"], check=True)
        for name in ("inner", "right", "bridge"):
            assert link.wait_for_carrier(name, 5, lambda: None)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as outer:
            outer.bind(("outer", 0))
            outer.send(UDP[:12] + bytes.fromhex("8100a064") + UDP[12:])
    (packet,), metadata = read(xsk, 1)
    assert packet == UDP
    assert metadata["has"].tolist() == [RxHas.VLAN_TAG | RxHas.HASH]
    assert metadata["vlan_proto"].tolist() == [0x8100]
    assert metadata["vlan_tci"].tolist() == [0xA064]
    wire.send(UDP)
    assert xsk.read_with_metadata(timeout=5)[1].tolist()[3:] == (0, 0, RxHas.HASH)


def test_one_packet_with_what_is_known_about_it(xsk, wire):
    wire.send(UDP)
    packet, metadata = xsk.read_with_metadata(timeout=5)
    assert (packet, int(metadata["has"])) == (UDP, RxHas.HASH)
    wire.send(UDP)
    assert xsk.read(timeout=5) == UDP
    with pytest.raises(BlockingIOError):
        xsk.read_with_metadata(timeout=0)


def test_of_a_packet_redirected_to_the_link_nothing_is_known(wire, pair):
    subprocess.run(["ethtool", "-L", "left", "rx", "1"], check=True)  # else by the sender's CPU
    program = Program("lab_send")
    program.load()
    header = UDP[:42].ljust(48, b"\0")  # the last field of struct lab_settings
    program.update("lab_settings", {bytes(4): bytes(104) + header})
    with XdpSocket("left", rx_metadata=True) as xsk:
        with link.in_netns(pair[1]):
            ifindex = link.find_link("right").ifindex
            _bpf.test_run(program.fd, UDP, flags=2, ingress_ifindex=ifindex)
        program.close()
        packets, metadata = read(xsk, 1)
    assert packets == [UDP]
    assert metadata[0].tolist() == (0,) * 6


def test_bytes_in_front_of_a_packet_are_not_taken_for_its_metadata(wire):
    """Frames come again: what an earlier packet, or a write, left there is no metadata."""
    stale = np.zeros(1, RX_METADATA)
    stale["has"] = 0x6D657400 | RxHas.HASH
    with XdpSocket("left", frames=4, ring_size=4, rx_metadata=True) as xsk:
        for _ in range(4):
            wire.send(UDP)
            assert read(xsk, 1)[1]["has"] == RxHas.HASH
        before = slice(XDP_PACKET_HEADROOM - RX_METADATA.itemsize, XDP_PACKET_HEADROOM)
        assert not xsk.umem.frames[:, before].view(RX_METADATA)["has"].any()
    with XdpSocket("left", frames=4, ring_size=4) as xsk:
        xsk.rx_metadata = True  # the program writes nothing
        xsk.umem.frames[:, before] = 0xAA
        wire.send(UDP)
        assert read(xsk, 1)[1][0].tolist() == (0,) * 6


def test_copies_and_batches_of_several_queues_keep_it(wire):
    with MultiQueueSocket("left", frames=64, rx_metadata=True) as many:
        wire.send(UDP)
        batch = many.read_batch(timeout=5)
        assert batch.copy().metadata["has"].tolist() == [RxHas.HASH]
        assert many.read_batch(timeout=0).metadata.shape == (0,)
        wire.send(UDP)
        time.sleep(0.1)
        (batch,) = many.read_batches(timeout=5)
        with batch:
            kept = batch.copy()
        with pytest.raises(ConfigError, match="was released"):
            _ = batch.metadata
    assert kept.metadata["has"].tolist() == [RxHas.HASH]


def test_a_packet_in_several_frames_has_it_too(wire, pair):
    packet = UDP.ljust(9014, b"\1")
    for netns, ifname in zip(pair, ("left", "right"), strict=True):
        with link.in_netns(netns):
            link.set_mtu(ifname, 9000)
    with XdpSocket("left", rx_metadata=True) as xsk:
        for _ in range(3):
            wire.send(packet)
        packets, metadata = read(xsk, 3)
        assert packets == [packet] * 3
        assert metadata["has"].tolist() == [RxHas.HASH] * 3
        wire.send(packet)
        assert xsk.read_with_metadata(timeout=5)[0] == packet


def test_without_it_there_is_none(wire):
    with XdpSocket("left") as xsk:
        wire.send(UDP)
        with xsk.read_batch(timeout=5) as batch:
            with pytest.raises(ConfigError, match="open its socket with rx_metadata=True"):
                _ = batch.metadata
        with pytest.raises(ConfigError, match="open this one alike"):
            XdpSocket("left", 1, rx_metadata=True)
    with pytest.raises(ConfigError, match="the batch has no metadata"):
        _ = Batch.of([UDP]).metadata


@pytest.mark.parametrize("mode", ["skb", "offload"])
def test_it_needs_a_native_program(wire, mode):
    with pytest.raises(ConfigError, match=f"rx_metadata needs mode native or auto, got {mode}"):
        XdpSocket("left", mode=mode, rx_metadata=True)
    assert link.find_link("left").xdp_mode == "none"


def test_a_driver_that_tells_nothing_is_named(wire, monkeypatch):
    subprocess.run(["ip", "link", "add", "br0", "type", "bridge"], check=True)
    said = "br0: driver bridge tells programs nothing about packets; leave rx_metadata out"
    with pytest.raises(UnsupportedError, match=said):
        XdpSocket("br0", rx_metadata=True)
    monkeypatch.setattr(link_programs, "xdp_features", lambda ifindex: None)
    with pytest.raises(UnsupportedError, match=r"needs Linux 6\.3 or newer; leave it out"):
        XdpSocket("left", rx_metadata=True)
    assert link.find_link("left").xdp_mode == "none"


def test_what_a_driver_does_not_tell_is_not_asked(wire, monkeypatch):
    def only_tags(ifindex):
        found = xdp_features(ifindex)
        return type(found)(
            **{name: getattr(found, name) for name in found.__dataclass_fields__}
            | {"rx_metadata": frozenset({"vlan-tag"})}
        )

    monkeypatch.setattr(link_programs, "xdp_features", only_tags)
    with XdpSocket("left", rx_metadata=True) as xsk:
        wire.send(UDP)
        assert read(xsk, 1)[1]["has"].tolist() == [0]


OWN_PROGRAM = """
#include "l2fwd.h"
#include <bpf/bpf_helpers.h>

struct {
    __uint(type, BPF_MAP_TYPE_XSKMAP);
    __type(key, __u32);
    __type(value, __u32);
    __uint(max_entries, 4);
} xsks_map SEC(".maps");

extern int bpf_xdp_metadata_rx_timestamp(const struct xdp_md *ctx, __u64 *timestamp) __ksym;

SEC("xdp.frags")
int own_program(struct xdp_md *ctx)
{
    struct rx_metadata *metadata;
    __u64 timestamp = 1;

    bpf_xdp_metadata_rx_timestamp(ctx, &timestamp);
    if (WRITES && !bpf_xdp_adjust_meta(ctx, -(int)sizeof(*metadata))) {
        metadata = (void *)(long)ctx->data_meta;
        if ((void *)(metadata + 1) <= (void *)(long)ctx->data) {
            metadata->timestamp_ns = 1234567890123456789ULL + timestamp; /* of a veth: 0 */
            metadata->has = RX_METADATA_MAGIC | RX_HAS_TIMESTAMP;
        }
    }
    return bpf_redirect_map(&xsks_map, ctx->rx_queue_index, XDP_PASS);
}

char LICENSE[] SEC("license") = "GPL";
"""


@pytest.mark.parametrize("writes", [0, 1])
def test_a_program_of_ones_own_may_write_it(wire, request, tmp_path, writes):
    (tmp_path / "own.c").write_text(OWN_PROGRAM)
    kern = request.config.rootpath / "kern"
    subprocess.run(
        ["clang", "-O2", "-g", "-target", "bpf", "-I/usr/include/x86_64-linux-gnu", f"-I{kern}",
         f"-DWRITES={writes}", "-c", "own.c", "-o", "own.o"],
        check=True, cwd=tmp_path,
    )  # fmt: skip
    with XdpSocket("left", program=str(tmp_path / "own.o"), rx_metadata=True) as xsk:
        wire.send(UDP)
        metadata = read(xsk, 1)[1]
    assert metadata["has"].tolist() == [RxHas.TIMESTAMP if writes else 0]
    assert metadata["timestamp_ns"].tolist() == [1234567890123456789 if writes else 0]
