"""The lab: beds come and go without a trace, and the demo accounts for every frame."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import pytest

from l2fwd import ethtool, link
from l2fwd.errors import ConfigError, KernelError, UnsupportedError
from l2fwd.lab import Bed, Demo, passed, remove_dead_demos
from l2fwd.lab_traffic import MAX_FRAME_BYTES, MIN_FRAME_BYTES, WINDOW, Stream, exchange, settle

SUMMARY = {
    "sent": int,
    "forwarded": int,
    "lost": int,
    "duplicated": int,
    "reordered": int,
    "corrupted": int,
    "drops": dict,
    "unaccounted": int,
    "engine": dict,
    "pps": float,
    "elapsed": float,
}


def lab(*arguments):
    command = [sys.executable, "-m", "l2fwd", "lab", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def start_demo(*arguments):
    """Start a demo; return it once its forwarder is ready."""
    command = [sys.executable, "-m", "l2fwd", "lab", "demo", "--json", *arguments]
    demo = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert json.loads(demo.stdout.readline())["event"] == "ready"
    return demo


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone_within(seconds, pid):
    deadline = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not Path(f"/proc/{pid}").exists()


def check_passed(summary):
    assert {name: type(summary[name]) for name in SUMMARY} == SUMMARY
    assert passed(summary), summary
    assert summary["forwarded"] == summary["sent"] > 0
    assert summary["engine"]["unaccounted"] == 0


@pytest.fixture
def wire():
    """One veth pair between two namespaces; what is sent on one end arrives on the other."""
    with Bed(f"t{uuid4().hex[:8]}") as bed:
        yield (bed.gen, "g0"), (bed.fwd, "f0")


@pytest.fixture
def stream(wire):
    stream = Stream(*wire, station=1, flows=1)
    yield stream
    stream.close()


@pytest.mark.privileged
def test_a_bed_has_three_namespaces_and_four_links_that_are_up(bed):
    assert bed.leftovers() == [bed.gen, bed.fwd, bed.sink]
    for netns, ifname in ((bed.gen, "g0"), (bed.fwd, "f0"), (bed.fwd, "f1"), (bed.sink, "s0")):
        with link.in_netns(netns):
            found, features = link.find_link(ifname), ethtool.features(ifname)
        assert found.is_up
        assert found.has_carrier
        assert found.is_promiscuous
        assert features["generic-receive-offload"]
        assert not features["tx-checksumming"]
        assert not features["tcp-segmentation-offload"]


@pytest.mark.privileged
def test_a_bed_of_four_queues_has_four_on_every_link(make_bed):
    bed = make_bed(queues=4)
    with link.in_netns(bed.fwd):
        assert link.find_link("f0").rx_queue_count == link.find_link("f0").tx_queue_count == 4


@pytest.mark.privileged
def test_a_bed_that_is_up_is_not_made_twice(bed):
    with pytest.raises(ConfigError, match="is up already"):
        Bed(bed.name).up()
    assert len(bed.leftovers()) == 3


@pytest.mark.privileged
@pytest.mark.parametrize("step", ["create_netns", "create_veth", "set_features", "set_up"])
def test_a_bed_that_fails_half_way_leaves_nothing(monkeypatch, step):
    module = ethtool if step == "set_features" else link
    real, calls = getattr(module, step), []

    def fail_second(*arguments, **settings):
        calls.append(step)
        if len(calls) == 2:
            raise KernelError(1, step, "test")
        return real(*arguments, **settings)

    monkeypatch.setattr(module, step, fail_second)
    bed = Bed(f"t{uuid4().hex[:8]}")
    with pytest.raises(KernelError):
        bed.up()
    assert bed.leftovers() == []


@pytest.mark.privileged
def test_down_is_idempotent_and_takes_half_a_bed(make_bed):
    bed = make_bed()
    link.remove_netns(bed.fwd)
    (link.NETNS_DIR / bed.fwd).touch()  # a name with nothing behind it
    bed.down()
    assert bed.leftovers() == []
    bed.down()


@pytest.mark.privileged
def test_up_and_down_from_two_processes():
    name = f"t{uuid4().hex[:8]}"
    up = lab("up", "--name", name, "--queues", 2)
    assert up.returncode == 0, up.stderr
    assert f"ip netns exec {name}-gen ping" in up.stdout
    again = lab("up", "--name", name)
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1
    assert lab("down", "--name", name).returncode == 0
    assert Bed(name).leftovers() == []


@pytest.mark.privileged
def test_an_untouched_wire_loses_nothing(stream):
    exchange([stream], 0.3, lambda: True)
    settle([stream], 1.0)
    tally = stream.tally
    assert tally.received == tally.sent > WINDOW
    assert (tally.lost, tally.duplicated, tally.reordered, tally.corrupted) == (0, 0, 0, 0)


@pytest.mark.privileged
def test_loss_duplicates_disorder_and_damage_are_each_noticed(stream):
    frames = []
    stream._sender.close()
    stream._sender = type("Recorder", (), {"send": lambda _, frame: frames.append(bytes(frame)),
                                           "close": lambda _: None})()  # fmt: skip
    stream.send()
    assert len(frames) == WINDOW
    assert {MIN_FRAME_BYTES, MAX_FRAME_BYTES} <= {len(frame) for frame in frames}
    damaged = frames[5][:-1] + bytes((frames[5][-1] ^ 1,))
    # The test plays forwarder and wire.
    for frame in (frames[1], frames[0], frames[1], damaged, frames[6][:-1], *frames[7:]):
        stream._check(frame)
    tally = stream.tally
    assert tally.received == WINDOW - 5
    assert (tally.duplicated, tally.reordered, tally.corrupted) == (1, 1, 2)
    assert tally.lost == 3  # numbers 2, 3 and 4


@pytest.mark.privileged
@pytest.mark.parametrize("arguments", [[], ["--mode", "skb"], ["--queues", "2", "--both-ways"]])
def test_the_demo_accounts_for_every_frame(arguments):
    done = lab("demo", "--duration", 1, "--json", *arguments)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[0]["event"] == "ready"
    assert [event["event"] for event in events].count("summary") == 1
    check_passed(events[-1])


@pytest.mark.privileged
def test_the_demo_uses_every_queue():
    events = []
    demo = Demo(events.append, duration=0.5, queues=4)
    demo.run()
    check_passed(events[-1])
    ports = events[-1]["engine"]["ports"]
    assert {p["queue"] for p in ports if p["link"] == "f0" and p["rx_packets"]} == {0, 1, 2, 3}


@pytest.mark.privileged
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_sums_up_and_cleans_up(number):
    demo = start_demo("--duration", "60")
    time.sleep(0.5)
    demo.send_signal(number)
    out, err = demo.communicate(timeout=10)
    assert demo.returncode == 0, err
    check_passed(json.loads(out.splitlines()[-1]))
    assert Bed(f"l2fwd-demo{demo.pid}").leftovers() == []


@pytest.mark.privileged
def test_a_demo_whose_forwarder_dies_says_so_and_cleans_up():
    demo = start_demo("--duration", "60")
    (forwarder,) = children(demo.pid)
    os.kill(forwarder, signal.SIGKILL)
    _, err = demo.communicate(timeout=10)
    assert demo.returncode == 1
    assert err == "l2fwd lab: the forwarder ended: exit code -9\n"
    assert Bed(f"l2fwd-demo{demo.pid}").leftovers() == []


@pytest.mark.privileged
def test_a_killed_demo_takes_its_forwarder_along_and_down_removes_the_rest():
    demo = start_demo("--duration", "60")
    (forwarder,) = children(demo.pid)
    name = f"l2fwd-demo{demo.pid}"
    assert name not in remove_dead_demos()
    demo.kill()
    demo.communicate()
    assert gone_within(3, forwarder)
    assert len(Bed(name).leftovers()) == 3
    assert name in remove_dead_demos()
    assert Bed(name).leftovers() == []


@pytest.mark.privileged
def test_a_demo_nobody_reads_ends():
    demo = start_demo("--duration", "60")
    demo.stdout.close()
    demo.stdout = None
    _, err = demo.communicate(timeout=10)
    assert (demo.returncode, err) == (0, "")


def test_a_demo_over_a_data_path_that_is_not_there_is_not_supported():
    with pytest.raises(
        UnsupportedError, match="'warp' does not exist; choose from: afxdp, redirect"
    ):
        Demo(print, data_path="warp")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["demo", "--duration", "0"], 2, "duration must be in (0, 86400] seconds, got 0"),
        (["demo", "--duration", "nan"], 2, "duration must be in (0, 86400] seconds, got nan"),
        (["demo", "--queues", "0"], 2, "queues must be in [1, 64], got 0"),
        (["demo", "--mode", "fast"], 2, "mode must be one of auto, native, skb, offload"),
        (["demo", "--data-path", "warp"], 4, "data path 'warp' does not exist"),
        (["up", "--queues", "65"], 2, "queues must be in [1, 64], got 65"),
        (["up", "--name", "a/b"], 2, "name must be 1 to 32 letters"),
        (["down", "--name", ""], 2, "name must be 1 to 32 letters"),
        (["sideways"], 2, "invalid choice: 'sideways'"),
        ([], 2, "arguments are required: up|down|demo"),
    ],
)
def test_bad_input_is_one_line(arguments, code, said):
    done = lab(*arguments)
    assert done.returncode == code
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
