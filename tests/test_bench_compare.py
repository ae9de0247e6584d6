"""What changed between two result files, and what is noise."""

import itertools
import json
import random

import pytest

from bench.__main__ import main
from bench.figures import Figure
from bench.rank_test import doubled_ranks, p_value
from bench.record import Record


def result_file(path, *figures, suite="forward", **options):
    with Record(suite, {"level": "quick", **options}, output=path, quiet=True) as record:
        for figure in figures:
            record.take(figure)
    return path


def rate(samples, name="afxdp", **fields):
    return Figure(name=name, unit="frames/s", samples=tuple(samples), **fields)


def around(middle, count=10, spread=0.01):
    """Return samples evenly about a value."""
    return [middle * (1 + spread * (2 * i / (count - 1) - 1)) for i in range(count)]


@pytest.fixture
def compare(tmp_path, capsys):
    """Compare two lists of figures; return the exit code and the lines said."""

    def run(before, after, *options, **settings):
        one = result_file(tmp_path / "a.json", *before)
        two = result_file(tmp_path / "b.json", *after, **settings)
        capsys.readouterr()
        code = main(["compare", str(one), str(two), *options])
        return code, capsys.readouterr().out.splitlines()

    return run


def test_what_got_worse_is_told_first_and_strict_makes_it_an_exit_code(compare):
    before = rate(around(1e6, 11)), rate(around(1e6, 11), name="hybrid")
    after = rate(around(1.1e6, 11)), rate(around(0.9e6, 11), name="hybrid")
    code, lines = compare(before, after)
    assert code == 0
    assert lines == [
        "worse   hybrid: 1.000 Mframes/s -> 900.000 kframes/s (-10.0 %, p 2.8e-06)",
        "better  afxdp: 1.000 Mframes/s -> 1.100 Mframes/s (+10.0 %, p 2.8e-06)",
        "2 figures in both: 1 better, 1 worse",
    ]
    assert compare(before, after, "--strict")[0] == 1
    assert compare(before, after[:1], "--strict")[0] == 0


def test_where_lower_is_better_more_is_worse_and_where_neither_is_it_has_changed(compare):
    before, after = around(100.0), around(120.0)
    assert compare([rate(before, better="lower")], [rate(after, better="lower")])[1][0].startswith(
        "worse "
    )
    code, lines = compare(
        [rate(before, better="neither")], [rate(after, better="neither")], "--strict"
    )
    assert (code, lines[0].split()[0]) == (0, "changed")


def test_noise_is_no_change(compare):
    draws = random.Random(7)
    samples = [[draws.gauss(100, 3) for _ in range(10)] for _ in range(2)]
    assert compare([rate(samples[0])], [rate(samples[1])])[1] == [
        "1 figures in both: 0 better, 0 worse"
    ]


def test_medians_apart_by_less_than_the_spread_are_no_change_however_many_samples(compare):
    before, after = around(100.0, 200, 0.1), around(104.0, 200, 0.1)
    assert p_value(before, after) < 0.01
    assert compare([rate(before)], [rate(after)])[1] == ["1 figures in both: 0 better, 0 worse"]


def test_medians_apart_whose_ranks_mix_are_no_change(compare):
    before, after = [1, 1, 1, 9, 9], [1, 9, 9.5, 9.5, 9.5]
    assert compare([rate(before)], [rate(after)])[1] == ["1 figures in both: 0 better, 0 worse"]


def test_few_samples_are_told_by_their_extremes_alone_and_that_is_said(compare):
    _, lines = compare([rate([1.0, 1.1, 1.2])], [rate([2.0, 2.1, 2.2])])
    assert lines[0] == "better  afxdp: 1.100 frames/s -> 2.100 frames/s (+90.9 %, few samples)"


def test_figures_of_one_file_only_are_named_with_their_file(compare, tmp_path):
    _, lines = compare([rate([1.0], name="old")], [rate([1.0], name="new")])
    assert lines == [
        f"only in {tmp_path}/a.json: old",
        f"only in {tmp_path}/b.json: new",
        "0 figures in both: 0 better, 0 worse",
    ]


def test_runs_with_other_options_are_said(compare):
    _, lines = compare([rate([1.0])], [rate([1.0])], seconds=3)
    assert lines[0] == "The option seconds was None and is 3."


def test_different_machines_and_a_run_cut_short_are_said(tmp_path, capsys):
    one = result_file(tmp_path / "a.json", rate([1.0]))
    fields = json.loads(one.read_text())
    fields["environment"] |= {"revision": "aaa", "kernel": "9.9"}
    fields["complete"] = False
    two = tmp_path / "b.json"
    two.write_text(json.dumps(fields))
    capsys.readouterr()
    assert main(["compare", str(one), str(two)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("The files are of different revisions: ")
    assert lines[1:3] == ["The files are of different machines.", f"{two} was cut short."]


def test_bad_files_other_suites_other_units_and_names_given_twice_end_with_2(tmp_path, capsys):
    good = result_file(tmp_path / "good.json", rate([1.0]))
    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    other = result_file(tmp_path / "other.json", rate([1.0]), suite="peers")
    figure = Figure(name="afxdp", unit="ns", samples=(1.0,))
    unit = result_file(tmp_path / "unit.json", figure)
    twice = result_file(tmp_path / "twice.json", rate([1.0]), rate([1.0]))
    capsys.readouterr()
    for path, text in (
        (bad, "is no result file: no 'suite'"),
        (other, "name two of one suite"),
        (unit, "is in frames/s in one file and in ns in the other"),
        (twice, "two figures are named afxdp"),
    ):
        assert main(["compare", str(good), str(path)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert text in line


@pytest.mark.parametrize("seed", range(6))
def test_the_exact_p_value_is_that_of_all_ways_to_deal_the_samples(seed):
    draws = random.Random(seed)
    ours = [draws.randrange(6) for _ in range(5)]  # with ties
    theirs = [draws.randrange(6) + seed // 2 for _ in range(4)]
    ranks = doubled_ranks([*ours, *theirs])
    expected = 5 * 10
    distance = abs(sum(ranks[:5]) - expected)
    ways = [abs(sum(chosen) - expected) for chosen in itertools.combinations(ranks, 5)]
    assert p_value(ours, theirs) == sum(way >= distance for way in ways) / len(ways)


def test_many_samples_have_nearly_the_p_value_they_have_exactly(monkeypatch):
    draws = random.Random(3)
    ours = [draws.gauss(0, 1) for _ in range(20)]
    theirs = [draws.gauss(0.8, 1) for _ in range(20)]
    exact = p_value(ours, theirs)
    monkeypatch.setattr("bench.rank_test._EXACT", 0)
    assert p_value(ours, theirs) == pytest.approx(exact, rel=0.2)
    assert p_value(ours, ours) > 0.9
    assert p_value([1.0] * 30, [1.0] * 30) == 1.0
