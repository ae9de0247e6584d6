"""Bad input: one line that names the field and the remedy, the right code, nothing left."""

import subprocess
import sys
from pathlib import Path

import pytest

from l2fwd import UnsupportedError, XdpSocket, link
from l2fwd.config import ForwardConfig, SocketConfig, UmemConfig, parse_indices
from l2fwd.errors import ConfigError
from l2fwd.words import check_ifname, parse_mac

MODES = Path(__file__).parent.parent / "docs" / "xdp-modes.md"


def run(*words, netns=None, prefix=()):
    enter = ["nsenter", f"--net=/run/netns/{netns}"] if netns else []
    command = [*enter, *prefix, sys.executable, "-m", "l2fwd", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


def assert_one_line(done, code, *words):
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if "warning" not in line]
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "required"),
        (["f0"], "required"),
        (["f0", "f0"], "same link"),
        (["nosuch0", "f1"], "nosuch0"),
        (["f0", "a-name-of-16-chr"], "1 to 15 bytes"),
        (["f0", "a/b"], "'/'"),
        (["f0", "a%d"], "'%'"),
        (["f0", "f1", "--nosuch"], "--nosuch"),
        (["f0", "f1", "--queues", "1-"], "queues"),
        (["f0", "f1", "--queues", "0,0"], "twice"),
        (["f0", "f1", "--mode", "fast"], "auto, native, skb, offload"),
        (["f0", "f1", "--bind", "zc"], "auto, copy, zero-copy"),
        (["f0", "f1", "--frame-size", "3000"], "sizes between need --unaligned"),
        (["f0", "f1", "--frame-size", "2047", "--unaligned"], "2048 or 4096"),
        (["f0", "f1", "--frame-size", "8192", "--unaligned"], "2048 or 4096"),
        (["f0", "f1", "--frame-size", "3000", "--unaligned"], "add --huge-pages, or --bind copy"),
        (["f0", "f1", "--data-path", "redirect", "--frags"], "frags is about sockets"),
        (["f0", "f1", "--data-path", "redirect", "-u"], "unaligned is about sockets"),
        (["f0", "f1", "--frame-size", "big"], "frame-size"),
        (["f0", "f1", "--ring-size", "0"], "power of two"),
        (["f0", "f1", "--ring-size", "48"], "power of two"),
        (["f0", "f1", "--ring-size", str(1 << 25)], "power of two"),
        (["f0", "f1", "--frames", "3"], "frames"),
        (["f0", "f1", "--headroom", "-1"], "headroom"),
        (["f0", "f1", "--headroom", "1792"], "headroom"),
        (["f0", "f1", "--batch-size", "0"], "batch-size"),
        (["f0", "f1", "--batch-size", "4096"], "batch-size"),
        (["f0", "f1", "--set-dst-mac", "01:00:00:00:00:01"], "unicast"),
        (["f0", "f1", "--set-dst-mac", "00:00:00:00:00:00"], "unicast"),
        (["f0", "f1", "--set-dst-mac", "00:11:22:33:44"], "six hex bytes"),
        (["f0", "f1", "--duration", "-1"], "duration"),
        (["f0", "f1", "--interval", "nan"], "interval"),
        (["f0", "f1", "--interval", "1e-9"], "interval"),
        (["f0", "f1", "--cpus", "0,1", "--queues", "0"], "cpus"),
        (["f0", "f1", "--cpus", ""], "cpus"),
        (["f0", "f1", "--cpus", "all"], "cpus"),
        (["f0", "f1", "--set-dst-mac", ""], "set-dst-mac"),
    ],
)
def test_a_wrong_argument_is_named(words, said):
    """I1, I3"""
    assert_one_line(run("forward", *words), 2, said)


def test_an_unknown_verb_is_named():
    assert_one_line(run("fowrard"), 2, "fowrard", "forward")


@pytest.mark.privileged
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--queues", "1"], 2, ["queue 1", "f0 has 1 queues"]),
        (["--cpus", "4095"], 2, ["cpu 4095"]),
        (["--bind", "zero-copy"], 4, ["bind", "EOPNOTSUPP", "--bind copy"]),
        (["--mode", "offload"], 4, ["offload", "f0"]),
        (["--headroom", "1345", "--frame-size", "2048"], 2, ["f0", "MTU"]),
        (["--frame-size", "4096", "--headroom", "3000"], 2, ["f0", "MTU 1500"]),
    ],
)
def test_what_the_links_cannot_do_is_refused_before_anything_is_attached(bed, words, code, said):
    """R7, I4"""
    assert_one_line(run("forward", "f0", "f1", *words, netns=bed.fwd), code, *said)
    with link.in_netns(bed.fwd):
        assert link.find_link("f0").xdp_mode == link.find_link("f1").xdp_mode == "none"


@pytest.mark.privileged
@pytest.mark.parametrize(
    "words", [["--data-path", "afxdp"], ["--data-path", "redirect"], ["--data-path", "hybrid"]]
)
def test_offload_answers_with_the_drivers_refusal_in_plain_words(bed, words):
    said = ["driver veth does not run this program on the NIC (EINVAL)", "--mode native"]
    done = run("forward", "f0", "f1", "--mode", "offload", *words, netns=bed.fwd)
    assert_one_line(done, 4, "offload to f0: ", *said)
    assert " ".join(done.stderr.split()) in " ".join(MODES.read_text().split())
    with link.in_netns(bed.fwd):
        assert link.find_link("f0").xdp_mode == link.find_link("f1").xdp_mode == "none"
        with pytest.raises(UnsupportedError, match="driver veth does not run"):
            XdpSocket("f0", mode="offload")


@pytest.mark.privileged
def test_a_link_that_is_down_is_refused_with_the_command_that_mends_it(bed):
    with link.in_netns(bed.fwd):
        link.set_down("f1")
    assert_one_line(run("forward", "f0", "f1", netns=bed.fwd), 2, "ip link set f1 up")


@pytest.mark.privileged
def test_an_mtu_that_does_not_fit_names_the_frame_size_that_does(bed):
    """I4, R8"""
    with link.in_netns(bed.gen):
        link.set_mtu("g0", 3000)
    with link.in_netns(bed.fwd):
        link.set_mtu("f0", 3000)
    done = run("forward", "f0", "f1", "--no-frags", "-f", "2048", netns=bed.fwd)
    assert_one_line(done, 2, "f0", "MTU 3000", "--frame-size 4096")


@pytest.mark.privileged
def test_huge_pages_that_are_not_there_are_named(bed):
    pool = Path("/proc/sys/vm/nr_hugepages").read_text().strip()
    if pool != "0":
        pytest.skip(f"the huge page pool holds {pool} pages")
    done = run("forward", "f0", "f1", "--huge-pages", netns=bed.fwd)
    assert_one_line(done, 1, "huge pages", "8 pages of 2 MiB", "nr_hugepages")


@pytest.mark.privileged
@pytest.mark.parametrize(
    ("missing", "code", "said"),
    [
        ("-net_raw", 3, "CAP_NET_RAW"),
        ("-bpf,-sys_admin", 3, "CAP_BPF"),
        ("-net_admin,-sys_admin", 3, "CAP_NET_ADMIN"),
    ],
)
def test_a_missing_capability_is_named(bed, missing, code, said):
    prefix = ["setpriv", f"--bounding-set={missing}", f"--inh-caps={missing}"]
    assert_one_line(run("forward", "f0", "f1", netns=bed.fwd, prefix=prefix), code, said)


@pytest.mark.privileged
def test_too_little_lockable_memory_is_named_with_both_sizes(bed):
    """X10, P4"""
    prefix = ["prlimit", "--memlock=65536:65536", "setpriv", "--bounding-set=-ipc_lock",
              "--inh-caps=-ipc_lock"]  # fmt: skip
    done = run("forward", "f0", "f1", netns=bed.fwd, prefix=prefix)
    assert_one_line(done, 1, "ENOBUFS", "16777216 bytes", "RLIMIT_MEMLOCK is 65536")
    with link.in_netns(bed.fwd):
        assert link.find_link("f0").xdp_mode == "none"


@pytest.mark.parametrize("name", ["", ".", "..", "a" * 16, "a b", "a:b", "a\n"])
def test_names_no_link_can_have_are_refused(name):
    with pytest.raises(ConfigError, match="link name"):
        check_ifname(name)


def test_settings_are_checked_against_one_another():
    with pytest.raises(ConfigError, match="same link"):
        ForwardConfig(in_link="a", out_link="a")
    with pytest.raises(ConfigError, match="one each"):
        ForwardConfig(in_link="a", out_link="b", queues=(0, 1), cpus=(0,))
    with pytest.raises(ConfigError, match="tx_budget"):
        SocketConfig(ring_size=64, tx_budget=65)
    with pytest.raises(ConfigError, match="MTU 9000"):
        UmemConfig(frame_size=4096).check_mtu("eth0", 9000)
    assert ForwardConfig(in_link="a", out_link="b", umem=UmemConfig(frame_count=4)).fill_target == 1


def test_indices_and_addresses_are_read_exactly():
    assert parse_indices("all", "queues") is None
    assert parse_indices("3,0-1", "queues") == (3, 0, 1)
    assert parse_mac("02-00-00-00-00-01", "mac") == bytes.fromhex("020000000001")
    for text in ("", "a", "-1", "1,", "2-1", "1 2", "99999999"):
        with pytest.raises(ConfigError, match="queues"):
            parse_indices(text, "queues")
