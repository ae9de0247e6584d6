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


@pytest.mark.privileged
def test_the_forwarding_bench_ends_with_a_ratio_per_peer_and_size():
    result = last_object("bench_forward.py")
    assert result["sizes"]["64"]["pps"] > 0 < result["sizes"]["1514"]["pps"]
    for peer in result["peers"].values():
        for figures in peer.values():
            assert figures["spread"][0] <= figures["ratio"] <= figures["spread"][1]


@pytest.mark.privileged
def test_the_bench_of_the_kernels_paths_ends_with_ratios_and_how_fast_it_learns():
    result = last_object("bench_paths.py")
    for figures in result["paths"].values():
        assert figures["spread"][0] <= figures["ratio"] <= figures["spread"][1]
    assert result["new_flows_per_second"] > 0
    assert 0 < result["entry_us"]["p50"] <= result["entry_us"]["p99"]


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
