"""The suites that sweep, tiny: every path has figures; their options, and the bed they need."""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from bench import bench_forward, bench_scale
from bench.bed import Running, Sample, bench_bed, confine, offer, place_napi
from bench.engines import forwarder
from bench.options import add_common, settle
from bench.rounds import take_turns
from bench.settings import PATHS, Measured, Setting
from bench.socket_traffic import SocketLoad, bursts_of
from bench.traffic import Load
from l2fwd import link
from l2fwd.errors import ConfigError, RunError
from l2fwd.rule_table import compile_rules
from l2fwd.rules import parse_rules

ROOT = Path(__file__).parents[1]
PATH_NAMES = ("afxdp", "afxdp-rules", "redirect", "redirect-rule", "hybrid")
LESS_THAN_SECONDS = 110


def bench(*words):
    return subprocess.run(
        [sys.executable, "-m", "bench", *words],
        capture_output=True, text=True, timeout=LESS_THAN_SECONDS, check=False, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def tiny(suite, tmp_path, *words):
    path = tmp_path / "result.json"
    done = bench(suite, "--tiny", "--json", "--output", path, *words)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert json.loads(path.read_text()) == result
    assert result["complete"]
    return result


def options_of(suite, *words):
    parser = argparse.ArgumentParser()
    add_common(parser)
    suite.add_arguments(parser)
    return settle(parser, parser.parse_args(words), suite.ROUNDS)


# Whole suites


@pytest.mark.privileged
def test_forward_has_figures_of_every_path_and_skips_what_a_veth_has_not(tmp_path):
    result = tiny("forward", tmp_path)
    rates = {}
    for figure in result["figures"]:
        assert figure["median"] >= 0
        if figure["case"]["what"] == "delivered":
            rates.setdefault(figure["case"]["series"], []).append(figure["median"])
    assert set(rates) == {f"{path}/native" for path in PATH_NAMES}
    assert all(min(each) > 0 for each in rates.values())
    assert {figure["case"]["what"] for figure in result["figures"]} == {
        "delivered", "offered", "cpu",
    }  # fmt: skip
    cases = [figure["case"] for figure in result["figures"]]
    assert {(case["size"], case["bytes"], case["generator"]) for case in cases} == {
        ("64", 60, "kernel"),
        ("9000", 8996, "socket"),
    }
    assert {case["ways"] for case in cases} == {1, 2}
    assert {case["bind"] for case in cases} == {"copy", "none"}
    (skipped,) = result["skipped"]
    assert "zero-copy" in skipped["name"]
    assert "the driver has no zero-copy support; use --bind copy" in skipped["reason"]


@pytest.mark.privileged
def test_scale_has_costs_and_growth_of_every_path(tmp_path):
    result = tiny("scale", tmp_path)
    flows = [each for each in result["figures"] if each["case"]["sweep"] == "flows"]
    assert {each["case"]["series"] for each in flows} == {
        "afxdp", "redirect", "hybrid", "hybrid by source",
    }  # fmt: skip
    assert {each["case"]["sweep"] for each in result["figures"]} == {
        "queues", "rules", "masks", "flows", "batch", "ring", "jumbo",
    }  # fmt: skip
    assert all(each["median"] > 0 for each in result["figures"])
    growth = [each for each in result["ratios"] if each["name"].endswith("flows 4096: growth")]
    assert len(growth) == 4


@pytest.mark.privileged
def test_options_of_forward_name_the_cases(tmp_path):
    result = tiny(
        "forward", tmp_path, "--paths", "redirect-rule", "--modes", "skb", "--sizes", "imix",
        "--rules", "1000", "--flows", "16", "--ways", "2",
    )  # fmt: skip
    case = result["figures"][0]["case"]
    assert result["skipped"] == []
    assert (case["series"], case["mode"]) == ("redirect-rule/skb", "skb")
    assert (case["size"], case["bytes"], case["rules"]) == ("imix", 351, 1000)
    assert (case["flows"], case["ways"]) == (16, 2)


@pytest.mark.parametrize(
    ("words", "field", "remedy"),
    [
        (("forward", "--sizes", "64,10"), "size", "imix or in [64, 9018]"),
        (("forward", "--sizes", "9019"), "size", "[64, 9018]"),
        (("forward", "--paths", "nope"), "path", "afxdp, afxdp-rules, redirect"),
        (("forward", "--modes", "nope"), "mode", "native, skb"),
        (("forward", "--binds", "auto"), "bind", "copy, zero-copy"),
        (("forward", "--queues", "0"), "queues", "[1, 64]"),
        (("forward", "--batches", "x"), "batch", "[1, 2048]"),
        (("forward", "--rules", "1000000"), "rules", "[1, 131070]"),
        (("forward", "--flows", ""), "flows", "[1, 1048576]"),
        (("forward", "--ways", "3"), "ways", "[1, 2]"),
        (("scale", "--sweeps", "nope"), "sweep", "queues, rules, masks, flows"),
        (("scale", "--paths", "afxdp-rules"), "path", "afxdp, redirect, hybrid"),
    ],
)
def test_a_bad_option_is_refused_in_one_line(words, field, remedy):
    done = bench(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert f"{field} must be" in done.stderr
    assert remedy in done.stderr


@pytest.mark.privileged
@pytest.mark.parametrize("suite", ["forward", "scale"])
def test_two_nics_are_refused_in_one_line(suite, tmp_path):
    done = bench(suite, "--tiny", "--in", "a", "--out", "b", "--output", tmp_path / "x.json")
    assert done.returncode == 2
    assert done.stderr == f"bench {suite}: {suite} needs four NICs: name --gen and --sink too\n"


@pytest.fixture
def four_links():
    """Two cables in a namespace, in the place of NICs: gn - in, ou - si; two queues each."""
    netns = f"l2fwd-test-{uuid4().hex[:8]}"
    try:
        link.create_netns(netns)
        for near, far in (("gn", "in"), ("ou", "si")):
            link.create_veth((netns, near), (netns, far), queues=2)
        with link.in_netns(netns):
            for ifname in ("gn", "in", "ou", "si"):
                link.disable_ipv6(ifname)
                link.set_up(ifname)
        yield netns
    finally:
        link.remove_netns(netns)


@pytest.mark.privileged
def test_four_links_are_used_with_all_their_queues(four_links, tmp_path):
    words = ("--gen", "gn", "--in", "in", "--out", "ou", "--sink", "si", "--paths",
             "redirect-rule,afxdp", "--sizes", "64", "--ways", "1,2",
             "--binds", "copy")  # fmt: skip
    with link.in_netns(four_links):
        result = tiny("forward", tmp_path, *words)
        others = tiny("forward", tmp_path, *words, "--queues", "1")
    found = {(each["case"]["series"], each["case"]["what"]) for each in result["figures"]}
    assert {series for series, _ in found} == {"redirect-rule/native", "afxdp/native"}
    # Whose CPU time it was, nobody knows.
    assert ("afxdp/native", "cpu") in found
    assert ("redirect-rule/native", "cpu") not in found
    assert {each["case"]["queues"] for each in result["figures"]} == {2}
    assert {each["case"]["flows"] for each in result["figures"]} == {128}
    assert others["figures"] == []
    assert {each["reason"] for each in others["skipped"]} == {
        "in has 2 queues; ethtool -L in combined 1"
    }


# Cases


def test_one_dimension_is_varied_at_a_time_and_each_case_once():
    options = options_of(bench_forward, "--sizes", "64,1518", "--modes", "native,skb",
                         "--binds", "copy", "--queues", "1", "--batches", "64,1",
                         "--rules", "1,10", "--flows", "1", "--ways", "1")  # fmt: skip
    found = bench_forward.cases(options)
    names = [each.name for each in found]
    assert len(set(names)) == len(names)
    of = {path: [each for each in found if each.path == path] for path in PATHS}
    # The base, a size and a mode; a batch for workers; rules for paths that have some.
    assert {path: len(each) for path, each in of.items()} == {
        "afxdp": 4, "afxdp-rules": 5, "redirect": 3, "redirect-rule": 4, "hybrid": 4,
    }  # fmt: skip


def test_full_is_the_product_and_only_leaves_what_it_names():
    words = ("--full", "--paths", "afxdp", "--sizes", "64,1518,imix", "--modes", "native,skb",
             "--binds", "copy", "--queues", "1", "--batches", "64,1", "--ways", "1,2")  # fmt: skip
    assert len(bench_forward.cases(options_of(bench_forward, *words))) == 3 * 2 * 2 * 2
    some = bench_forward.cases(options_of(bench_forward, *words, "--only", "skb"))
    assert len(some) == 3 * 2 * 2
    assert {each.mode for each in some} == {"skb"}


def test_several_flows_of_hybrid_are_told_apart_by_a_rule():
    options = options_of(bench_forward, "--quick", "--paths", "hybrid,redirect-rule")
    for each in bench_forward.cases(options):
        assert each.by_source == (each.path == "hybrid" and each.flows > 1)


def test_growth_has_a_goal_where_flows_must_not_cost():
    samples = [Sample(1e6, 1e6, cost, 1.0, False) for cost in (100.0, 110.0)]
    case = {"mode": "native", "bind": "copy", "generator": "kernel"}
    base = Setting(path="hybrid")
    measured = {
        replace(base, flows=flows): Measured([sample], case)
        for flows, sample in zip((1, 65_536), samples, strict=True)
    }
    plain = list(bench_scale.figures_of("flows", "hybrid", measured, True))
    growth = plain[-1]
    assert (growth.unit, growth.goal, growth.is_met) == ("x", 0.9, True)
    assert growth.median == pytest.approx(100 / 110)
    assert growth.case["value"] == 65_536
    by_source = list(bench_scale.figures_of("flows", "hybrid by source", measured, True))
    assert by_source[-1].goal is None
    without_base = {key: each for key, each in measured.items() if key.flows > 1}
    assert all(each.unit != "x" for each in bench_scale.figures_of("flows", "hybrid",
                                                                  without_base, True))  # fmt: skip


def test_more_rules_than_tables_hold_are_skipped_by_name():
    class Skips:
        def __init__(self):
            self.names = []

        def skip(self, name, reason):
            self.names.append((name, reason))

    options = options_of(bench_scale, "--sweeps", "rules", "--paths", "hybrid")
    ((_, _, settings),) = bench_scale.sweeps(options)
    record = Skips()
    able = [each for each in settings if bench_scale._fits(each, record)]
    assert max(each.rules for each in able) == 131_072
    ((name, reason),) = record.names
    assert "rules 1000000" in name
    assert "131072" in reason


def test_masks_are_as_many_as_said_and_all_above_the_rule_that_is_hit():
    setting = Setting(path="hybrid", masks=64)
    rules = parse_rules("\n".join(setting._rules("f0", "f1")))
    compiled = compile_rules(rules.ranked(), {"f0": 1, "f1": 2}, 100)
    assert len(compiled.masks) == 64
    assert rules.ranked()[-1].action.out_link == "f1"
    more = parse_rules("\n".join(replace(setting, masks=65)._rules("f0", "f1")))
    with pytest.raises(ConfigError, match="need 65 different masks, 64 are possible"):
        compile_rules(more.ranked(), {"f0": 1, "f1": 2}, 100)


# Rounds


def test_a_contender_that_fails_has_no_more_turns_and_the_others_go_on():
    def broken():
        raise RunError("it broke")

    sample = Sample(1.0, 1.0, 1.0, 1.0, False)
    told = []
    found = take_turns(
        {"broken": broken, "sound": lambda: sample}, 3, quiet=False,
        failed=lambda name, error: told.append((name, str(error))),
    )  # fmt: skip
    assert told == [("broken", "it broke")]
    assert found == {"sound": [sample] * 3}
    with pytest.raises(RunError, match="it broke"):
        take_turns({"broken": broken}, 1, quiet=False)


# Frames of our own


def test_packets_of_flows_differ_in_their_source_alone():
    load = SocketLoad(size=60, packet="udp", flows=3)
    packets = [packet for burst in bursts_of(load) for packet in burst]
    assert len(packets) >= 64
    assert {packet[26:30] for packet in packets} == {bytes((10, 0, 0, flow)) for flow in range(3)}
    assert {packet[:26] + packet[30:] for packet in packets} == {packets[0][:26] + packets[0][30:]}
    (burst,) = bursts_of(SocketLoad(size=9014))
    assert {len(packet) for packet in burst} == {9014}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"size": 9015}, r"size must be in \[60, 9014\]"),
        ({"flows": 4097}, r"flows must be in \[0, 4096\]"),
        ({"imix": True, "size": 1514}, "imix, stamps, rates and limits"),
        ({"rate": 5.0}, "imix, stamps, rates and limits"),
    ],
)
def test_what_a_socket_does_not_make_is_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        SocketLoad(**fields)


@pytest.mark.privileged
@pytest.mark.parametrize("both_ways", [False, True])
def test_jumbo_frames_of_a_socket_cross_and_are_counted_to_the_byte(both_ways):
    """lab_sink counts all buffers of a packet, and where sockets send there is none."""
    with bench_bed(mtu=9000, both_ways=both_ways, by_socket=True) as bed:
        assert (bed.sink is None) == both_ways
        with forwarder("--mode", "native")(bed) as running:
            assert running.obtained["sockets"][0]["multi_buffer"]
            found = offer(bed, running, SocketLoad(size=9014), 0.1)
        assert found.delivered > 0
        if bed.sink:
            seen = bed.sink.seen()
            assert seen.bytes == 9014 * seen.packets


@pytest.mark.privileged
def test_sockets_send_by_every_queue_and_workers_share_a_cpu():
    """Three workers: one CPU is the generator's."""
    with bench_bed(queues=3, xdp_sink=False, by_socket=True) as bed:
        with forwarder("--queues", "0-2", workers=3)(bed) as running:
            offer(bed, running, SocketLoad(packet="udp", queues=3), 0.1)
            allowed = {
                cpu
                for task in Path(f"/proc/{running.pid}/task").iterdir()
                for cpu in os.sched_getaffinity(int(task.name))
            }
            assert 0 not in allowed or os.cpu_count() == 1
            assert len(running.obtained["sockets"]) == 6


# The bed


@pytest.mark.privileged
def test_both_ways_have_a_generator_and_a_sink_at_either_end():
    with bench_bed(both_ways=True) as bed:
        with forwarder("--data-path", "redirect", "--mode", "native")(bed) as running:
            before = [sink.seen().packets for sink in bed.sinks]
            found = offer(bed, running, Load(packet="udp"), 0.1)
            after = [sink.seen().packets for sink in bed.sinks]
        assert len(bed.generators) == len(bed.sinks) == 2
        assert all(now > then for now, then in zip(after, before, strict=True))
        assert found.delivered > 0


@pytest.mark.parametrize("options", [{"hairpin": True}, {"links": ("a", "b")}])
def test_a_hairpin_is_one_way(options):
    with pytest.raises(ConfigError, match="between two ports"):
        with bench_bed(both_ways=True, **options):
            pass


@pytest.mark.privileged
def test_time_of_the_kernels_threads_is_a_paths_own():
    with bench_bed() as bed:
        with forwarder("--data-path", "redirect", "--mode", "native")(bed) as running:
            threads = place_napi(bed.entry)
            place_napi(bed.target)
            assert threads
            alone = offer(bed, running, Load(packet="udp"), 0.1)
            whole = offer(bed, replace(running, threads=threads), Load(packet="udp"), 0.1)
    assert 0 <= alone.core < whole.core


@pytest.mark.privileged
def test_a_load_that_keeps_the_engine_busy_is_waited_for_and_measured_all_the_same(monkeypatch):
    monkeypatch.setattr("bench.bed._IDLE_SECONDS", 0.5)
    with bench_bed(xdp_sink=False) as bed, forwarder("--mode", "native")(bed) as running:
        began = time.monotonic()
        found = offer(bed, running, Load(packet="udp"), 0.1, until_idle=True)
        assert time.monotonic() - began >= 0.5
        assert found.delivered > 0


def test_all_threads_of_a_process_are_confined():
    before = os.sched_getaffinity(0)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        confine(child.pid, [min(before)])
        assert os.sched_getaffinity(child.pid) == {min(before)}
        child.communicate(b"\n")
    assert Running().threads == ()
