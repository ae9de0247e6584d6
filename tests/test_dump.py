"""``dump``: what a socket received, on the screen and in files that other readers understand."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.utils import RawPcapNgReader, RawPcapReader

from l2fwd import link
from l2fwd.dissect import hex_lines, line_of, words_of
from l2fwd.errors import ConfigError
from l2fwd.pcap import CaptureWriter, read_capture
from tests.conftest import ETHERTYPE, READY_SECONDS, Forwarder
from tests.test_bad_input import assert_one_line, run

HEAD = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")


# The line of a packet


@pytest.mark.parametrize(
    ("packet", "said"),
    [
        (HEAD / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=1, dport=53),
         "ip, 10.0.0.1:1 > 10.0.0.2:53, udp, length 42"),
        (HEAD / Dot1Q(vlan=7) / IPv6(src="fd00::1", dst="fd00::2") / TCP(sport=80, dport=9),
         "vlan 7, ip6, [fd00::1]:80 > [fd00::2]:9, tcp, length 78"),
        (HEAD / IP(src="10.0.0.1", dst="10.0.0.2", proto=1), "10.0.0.1 > 10.0.0.2, icmp,"),
        (Ether(bytes(HEAD)[:12] + b"\x88\xb5" + bytes(46)), "0x88b5, length 60"),
    ],
)  # fmt: skip
def test_a_line_tells_what_a_packet_shows(packet, said):
    line = line_of(bytes(packet), 1_500_000_000_000_000_007, 3)
    assert re.match(r"\d\d:\d\d:\d\d\.000000007 queue 3  ", line)
    assert "02:00:00:00:00:01 > 02:00:00:00:00:02, " in line
    assert said in line


def test_what_is_no_packet_has_no_words():
    assert words_of(b"short") == {}
    assert line_of(b"short", 0, 0).endswith("queue 0, length 5")
    assert hex_lines(b"") == []
    assert [line.split()[0] for line in hex_lines(bytes(33))] == ["0x0000", "0x0010", "0x0020"]


# Files

PACKETS = [bytes([i]) * length for i, length in enumerate((14, 60, 61, 62, 63, 1514))]
TIMES = [0, 1, 999_999_999, 1_000_000_000, 1_700_000_000_123_456_789, (1 << 32) * 10**9 - 1]


def write_file(path, kind, **settings):
    with open(path, "wb") as file:
        writer = CaptureWriter(file, kind, link="eth0", **settings)
        for queue, (packet, time_ns) in enumerate(zip(PACKETS, TIMES, strict=True)):
            writer.write(packet, time_ns, queue)


def read_file(path, kind, ifname="eth0"):
    """Return (bytes, time in ns, bytes on the wire) of each packet, as scapy reads them."""
    reader = RawPcapReader(str(path)) if kind == "pcap" else RawPcapNgReader(str(path))
    with reader:
        if kind == "pcap":
            assert reader.nano
            return [(data, about.sec * 10**9 + about.usec, about.wirelen) for data, about in reader]
        found = list(reader)
    assert {(about.tsresol, about.ifname) for _, about in found} <= {(10**9, ifname.encode())}
    return [(data, (about.tshigh << 32) + about.tslow, about.wirelen) for data, about in found]


@pytest.mark.parametrize("kind", ["pcap", "pcapng"])
@pytest.mark.parametrize("snaplen", [0, 20])
def test_another_reader_finds_bytes_times_and_lengths(tmp_path, kind, snaplen):
    path = tmp_path / "file"
    write_file(path, kind, snaplen=snaplen)
    wanted = [
        (packet[: snaplen or None], time_ns, len(packet))
        for packet, time_ns in zip(PACKETS, TIMES, strict=True)
    ]
    assert read_file(path, kind) == wanted
    assert list(read_capture(str(path))) == [(data, on_wire) for data, _, on_wire in wanted]


@pytest.mark.parametrize("kind", ["pcap", "pcapng"])
def test_tcpdump_reads_what_is_written(tmp_path, kind):
    path = tmp_path / "file"
    write_file(path, kind)
    try:
        done = subprocess.run(
            ["tcpdump", "-tt", "--nano", "-nr", path], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("tcpdump is not installed")
    lines = re.findall(r"^\S.*", done.stdout, re.MULTILINE)
    assert done.returncode == 0, done.stderr
    assert len(lines) == len(PACKETS)
    assert lines[4].startswith("1700000000.123456789 ")


def test_a_format_that_is_none_is_named(tmp_path):
    with open(tmp_path / "file", "wb") as file:
        with pytest.raises(ConfigError, match="format must be one of pcap, pcapng, got 'snoop'"):
            CaptureWriter(file, "snoop")
        with pytest.raises(ConfigError, match="snaplen"):
            CaptureWriter(file, snaplen=-1)


# The verb


class Dump(Forwarder):
    """``python -m l2fwd dump f0`` in a bed's middle namespace."""

    def __init__(self, bed, *arguments):
        super().__init__(bed.fwd, "f0", *arguments, verb="dump")


@pytest.fixture
def dump(bed):
    """Start dumps on f0 and wait until they are ready; none outlives the test."""
    running = []

    def start(*arguments):
        running.append(Dump(bed, "--json", *arguments))
        running[-1].wait_for("ready")
        return running[-1]

    yield start
    for each in running:
        if each.process.poll() is None:
            each.kill()


@pytest.fixture
def wire(bed, open_wire):
    return open_wire(bed)


def summary_of(done):
    summary = done.wait_for("summary")
    assert done.wait() == 0, done.stderr
    return summary


@pytest.mark.privileged
@pytest.mark.parametrize("mode", ["native", "skb"])
@pytest.mark.parametrize("kind", ["pcap", "pcapng"])
def test_a_file_holds_what_arrived_in_order_with_its_times(dump, wire, tmp_path, mode, kind):
    path = tmp_path / f"out.{kind}"
    dumper = dump("-w", path, "-m", mode)
    assert dumper.events[0]["attach_mode"] == mode
    before = time.time_ns()
    sent = wire.send(500, length=90)
    time.sleep(0.3)
    summary = dumper.stop()
    found = read_file(path, kind, "f0")
    assert [(data, on_wire) for data, _, on_wire in found] == [(packet, 90) for packet in sent]
    times = [time_ns for _, time_ns, _ in found]
    assert times == sorted(times)
    assert before <= times[0] <= times[-1] <= time.time_ns()
    assert any(each % 1000 for each in times), "in ns"
    assert (summary["packets"], summary["bytes"], summary["drops"]) == (500, 500 * 90, {})


@pytest.mark.privileged
def test_the_queues_are_all_read_and_are_in_the_file(make_bed, open_wire, tmp_path):
    bed = make_bed(queues=2)
    wire = open_wire(bed)
    dumper = Dump(bed, "--json", "-w", tmp_path / "out")
    assert dumper.wait_for("ready")["queues"] == [0, 1]
    sent = [bytes(HEAD / IP(src=f"10.0.0.{i}") / UDP(sport=i)) for i in range(1, 65)]
    for packet in sent:
        wire.gen.sendto(packet, ("g0", 0x0800))  # an IP flow to the kernel, too
    time.sleep(0.3)
    assert dumper.stop()["packets"] == 64
    assert sorted(data for data, _, _ in read_file(tmp_path / "out", "pcapng", "f0")) == sorted(
        sent
    )
    queues = set(re.findall(rb"\x06\0\x04\0([\0\x01])\0\0\0", (tmp_path / "out").read_bytes()))
    assert queues == {b"\0", b"\1"}
    dumper = Dump(bed, "--json", "-q", "1")
    assert dumper.wait_for("ready")["queues"] == [1]
    dumper.stop()


@pytest.mark.privileged
def test_each_packet_is_an_object_with_its_words_and_bytes(dump, wire):
    dumper = dump("-x", "-s", "20")
    (sent,) = wire.send(1, length=90)
    packet = dumper.wait_for("packet")
    assert packet["hex"] == sent[:20].hex()
    assert (packet["length"], packet["queue"]) == (90, 0)
    assert (packet["ethertype"], packet["dst_mac"]) == ("0x88b5", "02:00:00:00:00:02")
    assert abs(packet["time_ns"] - time.time_ns()) < 60e9
    assert dumper.stop()["packets"] == 1


@pytest.mark.privileged
def test_it_ends_after_so_many_packets_or_seconds(dump, wire):
    dumper = dump("-c", "70", "--quiet")
    wire.send(100)
    summary = summary_of(dumper)
    assert summary["packets"] == 70
    assert summary["unread"] <= 30
    assert [each["event"] for each in dumper.events] == ["ready", "summary"]
    assert summary_of(dump("-d", "0.2"))["packets"] == 0


@pytest.mark.privileged
def test_what_arrived_before_a_stop_is_written(bed, dump, wire, tmp_path):
    dumper = dump("-w", tmp_path / "out")
    os.kill(dumper.pid, signal.SIGSTOP)
    sent = wire.send(300)
    os.kill(dumper.pid, signal.SIGTERM)
    os.kill(dumper.pid, signal.SIGCONT)
    summary = summary_of(dumper)
    assert (summary["packets"], summary["unread"]) == (300, 0)
    assert [data for data, _, _ in read_file(tmp_path / "out", "pcapng", "f0")] == sent
    with link.in_netns(bed.fwd):
        assert link.find_link("f0").xdp_mode == "none"


@pytest.mark.privileged
@pytest.mark.parametrize(("option", "is_promiscuous"), [((), True), (("--no-promiscuous",), False)])
def test_a_link_is_promiscuous_meanwhile_unless_told(pair, option, is_promiscuous):
    command = [sys.executable, "-m", "l2fwd", "dump", "left", "--json", *option]
    with subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{pair[0]}", *command], stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        with link.in_netns(pair[0]):
            assert link.find_link("left").is_promiscuous == is_promiscuous
            process.terminate()
            process.communicate(timeout=10)
            assert not link.find_link("left").is_promiscuous


@pytest.mark.privileged
def test_what_is_lost_has_a_reason(dump, wire):
    dumper = dump("--ring-size", "64", "--quiet")
    os.kill(dumper.pid, signal.SIGSTOP)
    wire.send(200)
    os.kill(dumper.pid, signal.SIGCONT)
    time.sleep(0.3)
    summary = dumper.stop()
    assert summary["packets"] + sum(summary["drops"].values()) == 200
    assert summary["drops"]


@pytest.mark.privileged
def test_a_link_that_goes_is_named_and_the_packets_are_kept(bed, dump, wire, tmp_path):
    dumper = dump("-w", tmp_path / "out")
    wire.send(5)
    time.sleep(0.3)
    with link.in_netns(bed.fwd):
        link.delete_link("f0")
    assert dumper.wait_for("summary")["packets"] == 5
    assert dumper.wait() == 1
    assert_one_line_text(dumper.stderr, "f0: the link is gone")
    assert len(read_file(tmp_path / "out", "pcapng", "f0")) == 5


def assert_one_line_text(text, said):
    assert said in text
    assert text.count("\n") == 1, text


def can_ping(bed):
    done = subprocess.run(
        ["ip", "netns", "exec", bed.gen, "ping", "-c", "2", "-i", "0.2", "-W", "1", "10.77.0.50"],
        stdout=subprocess.DEVNULL,
        check=False,
    )
    return done.returncode == 0


@pytest.mark.privileged
def test_the_host_loses_the_packets_unless_they_are_given_back(bed, dump):
    with link.in_netns(bed.fwd):
        link.add_address("f0", "10.77.0.50/24")
    assert can_ping(bed)
    dumper = dump("--quiet")
    assert not can_ping(bed)
    assert dumper.stop()["given_back"] == 0
    dumper = dump("--quiet", "--give-back")
    assert can_ping(bed)
    summary = dumper.stop()
    assert summary["given_back"] == summary["packets"] >= 2
    assert can_ping(bed)


@pytest.mark.privileged
def test_what_is_given_back_comes_whole_and_in_order(bed, dump, wire):
    with link.in_netns(bed.fwd):
        listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE))
        listener.bind(("f0", ETHERTYPE))
    with listener:
        listener.settimeout(5)
        listener.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
        dumper = dump("--quiet", "--give-back")
        sent = wire.send(300, length=1514)
        assert [listener.recv(2000) for _ in range(300)] == sent
        assert dumper.stop()["given_back"] == 300


def start_in(bed, *arguments, **settings):
    command = [sys.executable, "-m", "l2fwd", "dump", "f0", *map(str, arguments)]
    return subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{bed.fwd}", *command], stderr=subprocess.PIPE, **settings
    )


@pytest.mark.privileged
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_lines_are_for_people_and_ctrl_c_ends_with_a_summary(bed, wire, number):
    process = start_in(bed, stdout=subprocess.PIPE, text=True)
    with process:
        ready = process.stderr.readline()
        assert ready.startswith("f0 queue 0: native XDP, copy; ")
        assert "taken away from the host" in ready
        wire.send(2)
        lines = [process.stdout.readline() for _ in range(2)]
        process.send_signal(number)
        rest, said = process.communicate(timeout=10)
    assert all("0x88b5, length 60" in line for line in lines)
    assert (rest, process.returncode) == ("", 0)
    assert said == "2 packets, 120 bytes; unread 0; drops: -\n"


@pytest.mark.privileged
def test_standard_output_may_be_the_file(bed, wire, tmp_path):
    path = tmp_path / "out"
    with path.open("wb") as file, start_in(bed, "-w", "-", "-c", "3", stdout=file) as process:
        process.stderr.readline()
        sent = wire.send(3)
        process.communicate(timeout=READY_SECONDS)
    assert process.returncode == 0
    assert [data for data, _, _ in read_file(path, "pcapng", "f0")] == sent


@pytest.mark.privileged
@pytest.mark.parametrize("arguments", [(), ("--json",), ("-w", "-")])
def test_a_reader_that_leaves_ends_it(bed, wire, arguments):
    with start_in(bed, *arguments, stdout=subprocess.PIPE) as process:
        if "--json" in arguments:
            process.stdout.readline()
        else:
            process.stderr.readline()
        process.stdout.close()
        deadline = time.monotonic() + 10
        while process.poll() is None and time.monotonic() < deadline:
            wire.send(1)
            time.sleep(0.05)
        said = process.stderr.read()
        assert process.returncode == 0, said
    assert b"Traceback" not in said
    assert b"Exception" not in said


# Bad input


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "required"),
        (["f0", "-c", "-1"], "count must be 0"),
        (["f0", "-c", "some"], "count"),
        (["f0", "-d", "nan"], "duration must be"),
        (["f0", "-s", "-1"], "snaplen must be"),
        (["f0", "-s", "262145"], "snaplen must be"),
        (["f0", "--format", "pcap"], "name it with --write"),
        (["f0", "-w", "x", "--format", "snoop"], "one of pcap, pcapng, got 'snoop'"),
        (["f0", "-w", "x", "-x"], "hex is for packets that are printed"),
        (["nosuch0"], "nosuch0"),
        (["a/b"], "'/'"),
    ],
)
def test_a_wrong_argument_is_named(words, said):
    assert_one_line(run("dump", *words), 2, said)


@pytest.mark.privileged
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["-w", "/nonexistent/file"], 2, "write /nonexistent/file: No such file"),
        (["-w", "/"], 2, "write /: Is a directory"),
        (["-m", "fast"], 2, "mode must be one of auto"),
        (["--bind", "zc"], 2, "bind must be one of auto"),
        (["--bind", "zero-copy"], 4, "EOPNOTSUPP"),
        (["-q", "1"], 2, "queue must be in [0, 1)"),
        (["-q", "0,0"], 2, "twice"),
        (["--ring-size", "100"], 2, "ring-size must be a power of two"),
        (["-f", "1000"], 2, "frame-size must be 2048 or 4096"),
        (["-m", "offload"], 4, "f0"),
        (["-m", "skb", "--give-back"], 4, "needs native XDP, this is skb"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_stays(bed, words, code, said):
    assert_one_line(run("dump", "f0", *words, netns=bed.fwd), code, said)
    with link.in_netns(bed.fwd):
        assert link.find_link("f0").xdp_mode == "none"


@pytest.mark.privileged
def test_a_file_is_not_emptied_by_a_dump_that_does_not_start(bed, tmp_path):
    path = tmp_path / "old"
    path.write_bytes(b"old")
    assert_one_line(run("dump", "f0", "-q", "7", "-w", path, netns=bed.fwd), 2, "queue")
    assert path.read_bytes() == b"old"


@pytest.mark.privileged
def test_a_full_disk_ends_it_with_one_line(bed, wire):
    with start_in(bed, "-w", "/dev/full", text=True) as process:
        _, said = process.communicate(timeout=10)
    assert process.returncode == 1
    assert said == "l2fwd dump: write /dev/full: No space left on device\n"


def test_the_help_says_that_the_host_loses_them():
    assert "TAKES THEM AWAY FROM THE HOST" in " ".join(run("dump", "--help").stdout.split())
