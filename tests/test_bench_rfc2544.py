"""The benches of RFC 2544 and the soak: their search, their generator and sink, all figures."""

import argparse
import json
import signal
import socket
import struct
import subprocess
import sys
import time
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import pytest

from bench.latency import BUCKETS, Latency, upper_ns
from bench.leaks import kernel_objects, left_over
from bench.rfc_rates import LATENCY_LOADS, PERCENTILES
from bench.search import highest
from bench.subjects import OURS
from bench.traffic import HEADER_BYTES, Generator, Load, Seen, Sink, packet_of
from bench.trials import Trial, Trials
from l2fwd import link

ROOT = Path(__file__).parents[1]
FEW = 200  # fit on a veth, whoever keeps its other end from its CPU
PART_OF_A_BUCKET = 1 / 16


# The search


class MadeUp:
    """An engine that carries so much, and keeps what it was asked."""

    def __init__(self, carries):
        self.carries = carries
        self.asked = []

    def passes(self, rate):
        self.asked.append(rate)
        return rate <= self.carries


@pytest.mark.parametrize("carries", [1.5, 999, 123_456, 1e6 - 1])
@pytest.mark.parametrize("resolution", [0.3, 0.01, 0.001])
def test_the_search_ends_within_its_resolution_below_what_is_carried(carries, resolution):
    engine = MadeUp(carries)
    found = highest(engine.passes, 0.0, 1e6, resolution=resolution)
    assert found <= carries
    lowest_that_fails = min(each for each in engine.asked if each > carries)
    assert lowest_that_fails - found <= max(1.0, resolution * lowest_that_fails)
    assert len(engine.asked) < 35


def test_the_search_ends_at_once_if_all_is_carried():
    engine = MadeUp(2e6)
    assert highest(engine.passes, 0.0, 1e6, resolution=0.01) == 1e6
    assert engine.asked == [1e6]


def test_the_search_ends_at_its_lower_end_if_nothing_is_carried():
    engine = MadeUp(0)
    assert highest(engine.passes, 0.0, 1e6, resolution=0.01, least=1000) == 0.0
    assert min(engine.asked) >= 500


def test_the_search_returns_nothing_that_failed_whatever_the_engine_says():
    answers = iter([False, True, False, True, False, False, True] * 10)
    said = {}

    def passes(rate):
        said[rate] = next(answers)
        return said[rate]

    assert said.get(highest(passes, 0.0, 1e6, resolution=0.01), True)


def test_a_search_above_its_upper_end_returns_its_lower_end():
    assert highest(MadeUp(0).passes, 100.0, 100.0, resolution=0.1) == 100.0


# Ages


def bucket_of(ns):
    return next(bucket for bucket in range(BUCKETS) if ns < upper_ns(bucket))


def latency_of(ages_ns):
    counts = [0] * BUCKETS
    for age in ages_ns:
        counts[bucket_of(age)] += 1
    return Latency(counts, sum(ages_ns))


def test_percentiles_are_those_of_the_ages_to_a_bucket():
    ages = [1000 * number for number in range(1, 1001)]
    latency = latency_of(ages)
    for percent in (10, 50, 99, 99.9):
        exact = ages[int(len(ages) * percent / 100) - 1] / 1e3
        assert exact < latency.percentile_us(percent) <= exact * (1 + PART_OF_A_BUCKET) + 1
    assert latency.mean_us == pytest.approx(500.5)


def test_buckets_end_ever_later_each_by_a_sixteenth_at_most():
    ends = [upper_ns(bucket) for bucket in range(BUCKETS)]
    assert ends == sorted(set(ends))
    for earlier, later in pairwise(ends[:-1]):
        assert later <= earlier * (1 + PART_OF_A_BUCKET)


def test_a_histogram_has_all_packets_and_a_difference_only_the_later_ones():
    first, both = latency_of([5000] * 3), latency_of([5000] * 3 + [70_000] * 2)
    assert sum(count for _, count in both.histogram()) == both.packets == 5
    later = both - first
    assert later.packets == 2
    assert later.mean_us == 70
    assert later.histogram() == [(upper_ns(bucket_of(70_000)) / 1e3, 2)]


def test_no_packets_have_no_percentile():
    nothing = latency_of([])
    assert nothing.percentile_us(50) != nothing.percentile_us(50)  # nan
    assert nothing.histogram() == []


# Trials


def seen(packets):
    return Seen(packets, 0, 0, 0, latency_of([]))


def test_a_trial_tells_rates_loss_and_whether_its_rate_was_offered():
    trial = Trial(1000, 1000, 0.5, seen(900), False)
    assert (trial.lost, trial.loss, trial.is_short) == (100, 0.1, False)
    assert (trial.offered, trial.delivered) == (2000, 1800)
    assert Trial(1000, 900, 0.5, seen(900), False).is_short
    assert Trial(1000, 0, 0.5, seen(0), False).loss == 0


class Scripted(Trials):
    """Trials with a given end."""

    def __init__(self, tries, *ends):
        super().__init__(None, None, seconds=1.0, settle_seconds=0.0, tries=tries)
        self.ends = list(ends)

    def take(self, load, seconds=0.0):
        return self.ends.pop(0)


GOOD = Trial(1000, 1000, 1.0, seen(1000), False)
LOSSY = Trial(1000, 1000, 1.0, seen(990), False)
DISTURBED = Trial(1000, 1000, 1.0, seen(990), True)
SHORT = Trial(1000, 900, 1.0, seen(900), False)


@pytest.mark.parametrize(
    ("ends", "passes", "left"),
    [
        ((GOOD, LOSSY), True, 1),
        ((LOSSY, GOOD), False, 1),
        ((SHORT, GOOD), False, 1),
        ((DISTURBED, GOOD, GOOD), True, 1),
        ((DISTURBED, DISTURBED, LOSSY, GOOD), False, 1),
        ((DISTURBED, DISTURBED, GOOD), True, 0),
    ],
)
def test_a_trial_is_taken_again_only_if_it_failed_and_was_disturbed(ends, passes, left):
    trials = Scripted(3, *ends)
    assert trials.passes(Load(rate=1000), 0.0) is passes
    assert len(trials.ends) == left


def test_a_trial_passes_with_the_loss_that_is_tolerated():
    assert Scripted(1, LOSSY).passes(Load(rate=1000), 0.01)
    assert not Scripted(1, LOSSY).passes(Load(rate=1000), 0.009)


def test_between_two_nics_only_the_hairpin_fits():
    two = argparse.Namespace(in_link="a", out_link="b", gen_link="", sink_link="")
    assert [name for name, each in OURS.items() if each.fits(two)] == ["macswap"]
    four = argparse.Namespace(in_link="a", out_link="b", gen_link="c", sink_link="d")
    assert all(each.fits(four) for each in OURS.values())


# Generator and sink


@pytest.fixture
def ends(pair):
    """A generator at one end of a veth and the sink at the other."""
    left, right = pair
    with ExitStack() as undo:
        for netns, ifname in zip(pair, ("left", "right"), strict=True):
            with link.in_netns(netns):
                link.disable_ipv6(ifname)
                link.set_up(ifname)
        sink = Sink(right, "right")
        undo.callback(sink.close)
        generator = undo.enter_context(Generator(left, "left"))
        yield generator, sink


def send(generator, sink, load, seconds=0.1):
    """Return frames sent, and what the sink saw of them."""
    sink.look(stamped=load.stamped, checked=load.stamped)
    before = sink.seen()
    generator.start(load)
    time.sleep(seconds)
    if load.limit == FEW and not load.later_from:
        wait_for(sink, before, FEW)
    sent = generator.stop()
    return sent, sink.seen() - before


def wait_for(sink, before, count):
    deadline = time.monotonic() + 5
    while (sink.seen() - before).packets < count and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.privileged
@pytest.mark.parametrize("rate", [0.0, 50_000.0])
def test_a_limit_is_kept_to_the_frame_load_by_load(ends, rate):
    for _ in range(2):
        sent, came = send(*ends, Load(rate=rate, limit=FEW))
        assert (sent, came.packets, came.bytes) == (FEW, FEW, FEW * 64)


@pytest.mark.privileged
@pytest.mark.parametrize("rate", [1000.0, 100_000.0, 3_000_000.0])
def test_no_more_is_sent_than_the_rate_says(ends, rate):
    generator, sink = ends
    began = time.monotonic()
    sent, _ = send(generator, sink, Load(rate=rate))
    assert 0 < sent <= rate * (time.monotonic() - began) + 1


@pytest.mark.privileged
def test_stamped_frames_come_in_order_whole_and_with_an_age(ends):
    _, came = send(*ends, Load(rate=20_000, limit=FEW, stamped=True, size=1400))
    assert (came.packets, came.reordered, came.corrupted) == (FEW, 0, 0)
    assert came.latency.packets == FEW
    assert came.latency.mean_us > 0
    assert came.last_gap_ns == 0


@pytest.mark.privileged
def test_a_later_rate_holds_from_its_frame_on(ends):
    generator, sink = ends
    began = time.monotonic_ns()
    load = Load(rate=100_000, limit=FEW, later_from=FEW // 2, later_rate=1000, stamped=True)
    sent, _ = send(generator, sink, load, seconds=0.05)
    passed_ms = (time.monotonic_ns() - generator.changed_ns) / 1e6
    assert began < generator.changed_ns
    assert FEW // 2 < sent <= FEW // 2 + passed_ms + 1
    send(generator, sink, Load(rate=1000, limit=10))
    assert generator.changed_ns == 0


@pytest.fixture
def wire(pair):
    """A raw socket at the generator's end."""
    with link.in_netns(pair[0]):
        end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    with end:
        end.bind(("left", 0))
        yield end


def stamped(number, sent_ns=0, filler=b""):
    packet = bytearray(packet_of(Load(size=200)))
    struct.pack_into("=QQ", packet, HEADER_BYTES, number, sent_ns or time.monotonic_ns())
    packet[100 : 100 + len(filler)] = filler
    return bytes(packet)


def seen_of(sink, wire, frames):
    before = sink.seen()
    for frame in frames:
        wire.send(frame)
    wait_for(sink, before, len(frames))
    return sink.seen() - before


@pytest.mark.privileged
def test_the_sink_notices_a_changed_byte_and_a_frame_cut_short(ends, wire):
    _, sink = ends
    sink.look(stamped=True, checked=True)
    assert seen_of(sink, wire, [stamped(0)]).corrupted == 0
    assert seen_of(sink, wire, [stamped(1, filler=b"\1")]).corrupted == 1
    assert seen_of(sink, wire, [stamped(2)[:50]]).corrupted == 1
    sink.look(stamped=True)
    assert seen_of(sink, wire, [stamped(3, filler=b"\1")]).corrupted == 0


@pytest.mark.privileged
def test_the_sink_notices_what_is_missing_and_what_is_late(ends, wire):
    _, sink = ends
    sink.look(stamped=True)
    now = time.monotonic_ns()
    came = seen_of(sink, wire, [stamped(number, now + number) for number in (0, 1, 3)])
    assert (came.reordered, came.last_gap_ns) == (0, now + 3)
    assert seen_of(sink, wire, [stamped(2, now)]).reordered == 1


# Leaks


@pytest.mark.privileged
def test_a_namespace_left_behind_is_seen_until_it_is_gone():
    before = kernel_objects()
    name = f"l2fwd-test-{uuid4().hex[:8]}"
    link.create_netns(name)
    try:
        assert name in left_over(before)["namespaces"]
    finally:
        link.remove_netns(name)
    assert name not in left_over(before).get("namespaces", set())


# The suites

CASES = {"afxdp 64", "macswap 64", "redirect 64", "hybrid 64"}
RATES = {
    "no-drop rate", "rate at 0.5 % loss", "rate under overload", "longest burst",
    "lost at 90 %, long", "reordered at 90 %, long", "corrupted at 90 %, long",
    "loss at 100 % of what is offered", "loss at 90 % of what is offered",
    *(f"latency {name} at {percent} %" for name in PERCENTILES for percent in LATENCY_LOADS),
}  # fmt: skip
STARTS = {
    "cold start to the first frame", "reset: kill -9, start, first frame",
    "single frames that came, of 10", "oldest of 10 single frames",
}  # fmt: skip
ONCE = {
    "afxdp 64: no-drop rate / rate under overload", "hybrid: flows learned",
    "hybrid: first frame to its flow's entry, p50",
    "hybrid: first frame to its flow's entry, p99",
}  # fmt: skip
SOAK = {
    "delivered, by the minute", "latency p99, by the minute", "left behind",
    "memory grown after the first minute", "files opened and kept", "lost",
    "lost without a reason", "unaccounted in the engine", "reordered", "corrupted",
}  # fmt: skip


def bench(suite, *options, **settings):
    return subprocess.Popen(
        [sys.executable, "-m", "bench", suite, *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, **settings,
    )  # fmt: skip


def figures_of(suite, tmp_path):
    """Run a suite, tiny; return its figures by name, and what it skipped."""
    path = tmp_path / "result.json"
    running = bench(suite, "--tiny", "--json", "--output", str(path))
    output, said = running.communicate(timeout=110)
    assert running.returncode == 0, said
    result = json.loads(output)
    assert result == json.loads(path.read_text())
    assert result["complete"]
    return {each["name"]: each for each in result["figures"]}, result["skipped"]


@pytest.mark.privileged
def test_rfc2544_gives_every_figure_of_every_engine(tmp_path):
    figures, skipped = figures_of("rfc2544", tmp_path)
    expected = {f"{case}: {what}" for case in CASES for what in RATES}
    expected |= {f"{name}: {what}" for name in OURS for what in STARTS} | ONCE
    assert expected - set(figures) == set()
    for case in CASES:
        recovery = f"{case}: recovery from 110 %"
        assert recovery in figures or recovery in {each["name"] for each in skipped}
        p99 = figures[f"{case}: latency p99 at 50 %"]["case"]
        assert (p99["load"], p99["percentile"]) == (50, "p99")
        assert sum(packets for _, packets in p99["histogram"]) > 0
        for what in ("reordered", "corrupted"):
            assert figures[f"{case}: {what} at 90 %, long"]["median"] == 0
    for name in OURS:
        assert figures[f"{name}: single frames that came, of 10"]["median"] == 10


@pytest.mark.privileged
def test_the_soak_ends_with_a_ledger_that_adds_up(tmp_path):
    figures, skipped = figures_of("soak", tmp_path)
    assert {f"{name}: {what}" for name in OURS for what in SOAK} - set(figures) == set()
    assert figures["redirect: rule swaps"]["median"] > 0
    assert skipped == []
    for name in OURS:
        assert figures[f"{name}: lost"]["case"]["sent"] > 0
        for what in ("lost without a reason", "unaccounted in the engine", "corrupted"):
            assert figures[f"{name}: {what}"]["median"] == 0


@pytest.mark.privileged
def test_a_soak_cut_short_sums_up_what_it_did(tmp_path):
    path = tmp_path / "result.json"
    options = ("--tiny", "--hours", "0.003", "--engine", "macswap", "--engine", "afxdp")
    running = bench("soak", *options, "--output", str(path), start_new_session=True)
    line = running.stdout.readline()
    while "min:" not in line:
        assert line, running.communicate()
        line = running.stdout.readline()
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130, said
    result = json.loads(path.read_text())
    figures = {each["name"]: each for each in result["figures"]}
    assert not result["complete"]
    assert figures["macswap: lost without a reason"]["median"] == 0
    assert "macswap: left behind" in figures
    assert not [name for name in figures if name.startswith("afxdp")]


@pytest.mark.parametrize(
    ("suite", "options"),
    [
        ("rfc2544", ("--sizes", "59")),
        ("rfc2544", ("--sizes", "1515")),
        ("rfc2544", ("--sizes", "big")),
        ("rfc2544", ("--resolution", "1")),
        ("rfc2544", ("--repeats", "0")),
        ("rfc2544", ("--soak-seconds", "0")),
        ("rfc2544", ("--engine", "bridge")),
        ("soak", ("--hours", "0")),
        ("soak", ("--load", "101")),
    ],
)
def test_a_bench_refuses_what_makes_no_sense(suite, options):
    running = bench(suite, *options)
    output, said = running.communicate(timeout=60)
    assert running.returncode == 2
    assert output == ""
    assert options[0] in said.splitlines()[-1]


@pytest.mark.privileged
def test_a_peer_that_is_not_there_is_refused_by_its_option(tmp_path):
    running = bench("rfc2544", "--tiny", "--xdpsock", "/no/xdpsock",
                    "--output", str(tmp_path / "result.json"))  # fmt: skip
    _, said = running.communicate(timeout=60)
    assert running.returncode == 2
    assert "--xdpsock: no file /no/xdpsock" in said
