"""The suite of peers, tiny: every group ends with its ratios, and who fails is named."""

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from bench import contests
from bench.contests import Named

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.privileged


def bench(*options, timeout=110):
    return subprocess.run(
        [sys.executable, "-m", "bench", "peers", *map(str, options)],
        cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


def test_ours_meets_the_kernels_own_ways(tmp_path):
    done = bench("--tiny", "--json", "--only", "two ports", "--output", tmp_path / "peers.json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert json.loads((tmp_path / "peers.json").read_text()) == result
    ratios = {each["name"]: each for each in result["ratios"]}
    for contest in contests.two_ports_small(Named()).contests:
        if contest.peer.startswith(("xsk_fwd", "testpmd")):
            continue
        found = ratios[f"two ports, 64 bytes: {contest.ours} / {contest.peer}"]
        assert found["goal"] == contest.goal
        assert 0 < found["spread"][0] <= found["ratio"] <= found["spread"][1]
    skipped = {each["name"] for each in result["skipped"]}
    assert "two ports, 64 bytes: hybrid hit / xsk_fwd" in skipped


def test_the_table_has_what_other_suites_measure_too(tmp_path):
    done = bench("--tiny", "--json", "--only", "afxdp 64", "--only", "ring loop",
                 "--only", "afxdp: start", "--output", tmp_path / "peers.json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    names = {each["name"] for each in result["figures"]}
    assert "afxdp 64: no-drop rate / rate under overload" in names
    assert "afxdp: cold start to the first frame" in names
    assert "ring loop, macswap, default sizes, ours to C" in names


def test_a_peer_that_fails_is_named_and_the_others_go_on(tmp_path):
    broken = tmp_path / "xdpsock"
    broken.write_text("#!/bin/sh\necho no such luck >&2\nexit 3\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    done = bench("--tiny", "--json", "--only", "hairpin, 64", "--xdpsock", broken,
                 "--output", tmp_path / "peers.json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    (reason,) = {each["reason"] for each in result["skipped"] if "-l -N -c" in each["name"]}
    assert "no such luck" in reason
    assert any(each["name"] == "hairpin, 64 bytes: macswap" for each in result["figures"])


@pytest.mark.parametrize("option", ["--xdpsock", "--xsk-fwd"])
def test_a_peer_that_is_not_there_is_refused(tmp_path, option):
    done = bench("--tiny", option, tmp_path / "none", "--output", tmp_path / "peers.json")
    assert done.returncode == 2
    assert done.stderr.strip().endswith(f"{option}: no file {tmp_path / 'none'}")


def test_between_nics_peers_get_their_links_and_zero_copy():
    named = Named(xdpsock="x", xsk_fwd="y", links=("a", "b", "c", "d"))
    assert "in b " in named.rule
    assert "out c " in named.rule
    names = {name for group in contests.all_groups(named) for name in group.contenders}
    assert "xdpsock -l -N -z" in names
    assert not any("host as sink" in group.name for group in contests.all_groups(named))
    two = contests.all_groups(Named(links=("a", "b")))
    assert all(group.bed == {"hairpin": True} for group in two)
