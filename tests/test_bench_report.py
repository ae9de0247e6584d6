"""Result files into a page: tables to the byte, goals, pictures; bad files in one line."""

import json
import random
import re
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from bench import report
from bench.__main__ import OTHERS, SUITES, main
from bench.figures import Figure, ratio
from bench.record import Record
from bench.result import load
from bench.wire import SPEEDS, line_rate
from l2fwd.errors import ConfigError

PNG = b"\x89PNG\r\n\x1a\n"


def result_file(folder, suite, figures=(), *, skipped=(), notes=(), **environment):
    """Write what a suite would, with some of the environment made up; return its path."""
    path = folder / f"{suite}.json"
    with Record(suite, {"level": "quick", "rounds": 3}, output=path, quiet=True) as record:
        for figure in figures:
            record.take(figure)
        for each in skipped:
            record.skip(*each)
        for note in notes:
            record.note(note)
    fields = json.loads(path.read_text())
    fields["environment"] |= {"revision": "abc1234", **environment}
    path.write_text(json.dumps(fields))
    return path


def page_of(tmp_path, *paths):
    page = tmp_path / "page.md"
    assert main(["report", *map(str, paths), "--output", str(page)]) == 0
    return page.read_text()


def rate(size, path="afxdp", samples=(1e6, 2e6, 3e6)):
    case = {"path": path, "mode": "native", "bytes": size}
    return Figure(name=f"{path} {size}", unit="frames/s", samples=samples, case=case)


def test_a_table_has_the_dimensions_that_differ_as_columns_and_says_the_others_once(tmp_path):
    text = page_of(tmp_path, result_file(tmp_path, "forward", [rate(64), rate(1514)]))
    assert (
        "All with path afxdp, mode native:\n\n"
        "| figure | bytes | median | quartiles | samples |\n"
        "|---|---|---|---|---|\n"
        "| afxdp 64 | 64 | 2.000 Mframes/s | 1.000 Mframes/s to 3.000 Mframes/s | 3 |\n"
        "| afxdp 1514 | 1514 | 2.000 Mframes/s | 1.000 Mframes/s to 3.000 Mframes/s | 3 |\n\n"
    ) in text
    assert "without the 4 bytes of FCS" in text


def test_figures_without_the_same_dimensions_are_in_tables_of_their_own(tmp_path):
    setup = Figure(name="set-up", unit="ms", samples=(5.0,), better="lower")
    text = page_of(tmp_path, result_file(tmp_path, "forward", [rate(64), setup]))
    assert "| figure | median | quartiles | samples |\n|---|---|---|---|\n" in text
    assert "| set-up | 5 ms |  | 1 |\n" in text


def test_every_goal_stands_beside_its_figure_with_a_verdict(tmp_path):
    figures = [
        ratio("afxdp", [2, 4], [2, 2], against="xdpsock", goal=1.0),
        ratio("hybrid", [1, 1], [2, 2], against="xsk_fwd", goal=1.0),
        Figure(name="cost", unit="ns/frame", samples=(5.0,), better="lower", goal=8.0),
        Figure(name="plain", unit="ns/frame", samples=(5.0,)),
    ]
    text = page_of(tmp_path, result_file(tmp_path, "peers", figures))
    assert (
        "## Goals\n\n2 of 3 met.\n\n"
        "| suite | figure | goal | median | quartiles | against | verdict |\n"
        "|---|---|---|---|---|---|---|\n"
        "| peers | afxdp | >= 1 | 1.5 x | 1 x to 2 x | xdpsock | met |\n"
        "| peers | hybrid | >= 1 | 0.5 x | 0.5 x to 0.5 x | xsk_fwd | **missed** |\n"
        "| peers | cost | <= 8 | 5 ns/frame |  |  | met |\n\n"
    ) in text


def test_skipped_cases_and_notes_are_told_and_do_not_break_out_of_their_cells(tmp_path):
    skipped = [("zero-copy", "no NIC | only\nveths")]
    path = result_file(tmp_path, "forward", [rate(64)], skipped=skipped, notes=["a\n## b"])
    text = page_of(tmp_path, path)
    assert "| forward | zero-copy | no NIC \\| only veths |\n" in text
    assert "- forward: a ## b\n" in text


def test_a_nic_has_a_column_of_its_facts(tmp_path):
    facts = {"driver": "ixgbe", "speed_mbps": 10000, "offloads": ["rx-checksumming"]}
    links = {"eth2": facts, "eth3": facts | {"driver": "i40e"}}
    path = result_file(tmp_path, "forward", [rate(64)], links=links)
    text = page_of(tmp_path, path)
    assert "| fact | eth2 | eth3 |\n|---|---|---|\n| driver | ixgbe | i40e |\n" in text
    assert "| offloads | rx-checksumming | rx-checksumming |\n" in text


def test_files_of_different_revisions_and_machines_are_said(tmp_path):
    one = result_file(tmp_path, "forward", [rate(64)])
    other = result_file(tmp_path, "peers", revision="def5678", cpu="a Xeon")
    text = page_of(tmp_path, one, other)
    assert "**The files are of different revisions: abc1234, def5678.**\n" in text
    assert "**The files are of different machines.**\n" in text
    assert "| revision | forward: abc1234; peers: def5678 |\n" in text
    assert "different" not in page_of(tmp_path, one)


def test_a_run_that_was_cut_short_is_said(tmp_path):
    path = tmp_path / "forward.json"
    with suppress(KeyboardInterrupt), Record("forward", {}, output=path, quiet=True) as record:
        record.take(rate(64))
        raise KeyboardInterrupt
    text = page_of(tmp_path, path)
    assert "**forward was cut short: its figures are those it had by then.**" in text


def test_a_run_that_ended_before_its_first_figure_leaves_the_file_of_the_last_one(tmp_path):
    path = result_file(tmp_path, "forward", [rate(64)])
    before = path.read_text()
    with suppress(KeyboardInterrupt), Record("forward", {}, output=path, quiet=True):
        raise KeyboardInterrupt
    assert path.read_text() == before


def all_kinds():
    """Return figures for each picture, by suite."""
    draws = random.Random(1)
    sizes = [rate(size, path) for path in ("afxdp", "redirect") for size in (60, 512, 1514)]
    histogram = {"engine": "ours", "load": 50, "histogram": [[1, 5], [10, 80], [100, 15]]}
    curves = [
        Figure(
            name=f"{sweep} {value}",
            unit="ns/frame",
            samples=(draws.uniform(1, 2) * (1 + value),) * 2,
            case={"sweep": sweep, "value": value, "series": "hybrid"},
        )
        for sweep, values in {"flows": (1, 4096), "rules": (0, 10, 1000), "queues": (1, 2)}.items()
        for value in values
    ]
    return {
        "rates": sizes,
        "latency": [Figure(name="latency", unit="us", samples=(7.0,), case=histogram)],
        "ratios": [
            ratio("afxdp", [1, 2], [1, 1], against="xdpsock", goal=3),
            ratio("none", [1], [0], against="dead"),  # infinite: not to be drawn
        ],
        "growth": curves,
    }


@pytest.mark.parametrize("kind", ["rates", "latency", "ratios", "growth"])
def test_a_picture_is_drawn_of_figures_that_are_good_for_it_and_linked(tmp_path, kind):
    pytest.importorskip("matplotlib", reason="no matplotlib: pip install 'l2fwd[bench]'")
    text = page_of(tmp_path, result_file(tmp_path, "made", all_kinds()[kind]))
    assert f"![page-made-{kind}](page-made-{kind}.png)" in text
    drawn = list(tmp_path.glob("*.png"))
    assert [path.name for path in drawn] == [f"page-made-{kind}.png"]
    assert drawn[0].read_bytes().startswith(PNG)


def test_line_rates_ratios_and_goals_are_in_the_pictures():
    pictures = pytest.importorskip("bench.pictures", reason="no matplotlib")
    (axes,) = pictures.draw_rates(all_kinds()["rates"]).axes
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert [round(line.get_ydata()[0]) for line in dashed] == [14880952, 37202381, 59523810]
    assert {text.get_text() for text in axes.legend_.get_texts()} == {"afxdp", "redirect"}
    scales = [axes.get_xscale() for axes in pictures.draw_growth(all_kinds()["growth"]).axes]
    assert scales == ["log", "symlog", "linear"]
    (bars,) = pictures.draw_ratios(all_kinds()["ratios"][:1]).axes
    assert [bar.get_x() + bar.get_width() for bar in bars.patches] == [1.5]
    assert [3, 3] in [list(line.get_xdata()) for line in bars.lines]
    pictures.plt.close("all")


def test_lines_too_many_for_one_legend_are_in_panels():
    pictures = pytest.importorskip("bench.pictures", reason="no matplotlib")
    figures = [
        Figure(name=f"{path} {batch} {size}", unit="frames/s", samples=(1e6,),
               case={"path": path, "batch": batch, "bytes": size})
        for path in ("afxdp", "hybrid") for batch in range(10) for size in (64, 1514)
    ]  # fmt: skip
    panels = pictures.draw_rates(figures).axes
    assert [axes.get_title() for axes in panels] == ["path afxdp", "path hybrid"]
    pictures.plt.close("all")


def test_a_picture_that_an_earlier_page_had_goes_with_its_figures(tmp_path):
    pytest.importorskip("matplotlib", reason="no matplotlib")
    page_of(tmp_path, result_file(tmp_path, "made", all_kinds()["ratios"]))
    page_of(tmp_path, result_file(tmp_path, "made", all_kinds()["rates"]))
    assert [path.name for path in tmp_path.glob("*.png")] == ["page-made-rates.png"]


def test_without_matplotlib_the_page_has_all_but_pictures_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "bench.pictures", raising=False)
    monkeypatch.delattr("bench.pictures", raising=False)
    text = page_of(tmp_path, result_file(tmp_path, "forward", [rate(64), rate(1514)]))
    assert "**No pictures: " in text
    assert "pip install 'l2fwd[bench]'.**" in text
    assert "| afxdp 64 | 64 |" in text
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    ("frame_bytes", "frames_per_second"),
    [(60, 14880952), (46, 14880952), (64, 14204545), (1514, 812744)],
)
def test_line_rate_counts_fcs_preamble_and_gap_and_pads_short_frames(
    frame_bytes, frames_per_second
):
    assert round(line_rate(10e9, frame_bytes)) == frames_per_second


def test_the_line_rates_of_the_readme_are_exact_and_it_names_every_suite():
    text = (Path(report.__file__).parent / "README.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (.+) \|$", text, re.M)
    assert len(rows) == 8
    for with_fcs, in_memory, cells in rows:
        rates = [line_rate(bits, int(in_memory)) for bits in SPEEDS.values()]
        assert int(with_fcs) == int(in_memory) + 4
        assert cells.split(" | ") == [f"{rate:,.0f} ({1e9 / rate:.1f})" for rate in rates]
    for name in (*SUITES, *OTHERS):
        assert f"\n| `{name}` | " in text


@pytest.mark.parametrize(
    "spoil",
    [
        lambda fields: fields.pop("figures"),
        lambda fields: fields.update(figures=[{"name": "x"}]),
        lambda fields: fields["figures"][0].update(samples=[]),
        lambda fields: fields["figures"][0].update(samples=["1"]),
        lambda fields: fields["figures"][0].update(samples=7),
        lambda fields: fields["figures"][0].update(goal="fast"),
        lambda fields: fields["figures"][0].update(better="red"),
        lambda fields: fields["figures"][0].update(case=[1]),
        lambda fields: fields["figures"][0].update(unit=None),
        lambda fields: fields.update(suite=3),
        lambda fields: fields.update(environment=None),
        lambda fields: fields.update(began="today"),
        lambda fields: fields.update(skipped=[{"name": "x"}]),
        lambda fields: fields.update(notes=[1]),
    ],
)
def test_a_file_that_no_suite_wrote_is_refused_in_one_line_with_exit_code_2(
    tmp_path, capsys, spoil
):
    path = result_file(tmp_path, "forward", [rate(64)])
    fields = json.loads(path.read_text())
    spoil(fields)
    path.write_text(json.dumps(fields))
    capsys.readouterr()
    assert main(["report", str(path), "--output", str(tmp_path / "page.md")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"bench report: {path} is no result file: ")
    assert not (tmp_path / "page.md").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "\0"])
def test_what_is_no_object_is_refused(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="is no result file"):
        load(path)


def test_a_file_that_is_not_there_and_a_page_that_is_no_markdown_are_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path / "none.json")]) == 2
    assert "none.json: No such file or directory; name a file" in capsys.readouterr().err
    path = result_file(tmp_path, "forward", [rate(64)])
    with pytest.raises(ConfigError, match=r"name it PATH\.md"):
        report.write([load(path)], tmp_path / "page.html")


def test_two_files_of_one_suite_make_no_page(tmp_path):
    path = result_file(tmp_path, "forward", [rate(64)])
    with pytest.raises(ConfigError, match="two files are of suite forward; bench compare"):
        report.write([load(path), load(path)], tmp_path / "page.md")


def test_what_a_suite_writes_is_read_back_unchanged(tmp_path):
    figure = ratio("afxdp", [3.0], [2.0], against="xdpsock", goal=1.0, case={"bytes": 64})
    result = load(result_file(tmp_path, "peers", [figure], notes=["n"], skipped=[("s", "r")]))
    assert result.figures == [figure]
    assert (result.suite, result.notes, result.is_complete) == ("peers", ["n"], True)
    assert result.skipped == [{"name": "s", "reason": "r"}]
