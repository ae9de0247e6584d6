"""The suite ``micro`` runs, tiny, so that it cannot rot; its times mean nothing here."""

import os
import shutil
from argparse import Namespace

import pytest

from bench import micro_instructions
from bench.bench_micro import run
from bench.case import Case
from bench.record import Record
from bench.rounds import Rounds, ns_each
from l2fwd.errors import ConfigError
from tests.run_bench import bench, tiny_result

PROGRAMS = [
    f"program, {size} bytes, {name}" for size in (64, 1514) for name in ("xconnect", "rule", "flow")
]
LOOKED_UP = ("rules 1, masks 1", "rules 100, masks 1", "rules 1000, masks 8")
# Ours and the reference of each ratio, and its goal.
RATIOS = {
    "ring loop, pass-through, default sizes, ours": ("C", 1.0),
    "ring loop, macswap, default sizes, ours": ("C", 0.7),
    "ring loop, pass-through, few hot frames, ours": ("C", 1.0),
    "ring loop, macswap, few hot frames, ours": ("C", 0.7),
    "header parse, ours": ("C", 1.0),
    **{f"look-up, {table}, ours": ("C", 1.0) for table in LOOKED_UP},
    **{f"frame to rule, {table}, ours": ("C", 1.0) for table in LOOKED_UP},
    "growth, look-up, rules 100": ("rules 1", 3.0),
    "growth, frame to rule, rules 100": ("rules 1", 3.0),
    "flow insert, ours": ("one by one", 1.0),
    **dict(zip(PROGRAMS, [("plain", goal) for goal in (1.5, 3.0, 3.0)] * 2, strict=True)),
}
INSTRUCTIONS = "ring loop, pass-through, instructions, ours"


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    if os.geteuid() != 0:
        pytest.skip("needs root: sudo make test")
    return tiny_result("micro", tmp_path_factory.mktemp("results"))


@pytest.mark.privileged
def test_every_part_of_micro_has_a_time_beside_its_references(result):
    assert (result["suite"], result["complete"]) == ("micro", True)
    figures = {figure["name"]: figure for figure in result["figures"]}
    counted = {INSTRUCTIONS: ("C", None)} if not micro_instructions.missing() else {}
    expected = {**RATIOS, **counted}
    ratios = {name for name, figure in figures.items() if figure["unit"] == "x"}
    assert ratios == {f"{ours} to {against}" for ours, (against, _) in expected.items()}
    for ours, (against, goal) in expected.items():
        found = figures[f"{ours} to {against}"]
        reference = f"{ours.rpartition(', ')[0]}, {against}"
        assert (found["against"], found["goal"], found["better"]) == (against, goal, "lower")
        assert found["spread"][0] <= found["median"] <= found["spread"][1]
        for name in (ours, reference):
            assert figures[name]["median"] > 0
            assert figures[name]["unit"] in ("ns/frame", "ns/flow", "instructions/frame")


@pytest.mark.privileged
def test_micro_has_no_ratio_that_is_not_of_its_own_figures(result):
    figures = {figure["name"]: figure for figure in result["figures"]}
    for ratio in result["ratios"]:
        ours = ratio["name"].rpartition(" to ")[0]
        against = f"{ours.rpartition(', ')[0]}, {figures[ratio['name']]['against']}"
        quotient = figures[ours]["median"] / figures[against]["median"]
        assert ratio["ratio"] == pytest.approx(quotient, rel=1e-3)


@pytest.mark.privileged
def test_instructions_are_skipped_by_name_without_valgrind(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    record = Record("micro", {}, output=None, quiet=True)
    options = Namespace(
        level="tiny", rounds=1, seconds=1e-4, only=["instructions"], in_link="", gen_link=""
    )
    run(options, record)
    assert [each["name"] for each in record.skipped] == [
        "ring loop, pass-through, instructions",
        "ring loop, macswap, instructions",
    ]
    assert "valgrind" in record.skipped[0]["reason"]


def test_micro_refuses_links():
    options = Namespace(in_link="a", out_link="b", gen_link="")
    with pytest.raises(ConfigError, match="uses no NIC"):
        run(options, Record("micro", {}, output=None, quiet=True))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("micra",), "invalid choice: 'micra'"),
        (("micro", "--rounds", "0"), "rounds must be at least 1, got 0"),
        (("micro", "--seconds", "0"), "seconds must be in (0, 3600], got 0"),
        (("micro", "--in", "lo"), "--in and --out go together"),
    ],
)
def test_a_bench_refuses_what_makes_no_sense(arguments, said):
    done = bench(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_contenders_begin_by_turns():
    began = []
    contenders = {name: lambda name=name: began.append(name) or len(began) for name in "abc"}
    samples = Rounds(3, 0.0, is_patient=False).measure(contenders)
    assert "".join(began) == "abcbcacab"
    assert samples == {"a": [1, 6, 8], "b": [2, 4, 9], "c": [3, 5, 7]}


def test_noisy_rounds_are_counted(monkeypatch):
    answers = iter([True, False, False])
    monkeypatch.setattr("bench.rounds.wait_until_quiet", lambda seconds: next(answers))
    rounds = Rounds(3, 0.0, is_patient=True)
    rounds.measure({"a": lambda: 0})
    record = Record("micro", {}, output=None, quiet=True)
    rounds.note(record)
    assert record.notes == ["2 of 3 rounds: something else used the CPUs meanwhile"]


def test_a_quiet_machine_is_not_worth_a_note():
    record = Record("micro", {}, output=None, quiet=True)
    Rounds(1, 0.0, is_patient=False).note(record)
    assert record.notes == []


def test_work_is_repeated_until_its_own_time_is_up():
    calls = []
    assert ns_each(lambda: calls.append(0) or (4e5, 100), 0.001) == 4000
    assert len(calls) == 3


def test_a_case_makes_its_work_anew_every_round_and_warms_it_up():
    made = []

    def make(ns):
        calls = made.append([]) or made[-1]
        return lambda: calls.append(0) or (ns, 10)

    case = Case(
        name="case", contenders={"ours": lambda: make(20), "C": lambda: make(40)}, reference="C",
        goals={"ours": 0.4},
    )  # fmt: skip
    ours, reference, ratio = case.measure(Rounds(2, 0.0, is_patient=False))
    assert [len(calls) for calls in made] == [2] * 4
    assert (ours.name, ours.samples) == ("case, ours", (2.0, 2.0))
    assert (reference.name, reference.samples) == ("case, C", (4.0, 4.0))
    assert (ratio.name, ratio.samples, ratio.is_met) == ("case, ours to C", (0.5, 0.5), False)
