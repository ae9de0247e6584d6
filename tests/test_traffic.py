"""Packets to be made: their bytes as scapy reads them, the settings they come from, the verdict."""

import argparse

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether

from l2fwd.cli.txonly import add_arguments, traffic_of
from l2fwd.errors import ConfigError
from l2fwd.traffic import NUMBERED, NUMBERED_MAGIC, PAYLOADS, Traffic
from l2fwd.verification import Seen, has_passed, judge, verdict_text

LOCAL = bytes.fromhex("020000000001")


def traffic(*words):
    """Turn command-line options into traffic, as the verb does."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return traffic_of(parser.parse_args(["f0", *map(str, words)]))


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("vlan_id", [None, 0, 4094])
def test_the_smallest_packet_is_its_headers(payload, family, vlan_id):
    settings = {
        "payload": payload,
        "vlan_id": vlan_id,
        "dst_ip": "::2" if family == 6 else "1.2.3.4",
    }
    least = Traffic(size=1514, **settings).header_bytes
    template = Traffic(size=least, **settings).template(LOCAL)
    assert len(template.data) == least
    assert template.payload_at == least - PAYLOADS[payload].size
    with pytest.raises(ConfigError, match=f"at least {least} bytes"):
        Traffic(size=least - 1, **settings)


def test_every_option_is_in_the_packet():
    words = ["-s", 300, "-V", "-J", 77, "-K", 5, "-G", "ff:ff:ff:ff:ff:ff", "-P", "0xCAFE0001"]
    words += ["-H", "02:00:00:00:00:09", "--src-ip", "10.1.2.3", "--dst-ip", "239.1.1.1"]
    packet = Ether(traffic(*words, "--dst-port", 9, "--sequence").template(LOCAL, 0xABCD).data)
    assert (packet.dst, packet.src) == ("ff:ff:ff:ff:ff:ff", "02:00:00:00:00:09")
    assert (packet[Dot1Q].vlan, packet[Dot1Q].prio) == (77, 5)
    assert (packet[IP].dst, packet[IP].ttl, packet[IP].len) == ("239.1.1.1", 64, 300 - 18)
    assert (packet[UDP].dport, packet[UDP].len) == (9, 300 - 38)
    payload = bytes(packet[UDP].payload)
    assert NUMBERED.unpack_from(payload) == (NUMBERED_MAGIC, 0xABCD, 0, 0)
    assert payload[22:32] == bytes.fromhex("cafe0001 cafe0001 cafe")
    assert len(payload) == 300 - 46


def test_what_is_not_said_has_a_default():
    packet = Ether(traffic().template(LOCAL).data)
    assert (packet.dst, packet.src, len(packet)) == ("02:00:00:00:00:02", "02:00:00:00:00:01", 64)
    assert Dot1Q not in packet
    assert bytes(packet[UDP].payload)[:4] == bytes.fromhex("12345678")
    assert Dot1Q in Ether(traffic("-V").template(LOCAL).data)
    assert Ether(traffic("-K", 3).template(LOCAL).data)[Dot1Q].vlan == 1
    assert Ether(traffic("--dst-ip", "2001:db8::1").template(LOCAL).data)[IPv6].hlim == 64


WRONG = [
    (["-s", 41], "tx-pkt-size must be at least 42"),
    (["-s", 63, "--sequence"], "tx-pkt-size must be at least 64"),
    (["-s", 83, "--sequence", "--src-ip", "::1"], "tx-pkt-size must be at least 84"),
    (["-s", -1], "tx-pkt-size"),
    (["-C", 0], "tx-pkt-count must be at least 1, got 0; leave it out"),
    (["-C", -5], "tx-pkt-count"),
    (["--rate", 0], "rate must be in"),
    (["--rate", -1], "rate must be in"),
    (["--rate", "nan"], "rate must be in"),
    (["--rate", "inf"], "rate must be in"),
    (["-T", 0], "tx-cycle must be in"),
    (["-P", "xyz"], "tx-pkt-pattern must be hex"),
    (["-P", ""], "tx-pkt-pattern must be hex"),
    (["-P", "123456789"], "tx-pkt-pattern must have 32 bits"),
    (["-P", "-1"], "tx-pkt-pattern must have 32 bits"),
    (["-J", 4095], "tx-vlan-id must be in [0, 4094], got 4095"),
    (["-J", 4096], "tx-vlan-id must be in [0, 4094], got 4096"),
    (["-J", -1], "tx-vlan-id"),
    (["-K", 8], "tx-vlan-pri must be in [0, 7]"),
    (["-G", "02:00:00"], "tx-dmac must be six hex bytes"),
    (["-H", "zz:00:00:00:00:01"], "tx-smac must be six hex bytes"),
    (["-H", "ff:ff:ff:ff:ff:ff"], "tx-smac must be a unicast address"),
    (["--src-ip", "10.0.0.256"], "src-ip must be an address"),
    (["--dst-ip", "host"], "dst-ip must be an address"),
    (["--src-ip", "10.0.0.1", "--dst-ip", "::1"], "two families"),
    (["--src-ip", "224.0.0.1"], "src-ip must be an address of one host"),
    (["--src-ip", "255.255.255.250", "--sources", 7], "sources must be in [1, 6]"),
    (["--src-ip", "2001:db8::ffff:fffe", "--sources", 3], "sources must be in [1, 2]"),
    (["--src-ip", "2001:db8::", "--sources", 1 << 32], "sources must be in [1, 4294967295]"),
    (["--src-ip", "fe80::1%eth0"], "src-ip must be an address like"),
    (["--sources", 0], "sources must be in"),
    (["--src-port", 65536], "src-port must be in"),
    (["--dst-port", -1], "dst-port must be in"),
    (["--src-port", 65000, "--ports", 537], "ports must be in [1, 536]"),
    (["--ports", 0], "ports must be in"),
    (["--stream", 65536], "stream must be in [0, 65535]"),
]


@pytest.mark.parametrize(("words", "said"), WRONG)
def test_a_setting_that_cannot_be_is_named_in_one_line(words, said):
    with pytest.raises(ConfigError) as error:
        traffic(*words)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"payload": "nothing"},
        {"rate": 1.0, "cycle_us": 1},
        {"dst_mac": b"12345"},
        {"src_mac": b""},
    ],
)
def test_what_the_command_line_cannot_ask_for_is_refused_as_well(settings):
    with pytest.raises(ConfigError):
        Traffic(**settings)


def test_a_packet_has_to_fit_the_frame_and_the_link():
    Traffic(size=1514).check_link("f0", 1500, 2048)
    Traffic(size=1518, vlan_id=1).check_link("f0", 1500, 2048)
    with pytest.raises(ConfigError, match=r"at most 1514 for the MTU of f0.*mtu 1501"):
        Traffic(size=1515).check_link("f0", 1500, 2048)
    with pytest.raises(ConfigError, match="at most frame-size 2048"):
        Traffic(size=2049).check_link("f0", 9000, 2048)


@pytest.mark.parametrize(("count", "workers"), [(1, 4), (10, 4), (12, 4), (7, 1), (10**12 + 1, 3)])
def test_the_shares_add_up_to_the_count(count, workers):
    shares = [Traffic(count=count).share(i, workers) for i in range(workers)]
    assert sum(shares) == count
    assert max(shares) - min(shares) <= 1
    assert Traffic().share(0, workers) is None


# The verdict


def test_a_stream_that_came_by_two_queues_is_one():
    even = Seen(streams={5: (0, 98, 50, 0, 0)}, foreign=2)
    odd = Seen(streams={5: (1, 99, 49, 3, 0), 6: (10, 11, 2, 0, 0)}, foreign=1)
    verdict = judge([even, odd])
    assert verdict == {
        "packets": 101, "foreign": 3, "lost": 1, "reordered": 3, "duplicated": 0, "corrupted": 0,
        "streams": 2, "missed": 10, "latency_us": None,
    }  # fmt: skip
    assert "verified 101 packets of 2 senders: lost 1, reordered 3" in verdict_text(verdict)
    assert "10 were sent before the first" in verdict_text(verdict)


def test_what_came_corrupted_is_not_lost_as_well():
    verdict = judge([Seen(streams={1: (0, 9, 7, 0, 0)}, corrupted=2)])
    assert (verdict["lost"], verdict["corrupted"]) == (1, 2)


@pytest.mark.parametrize(
    ("seen", "passed"),
    [
        ((0, 9, 10, 0, 0), True),
        ((5, 9, 5, 0, 0), True),
        ((0, 9, 9, 0, 0), False),
        ((0, 9, 10, 1, 0), False),
        ((0, 9, 10, 0, 1), False),
    ],
)
def test_one_fault_is_enough(seen, passed):
    assert has_passed(judge([Seen(streams={0: seen})])) == passed


def test_nothing_is_no_success():
    assert not has_passed(judge([]))
    assert not has_passed(judge([Seen(foreign=3)]))
