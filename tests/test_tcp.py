"""Real protocols through the forwarder: TCP, ping, and a flood that outlives 20 engines."""

import os
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from l2fwd import link
from l2fwd.bpf import describe_attached
from l2fwd.lab import GENERATOR_IP, GENERATOR_MAC, SINK_IP, SINK_MAC

pytestmark = pytest.mark.privileged

STREAM_BYTES = 20_000_000


def inside(netns, *command):
    return ["nsenter", f"--net=/run/netns/{netns}", *command]


@pytest.fixture
def connect(bed):
    """Connect the generator to the sink; return the socket of each."""
    opened = []

    def connect_them():
        with link.in_netns(bed.sink):
            listener = socket.create_server((SINK_IP, 0))
        opened.append(listener)
        with link.in_netns(bed.gen):
            opened.append(socket.create_connection(listener.getsockname(), timeout=10))
        opened.append(listener.accept()[0])
        return opened[1:]

    yield connect_them
    for each in opened:
        each.close()


def send_stream(end, data):
    end.sendall(data)
    end.shutdown(socket.SHUT_WR)


def receive_stream(end):
    """Return what came before the other end was done."""
    end.settimeout(10)
    return b"".join(iter(lambda: end.recv(1 << 18), b""))


def checksum_errors(netns):
    """Count TCP segments that arrived changed; TCP itself hides them by sending again."""
    with link.in_netns(netns):
        names, values = (
            line.split()
            for line in Path("/proc/thread-self/net/snmp").read_text().splitlines()
            if line.startswith("Tcp:")
        )
    return int(values[names.index("InCsumErrors")])


@pytest.mark.parametrize("direction", ["there", "back"])
@pytest.mark.parametrize("mode", ["native", "skb"])
def test_tcp_gets_every_byte_through(bed, forward, connect, mode, direction):
    """F11"""
    forwarder = forward(bed, "--mode", mode)
    near, far = connect() if direction == "there" else reversed(connect())
    data = os.urandom(STREAM_BYTES)
    sender = threading.Thread(target=send_stream, args=(near, data))
    sender.start()
    received = receive_stream(far)
    sender.join(10)
    assert len(received) == STREAM_BYTES
    is_unchanged = received == data  # not in an assert: 20 MB would be printed
    assert is_unchanged
    assert checksum_errors(bed.gen) == checksum_errors(bed.sink) == 0
    summary = forwarder.stop()
    assert summary["unaccounted"] == 0
    assert summary["rx_bytes"] > STREAM_BYTES


def require_ping():
    if shutil.which("ping") is None:
        pytest.skip("ping is not installed")


@pytest.mark.parametrize("mode", ["native", "skb"])
def test_a_flood_of_pings_loses_none(bed, forward, mode):
    require_ping()
    forwarder = forward(bed, "--mode", mode)
    command = inside(bed.gen, "ping", "-q", "-f", "-c", "10000", SINK_IP)
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert "10000 packets transmitted, 10000 received, 0% packet loss" in done.stdout
    summary = forwarder.stop()
    assert summary["forwarded"] >= 20_000
    assert summary["drops"] == {}
    assert summary["unaccounted"] == 0


@pytest.fixture
def flood(bed):
    """Pings from the generator, 64 under way, that go on whether answered or not."""
    require_ping()
    for netns, ifname, address, mac in (
        (bed.gen, "g0", SINK_IP, SINK_MAC),
        (bed.sink, "s0", GENERATOR_IP, GENERATOR_MAC),
    ):  # or an unanswered ARP request would silence it for a second
        entry = (address, "lladdr", mac, "dev", ifname, "nud", "permanent")
        subprocess.run(["ip", "-n", netns, "neigh", "replace", *entry], check=True, timeout=10)
    ping = subprocess.Popen(
        inside(bed.gen, "ping", "-q", "-f", "-l", "64", SINK_IP), stdout=subprocess.DEVNULL
    )
    yield ping
    ping.kill()
    ping.wait(5)


def test_twenty_kills_under_load_leave_no_program(bed, forward, flood):
    """S5, X8"""

    def attached(ifname):
        with link.in_netns(bed.fwd):
            return describe_attached(link.find_link(ifname).ifindex).program_id

    for _ in range(20):
        forwarder = forward(bed, "--interval", "0.05")
        while forwarder.wait_for("stats", 2)["forwarded"] < 500:
            pass
        forwarder.kill()
        time.sleep(0.1)
        assert [attached("f0"), attached("f1")] == [0, 0]
    assert flood.poll() is None
    last = forward(bed, "--interval", "0.05")
    while last.wait_for("stats", 2)["forwarded"] < 500:
        pass
    summary = last.stop()
    assert summary["unaccounted"] == 0
