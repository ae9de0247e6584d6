"""``sample``: every n-th packet reaches the host, the others the socket, to the packet."""

import json
import re
import socket
import struct
import subprocess
import sys

import pytest

from l2fwd import link
from l2fwd._bpf import run_packet
from l2fwd.datapath.sample import read_counters, sample_program
from l2fwd.tool_config import SampleConfig

ETHERTYPE = 0x88B5
XDP_PASS = 2


@pytest.fixture
def host():
    """Open the host's side of f0: what its stack gets."""
    ends = []

    def open_it(bed):
        with link.in_netns(bed.fwd):
            end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE))
            end.bind(("f0", ETHERTYPE))
        end.settimeout(0.5)
        ends.append(end)
        return end

    yield open_it
    for end in ends:
        end.close()


def numbers(end):
    """Receive until nothing comes; return the numbers of the frames."""
    found = []
    while True:
        try:
            found.append(struct.unpack_from(">I", end.recv(2048), 14)[0])
        except TimeoutError:
            return found


@pytest.mark.privileged
@pytest.mark.parametrize("mode", ["native", "skb"])
@pytest.mark.parametrize("every", [1, 2, 5])
def test_exactly_every_nth_packet_passes(bed, forward, open_wire, host, mode, every):
    end = host(bed)
    sample = forward(bed, "--every", every, "--mode", mode, verb="sample", links=("f0",))
    open_wire(bed).send(20 * every)
    assert numbers(end) == list(range(every - 1, 20 * every, every))
    summary = sample.stop()
    (port,) = summary["ports"]
    assert (port["passed_packets"], port["redirected_packets"]) == (20, 20 * (every - 1))
    assert summary["consumed"] == summary["rx_packets"] == 20 * (every - 1)
    assert summary["unaccounted"] == 0
    assert summary["drops"] == {}


@pytest.mark.privileged
def test_the_default_is_every_other_one(bed, forward, open_wire, host):
    end = host(bed)
    sample = forward(bed, verb="sample", links=("f0",))
    open_wire(bed).send(10)
    assert numbers(end) == [1, 3, 5, 7, 9]
    sample.stop()


@pytest.mark.privileged
def test_a_queue_without_a_socket_passes_all(bed):
    with link.in_netns(bed.fwd):
        found = link.find_link("f0")
        program = sample_program(SampleConfig(link_names=("f0",), every=3), found)
        try:
            verdicts = {run_packet(program.fd, bytes(60), found.ifindex)[0] for _ in range(9)}
            counts = read_counters(program, 0)
        finally:
            program.close()
    assert verdicts == {XDP_PASS}
    assert counts == {"passed_packets": 9, "redirected_packets": 0}


@pytest.mark.privileged
def test_the_table_shows_the_split_by_queue(make_bed, open_wire):
    bed = make_bed(queues=2)
    command = ["nsenter", f"--net=/run/netns/{bed.fwd}", sys.executable, "-m", "l2fwd"]
    running = subprocess.Popen(
        [*command, "sample", "f0", "-n", "0.2", "--duration", "1.5"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    lines = [running.stdout.readline(), running.stdout.readline()]
    open_wire(bed).send(10)
    out = "".join(lines) + running.communicate(timeout=20)[0]
    assert running.returncode == 0
    summary = [line for line in out.splitlines() if re.match("f0 queue .: passed", line)]
    split = [[int(number) for number in re.findall(r" (\d+)", line)] for line in summary]
    assert [queue for queue, _, _ in split] == [0, 1]
    assert all(passed == (passed + sent) // 2 for _, passed, sent in split)
    assert sum(passed + sent for _, passed, sent in split) == 10
    assert "  f0 queue 1: passed" in out


@pytest.mark.privileged
def test_without_a_program_of_its_own_a_user_is_told(bed):
    done = run(bed, "sample", "f0", "--program", "nosuch.o")
    assert done.returncode == 2
    assert done.stderr == "l2fwd sample: program nosuch.o: no such file\n"


@pytest.mark.privileged
@pytest.mark.parametrize(("options", "code"), [([], 1), (["--force"], 0)])
def test_another_program_is_replaced_by_force_only(bed, put_foreign_program, options, code):
    put_foreign_program(bed, "f0")
    done = run(bed, "sample", "f0", "--duration", "0.2", "--json", *options)
    assert done.returncode == code, done.stderr
    if code:
        assert "foreign" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    else:
        events = [json.loads(line) for line in done.stdout.splitlines()]
        assert [e["event"] for e in events] == ["ready", "warning", "summary"]
        assert "removed XDP program foreign" in events[1]["message"]
    with link.in_netns(bed.fwd):
        assert link.find_link("f0").xdp_mode == ("native" if code else "none")


@pytest.mark.privileged
def test_force_leaves_a_running_engine_of_ours_alone(bed, forward):
    sample = forward(bed, verb="sample", links=("f0",))
    done = run(bed, "sample", "f0", "--force", "--duration", "0")
    assert done.returncode == 1
    assert "stop that engine first" in done.stderr
    sample.stop()


def run(bed, *words):
    enter = ["nsenter", f"--net=/run/netns/{bed.fwd}"] if bed else []
    return subprocess.run(
        [*enter, sys.executable, "-m", "l2fwd", *words],
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip


@pytest.mark.privileged
@pytest.mark.parametrize(
    "words",
    [["sample"], ["echo", "--address", "192.0.2.1"], ["echo", "--in-kernel", "--any-address"]],
    ids=" ".join,
)
def test_offload_is_tried_and_refused_in_plain_words(bed, words):
    done = run(bed, *words, "f0", "--mode", "offload")
    assert done.returncode == 4
    assert len(done.stderr.splitlines()) == 1
    assert "offload to f0: driver veth does not run this program" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "link is missing"),
        (["f0", "--every", "0"], "every must be in"),
        (["f0", "--every", "-1"], "every must be in"),
        (["f0", "--every", str(1 << 32)], "every must be in"),
        (["f0", "--every", "two"], "--every"),
        (["f0", "--every", "2", "--program", "x.o"], "--program brings its own"),
        (["f0", "-S", "-N"], "not allowed"),
        (["f0", "f0"], "named twice"),
    ],
)
def test_a_wrong_argument_is_named(words, said):
    done = run(None, "sample", *words)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr
