"""All suites one after the other: made-up ones, in processes as the real ones are."""

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import all as bench_all
from bench.__main__ import SUITES, main
from bench.options import add_common

ROOT = Path(__file__).parents[1]

# peers fails, rfc2544 has the options of peers; each keeps the arguments it was given.
SUITE = """
import sys
from pathlib import Path
from bench.figures import Figure
from bench.record import Record
name, *arguments = sys.argv[1:]
if arguments == ["--help"]:
    print("--xdpsock PATH" if name == "rfc2544" else "--in LINK")
    sys.exit()
if name == "peers":
    sys.exit(4)
output = Path(arguments[arguments.index("--output") + 1])
figure = Figure(name=" ".join(arguments), unit="x", samples=(1.0,), goal=1.0)
with Record(name, {}, output=output, quiet=True) as record:
    record.take(figure)
"""

# Ctrl-C goes to the parent and to the suite; the suite takes longer to put things back.
SLOW = """
import sys, time
from pathlib import Path
print("begun", flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(1)
    Path(sys.argv[1]).write_text("restored")
    sys.exit(130)
"""
PARENT = """
import sys
from bench import all as bench_all
from bench.__main__ import main
bench_all.command_of = lambda name, arguments: [sys.executable, "slow.py", "restored.txt"]
sys.exit(main(["all", "--tiny"]))
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Run made-up suites in a folder of their own; return exit code, output, errors, page."""
    script = tmp_path / "suite.py"
    script.write_text(SUITE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(
        bench_all, "command_of", lambda name, arguments: [sys.executable, script, name, *arguments]
    )

    def run_it(*arguments):
        code = main(["all", *arguments])
        said, errors = capfd.readouterr()
        return code, said, errors, (tmp_path / "bench/results/report.md").read_text()

    return run_it


def test_a_suite_that_fails_is_named_the_others_go_on_and_the_report_is_of_those(run):
    code, said, errors, page = run("--tiny")
    assert code == 1
    assert errors.splitlines()[-1] == "failed: peers"
    began = [line for line in said.splitlines() if line.startswith("=== ") and ":" not in line]
    assert began == [f"=== {name}" for name in SUITES if name != "soak"]
    assert re.search(r"^=== peers: \d+ s, FAILED with exit code 4$", said, re.M)
    assert re.search(r"^=== micro: \d+ s$", said, re.M)
    assert "\n## micro\n" in page
    assert "\n## peers\n" not in page
    assert said.splitlines()[-1] == "report: bench/results/report.md"


def test_what_an_earlier_run_found_is_not_reported_as_of_this_one(run, tmp_path):
    stale = tmp_path / "bench/results/peers.json"
    stale.parent.mkdir(parents=True)
    stale.write_text("stale")
    run("--tiny")
    assert not stale.exists()


def test_options_are_handed_on_and_those_of_peers_to_the_suites_that_have_them(run):
    *_, page = run("--quick", "--in", "eth2", "--out", "eth3", "--xdpsock", "/x", "--xsk-fwd", "/y")
    common = "--quick --in eth2 --out eth3"
    assert "| rfc2544 | --quick --engine afxdp --in eth2 --out eth3 --xdpsock /x --output" in page
    assert f"| micro | {common} --output bench/results/micro.json |" in page


def test_every_option_but_those_of_peers_is_one_that_each_suite_has():
    ours, common = argparse.ArgumentParser(), argparse.ArgumentParser()
    bench_all.add_arguments(ours)
    add_common(common)
    words = set(re.findall(r"--[a-z-]+", ours.format_help()))
    assert words - set(re.findall(r"--[a-z-]+", common.format_help())) == {"--xdpsock", "--xsk-fwd"}


@pytest.mark.privileged
def test_ctrl_c_ends_all_of_it_once_the_suite_has_put_things_back(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job may ignore it
    )
    with parent:
        try:
            for line in parent.stdout:
                if line == "begun\n":
                    break
            time.sleep(0.2)  # the child sleeps
            os.killpg(parent.pid, signal.SIGINT)
            _, errors = parent.communicate(timeout=20)
        finally:
            parent.kill()
    assert parent.returncode == 130, errors
    assert (tmp_path / "restored.txt").read_text() == "restored"
