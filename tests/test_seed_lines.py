"""The command lines of fast_l2fwd, af_xdp_user and xdpsock, as their users type them."""

import re
import shutil
import signal
import subprocess
import sys
import sysconfig

import pytest

from l2fwd import link
from l2fwd.cli.seed import translate
from l2fwd.errors import ConfigError

TUTORIAL = ["f0", "--answer", "--queues"]
PROGRAM = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 64);
} xsks_map SEC(".maps");

SEC("xdp")
int pass_all(struct xdp_md *ctx)
{
	(void)ctx;
	return XDP_PASS;
}

SEC("xdp")
int take_all(struct xdp_md *ctx)
{
	return bpf_redirect_map(&xsks_map, ctx->rx_queue_index, XDP_PASS);
}

char LICENSE[] SEC("license") = "GPL";
"""


@pytest.mark.parametrize(
    ("line", "verb", "ours"),
    [
        ("-inlink=a -outlink=b", "forward", "a b --data-path hybrid --rule"),
        ("-d f0", "sample", "f0 --answer --queues 0 --every 2"),
        ("-d f0 -S", "sample", "f0 --answer --queues 0 --mode skb --every 2"),
        ("-S -d f0", "sample", "f0 --answer --queues 0 --mode skb --every 2"),
        ("-Sczd f0 --dev f0", "sample", "--bind copy --bind zero-copy"),
        ("--dev=f0 --native-mode", "sample", "f0 --answer --queues 0 --mode native --every 2"),
        ("--dev f0 -A -F", "sample", "f0 --answer --queues 0 --mode auto --force --every 2"),
        ("-d f0 -Q 3 -p -q", "sample", "f0 --answer --queues 3 --poll --quiet --every 2"),
        ("-d f0 --queue 1 -c", "sample", "f0 --answer --queues 1 --bind copy --every 2"),
        ("-l -i br1 -q 0 -n 5 -S", "macswap", "-i br1 -q 0 -n 5 -S"),
        ("-f -i br1 -q 0 -n 5 -S", "l3fwd", "-i br1 -q 0 -n 5 -S"),
        ("-r -i br1 -q 0 -n 5 -S", "rxdrop", "-i br1 -q 0 -n 5 -S"),
        ("-t -i br1 -q 0 -s 64 -C 10", "txonly", "-i br1 -q 0 -s 64 -C 10"),
        ("-i br1 -q 2", "rxdrop", "-i br1 -q 2"),
        ("-i br1", "rxdrop", "-i br1 -q 0"),
        ("--interface=br1 --l2fwd --queue=1", "macswap", "--interface=br1 --queue=1"),
        ("-i br1 -l -q0 -f 2048 -d 3", "macswap", "-i br1 -q0 -f 2048 -d 3"),
        ("-l -B -i br1 -q 0", "macswap", "-B -i br1 -q 0"),
        ("-Sd f0", "sample", "f0 --answer --queues 0 --mode skb --every 2"),
        ("-lSp -i br1 -q 0", "macswap", "-S -p -i br1 -q 0"),
        ("-Slq0 -ibr1", "macswap", "-S -q0 -ibr1"),
        ("-rpcxai br1 -d 1", "rxdrop", "-p -c -x -a -i br1 -d 1 -q 0"),
        ("-tmf 4096 -i br1 -q 0", "txonly", "-m -f 4096 -i br1 -q 0"),
        ("-rFu -f 3000 -i br1 -q 0", "rxdrop", "-F -u -f 3000 -i br1 -q 0"),
        ("-Sf -i br1 -q 0", "l3fwd", "-S -i br1 -q 0"),
        ("--l3fwd -i br1 -f 4096 -q 0", "l3fwd", "-i br1 -f 4096 -q 0"),
    ],
)
def test_a_line_is_told_from_the_others_and_becomes_ours(line, verb, ours):
    found = translate(line.split())
    assert found.verb == verb
    assert ours in " ".join(found.arguments)


@pytest.mark.parametrize("line", ["-z", "-d 5", "--json"])
def test_a_line_without_verb_and_link_is_told_both(line):
    done = subprocess.run(
        [sys.executable, "-m", "l2fwd", *line.split()],
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == (
        "l2fwd: no verb, and no -i LINK as xdpsock's lines have; see l2fwd --help\n"
    )


def test_f_without_a_number_is_said_to_be_l3fwd():
    (note,) = translate(["-f", "-i", "br1"]).notes
    assert "-f" in note
    assert "l3fwd" in note
    assert "frame size" in note
    assert translate(["-f", "2048", "-i", "br1"]).notes == ()


@pytest.mark.parametrize("line", ["", "--version", "-h", "fowrard", "f0 -d f0", "--json", "-d 5"])
def test_what_is_nobodys_line_is_left_alone(line):
    assert translate(line.split()) is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("-d f0 --nosuch", "nosuch"),
        ("-d f0 f1", "f1"),
        ("-d f0 -Q", "-Q"),
        ("-d f0 --progname x", "--filename"),
        ("-d f0 --filename nosuch.o", "nosuch.o: no such file"),
        ("--dev= -S", "needs a value"),
        ("-l -r -i br1", "macswap and rxdrop"),
        ("-f -l -i br1", "l3fwd and macswap"),
        ("-i br1 -I eth0", "-I of xdpsock"),
        ("-i br1 -WFIFO", "chrt"),
        ("-i br1 -U 50", "chrt"),
        ("-i br1 -w MONOTONIC", "clock"),
        ("-i br1 -R", "setpriv"),
        ("-i br1 -O 3", "-O"),
        ("-i br1 -M", "UMEM"),
    ],
)
def test_what_we_have_not_is_named_with_what_to_do(line, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        translate(line.split())
    done = subprocess.run(
        [sys.executable, "-m", "l2fwd", *line.split()],
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_the_object_of_the_tutorial_is_replaced_aloud_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = ["-d", "f0", "--filename", "af_xdp_kern.o"]
    found = translate(line)
    assert found.arguments == [*TUTORIAL, "0", "--every", "2"]
    assert "af_xdp_kern.o" in found.notes[0]
    assert "built-in" in found.notes[0]
    (tmp_path / "af_xdp_kern.o").write_bytes(b"")
    assert translate(line).arguments == [*TUTORIAL, "0", "--program", "af_xdp_kern.o"]
    found = translate([*line, "--progname", "mine"])
    assert found.arguments[-1] == "af_xdp_kern.o:mine"
    assert found.notes == ()


# Run


def enter(netns, *command):
    return subprocess.run(
        ["nsenter", f"--net=/run/netns/{netns}", *command],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


@pytest.fixture
def running(tmp_path):
    """Start a line in a bed's middle namespace; what it printed is returned by its end."""
    started = []

    def start(bed, line, *, folder=tmp_path):
        command = [sys.executable, "-m", "l2fwd", *line.split()]
        process = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{bed.fwd}", *command],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder,
        )  # fmt: skip
        started.append(process)
        first = process.stdout.readline()
        assert first.startswith("f0 queue 0: "), first + process.stderr.read()
        return process, first

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def end(process):
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 0, err
    return out, err


def ping_static(bed, count=10):
    """Ping an address that nobody has, by a neighbour that is known; return the answers."""
    with link.in_netns(bed.fwd):
        mac = link.find_link("f0").address
    command = f"ip neigh replace 10.77.0.9 lladdr {mac} dev g0 nud permanent"
    assert enter(bed.gen, *command.split()).returncode == 0
    done = enter(bed.gen, *f"ping -n -c {count} -i 0.02 -W 1 10.77.0.9".split())
    return int(re.search(r"(\d+) received", done.stdout)[1])


@pytest.mark.privileged
@pytest.mark.parametrize(("letter", "mode"), [("-S", "skb"), ("-N", "native"), ("-A", "native")])
def test_the_line_of_seed_001_answers_every_other_ping(bed, running, letter, mode):
    process, first = running(bed, f"-d f0 {letter} --filename af_xdp_kern.o")
    assert f"{mode} XDP" in first
    assert ping_static(bed) == 5  # the others are for the host, which has no such address
    out, err = end(process)
    assert "af_xdp_kern.o is not here" in err
    assert "answered: echo4 5, echo6 0, arp 0, nd 0" in out
    assert "f0 queue 0: passed 5 to the host, redirected 5 to the socket" in out
    assert "unaccounted 0" in out


@pytest.fixture
def object_file(tmp_path):
    """Build a program of a user's own."""
    clang = shutil.which("clang")
    if clang is None:
        pytest.skip("clang is not installed")
    (tmp_path / "mine.c").write_text(PROGRAM)
    include = f"-I/usr/include/{sysconfig.get_config_var('MULTIARCH')}"
    command = [clang, "-O2", "-g", "-target", "bpf", include, "-c", "mine.c"]
    subprocess.run([*command, "-o", "af_xdp_kern.o"], check=True, cwd=tmp_path)
    return "af_xdp_kern.o"


@pytest.mark.privileged
@pytest.mark.parametrize(("name", "answered"), [("take_all", 10), ("pass_all", 0)])
def test_a_program_of_the_users_own_decides(bed, running, object_file, name, answered):
    process, _ = running(bed, f"-d f0 --filename {object_file} --progname {name}")
    assert ping_static(bed) == answered
    out, err = end(process)
    assert err == ""
    assert f"answered: echo4 {answered}," in out


@pytest.mark.privileged
def test_force_replaces_what_is_there(bed, running, put_foreign_program):
    put_foreign_program(bed, "f0")
    refused = enter(bed.fwd, sys.executable, "-m", "l2fwd", "-d", "f0")
    assert refused.returncode == 1
    assert "foreign" in refused.stderr
    process, _ = running(bed, "-d f0 --force -c")
    assert ping_static(bed) == 5
    assert "removed XDP program foreign" in end(process)[1]


@pytest.mark.privileged
@pytest.mark.parametrize(
    ("line", "said"),
    [("-l -i f0 -q 0 -n 5 -S", "received 10, sent 10"), ("-r -i f0 -q 0 -n 5 -S", "sent 0")],
)
def test_the_lines_of_seed_004_run(bed, running, open_wire, line, said):
    process, first = running(bed, line)
    assert "skb XDP" in first
    wire = open_wire(bed)
    frames = wire.send(10)
    if "-l" in line:
        back = wire.receive(10, end=wire.gen)
        assert back == [frame[6:12] + frame[:6] + frame[12:] for frame in frames]
    out, _ = end(process)
    assert "received 10" in out
    assert said in out
