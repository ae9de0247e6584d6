"""Every bench runs, tiny, so that none can rot; its figures mean nothing here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "bench"


def last_object(name, *options):
    done = subprocess.run(
        [sys.executable, BENCH / name, "--json", "--tiny", *options],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_ring_bench_ends_with_a_ratio_its_spread_and_the_goal():
    result = last_object("bench_rings.py")
    assert result["goal"] == 1.0
    assert result["spread"][0] <= result["ratio"] <= result["spread"][1]
    assert result["ours_ns"] > 0 < result["reference_ns"]


def test_the_classifier_bench_ends_with_the_growth_and_a_ratio_per_table():
    result = last_object("bench_classify.py")
    assert result["growth_goal"] == 3.0
    for figures in result["growth"].values():
        assert figures["spread"][0] <= figures["growth"] <= figures["spread"][1]
    assert result["hot_ns"] > 0
    for table in (*result["rules"].values(), *result["masks"].values()):
        for figures in (table["look_up"], table["packet"]):
            assert figures["spread"][0] <= figures["ratio"] <= figures["spread"][1]
            assert figures["ours_ns"] > 0 < figures["reference_ns"]


@pytest.mark.privileged
def test_the_bench_of_the_kernels_paths_ends_with_ratios_and_how_fast_it_learns():
    result = last_object("bench_paths.py")
    for figures in result["paths"].values():
        assert figures["spread"][0] <= figures["ratio"] <= figures["spread"][1]
    assert result["new_flows_per_second"] > 0
    assert 0 < result["entry_us"]["p50"] <= result["entry_us"]["p99"]


@pytest.mark.privileged
def test_the_program_bench_ends_with_a_ratio_its_spread_and_the_goal_per_program_and_size():
    result = last_object("bench_programs.py")
    assert result["goals"] == {"xconnect": 1.5, "rule": 3.0, "flow": 3.0}
    for programs in result["sizes"].values():
        assert set(programs) == {"plain", *result["goals"]}
        for figures in programs.values():
            assert figures["spread"][0] <= figures["ratio"] <= figures["spread"][1]


@pytest.mark.privileged
def test_the_library_bench_ends_with_eleven_cases_against_both_rivals(tmp_path):
    path = tmp_path / "results" / "library.json"
    result = last_object("bench_library.py", "--output", path)
    assert json.loads(path.read_text()) == result
    assert len(result["cases"]) == 11
    for row in result["cases"].values():
        assert (row["mode"], row["bind"], row["driver"]) == ("native", "copy", "veth")
        assert row["pps"] > 0
        assert set(row["rivals"]) == {"af_packet", "scapy"}
        for figures in (*row["rivals"].values(), *row.get("alone", row)["rivals"].values()):
            assert figures["spread"][0] <= figures["ratio"] <= figures["spread"][1]
    assert 0 < result["flood"]["ours"]["core"] < 2


def test_the_picture_shows_what_the_library_bench_wrote(tmp_path):
    pytest.importorskip("matplotlib", reason="no matplotlib: pip install 'l2fwd[bench]'")
    figures = {"pps": 9e5, "ratio": 2.0, "spread": [1.9, 2.2]}
    row = {
        "pps": 1.8e6, "goal": 2.0, "driver": "veth", "mode": "native", "bind": "copy",
        "packet_bytes": 64, "rivals": {"af_packet": figures, "scapy": figures},
    }  # fmt: skip
    cases = {"send": row | {"alone": row}, "echo": row | {"goal": None}}
    source = tmp_path / "library.json"
    source.write_text(json.dumps({"cases": cases, "rounds": 1}))
    subprocess.run([sys.executable, BENCH / "picture.py", source], check=True, timeout=60)
    assert source.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.privileged
def test_the_bench_of_the_tools_ends_with_a_rate_per_tool_mode_and_size():
    result = last_object("bench_tools.py")
    assert set(result["tools"]) == {"rxdrop", "txonly", "macswap"}
    for modes in result["tools"].values():
        for sizes in modes.values():
            assert all(figures["pps"] > 0 for figures in sizes.values())
