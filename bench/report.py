"""Result files into one page: where, goals, every suite's figures, pictures."""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from bench.figures import Figure
from bench.record import shown
from bench.result import Result, differences, load
from l2fwd.errors import ConfigError

DEFAULT_PAGE: Final = Path("bench/results/report.md")
# In a case, but no dimension: what pictures draw.
NOT_COLUMNS: Final = ("histogram",)
_SIZES: Final = (
    "`bytes` are those of a frame in memory: with its Ethernet header, without the 4 bytes of FCS."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="what suites wrote")
    parser.add_argument("--output", type=Path, default=DEFAULT_PAGE, metavar="PATH.md",
                        help=f"the page; pictures go beside it ({DEFAULT_PAGE})")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Write the page; print where it is."""
    results = [load(path) for path in options.files]
    write(results, options.output)
    print(options.output)
    return 0


def write(results: Sequence[Result], page: Path) -> None:
    """Write the page and its pictures.

    Raises
    ------
    ConfigError
        If the page is named as no Markdown file, or two results are of one suite.
    """
    if page.suffix != ".md":
        raise ConfigError(f"{page}: the page is Markdown; name it PATH.md")
    suites = [result.suite for result in results]
    for suite in suites:
        if suites.count(suite) > 1:
            raise ConfigError(f"two files are of suite {suite}; bench compare tells them apart")
    page.parent.mkdir(parents=True, exist_ok=True)
    pictures, missing = _draw(results, page)
    page.write_text("\n".join(_page(results, pictures, missing)) + "\n")


def _draw(results: Sequence[Result], page: Path) -> tuple[dict[str, list[Path]], str]:
    """Return the pictures by suite, and why there are none, if so."""
    try:
        from bench import pictures
    except ImportError as error:
        return {}, f"No pictures: {error}; pip install 'l2fwd[bench]'."
    return {result.suite: pictures.draw(result, page) for result in results}, ""


def _page(
    results: Sequence[Result], pictures: dict[str, list[Path]], missing: str
) -> Iterator[str]:
    yield "# Benches"
    yield ""
    for line in (*differences(results), *_cut_short(results), *([missing] if missing else [])):
        yield f"**{line}**"
        yield ""
    yield from _runs(results)
    yield from _environments(results)
    yield from _nics(results)
    yield from _goals(results)
    for result in results:
        yield from _suite(result, pictures.get(result.suite, []))
    yield from _skipped(results)
    yield from _notes(results)


def _cut_short(results: Iterable[Result]) -> Iterator[str]:
    for result in results:
        if not result.is_complete:
            yield f"{result.suite} was cut short: its figures are those it had by then."


def _runs(results: Iterable[Result]) -> Iterator[str]:
    yield from section("Runs")
    yield from table(
        ("suite", "began (UTC)", "seconds", "level", "rounds", "file"),
        (
            (
                result.suite,
                f"{result.began:%Y-%m-%d %H:%M}",
                f"{result.elapsed:.0f}",
                result.options.get("level", ""),
                result.options.get("rounds", ""),
                result.path.name,
            )
            for result in results
        ),
    )


def _environments(results: Sequence[Result]) -> Iterator[str]:
    """Yield a table of facts; where runs differ, each says its own."""
    yield from section("Environment")
    names = dict.fromkeys(name for result in results for name in result.environment)
    yield from table(
        ("fact", "value"),
        ((name, _shared_fact(name, results)) for name in names if name != "links"),
    )


def _shared_fact(name: str, results: Sequence[Result]) -> str:
    values = {result.suite: _fact(result.environment.get(name)) for result in results}
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return "; ".join(f"{suite}: {value}" for suite, value in values.items())


def _fact(value: Any) -> str:
    """Return a value of the environment as text."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_fact(each)}" for key, each in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_fact, value)) or "none"
    return "" if value is None else str(value)


def _nics(results: Iterable[Result]) -> Iterator[str]:
    """Yield a column a NIC; a NIC that another suite found otherwise has one more."""
    columns: dict[str, dict[str, Any]] = {}
    for result in results:
        for name, facts in result.environment.get("links", {}).items():
            if facts not in columns.values():
                columns[f"{name} ({result.suite})" if name in columns else name] = facts
    if not columns:
        return
    yield from section("NICs")
    names = dict.fromkeys(name for facts in columns.values() for name in facts)
    yield from table(
        ("fact", *columns),
        ((name, *(_fact(facts.get(name)) for facts in columns.values())) for name in names),
    )


def _goals(results: Iterable[Result]) -> Iterator[str]:
    found = [
        (result, figure)
        for result in results
        for figure in result.figures
        if figure.goal is not None
    ]
    yield from section("Goals")
    met = sum(bool(figure.is_met) for _, figure in found)
    yield f"{met} of {len(found)} met." if found else "No figure has a goal."
    yield ""
    if found:
        yield from table(
            ("suite", "figure", "goal", "median", "quartiles", "against", "verdict"),
            (
                (
                    result.suite,
                    figure.name,
                    f"{'<=' if figure.better == 'lower' else '>='} {figure.goal:g}",
                    shown(figure.median, figure.unit),
                    spread(figure),
                    figure.against,
                    "met" if figure.is_met else "**missed**",
                )
                for result, figure in found
            ),
        )


def _suite(result: Result, pictures: Sequence[Path]) -> Iterator[str]:
    """Yield a suite: pictures, and a table for each set of dimensions."""
    yield from section(result.suite)
    if any("bytes" in figure.case for figure in result.figures):
        yield _SIZES
        yield ""
    for picture in pictures:
        yield f"![{picture.stem}]({picture.name})"
        yield ""
    kinds: dict[tuple[str, ...], list[Figure]] = {}
    for figure in result.figures:
        kinds.setdefault(dimensions(figure), []).append(figure)
    for names, figures in kinds.items():
        yield from _figures(names, figures)
    if not result.figures:
        yield "No figures."
        yield ""


def _figures(names: Sequence[str], figures: Sequence[Figure]) -> Iterator[str]:
    """Yield the figures of one set of dimensions; what is the same in all is said once."""
    same = [
        name for name in names
        if len(figures) > 1 and len({str(figure.case[name]) for figure in figures}) == 1
    ]  # fmt: skip
    if same:
        yield "All with " + ", ".join(f"{name} {figures[0].case[name]}" for name in same) + ":"
        yield ""
    columns = [name for name in names if name not in same]
    has_peers = any(figure.against for figure in figures)
    yield from table(
        ("figure", *columns, "median", "quartiles", "samples", *(["against"] if has_peers else [])),
        (
            (
                figure.name,
                *(figure.case[name] for name in columns),
                shown(figure.median, figure.unit),
                spread(figure),
                len(figure.samples),
                *([figure.against] if has_peers else []),
            )
            for figure in figures
        ),
    )


def _skipped(results: Iterable[Result]) -> Iterator[str]:
    rows = [
        (result.suite, each["name"], each["reason"])
        for result in results
        for each in result.skipped
    ]
    if rows:
        yield from section("Skipped")
        yield from table(("suite", "case", "reason"), rows)


def _notes(results: Iterable[Result]) -> Iterator[str]:
    lines = [f"- {result.suite}: {cell(note)}" for result in results for note in result.notes]
    if lines:
        yield from section("Notes")
        yield from lines
        yield ""


def dimensions(figure: Figure) -> tuple[str, ...]:
    """Return what a figure was measured at, by name."""
    return tuple(name for name in figure.case if name not in NOT_COLUMNS)


def spread(figure: Figure) -> str:
    """Return the quartiles, as text; nothing for a single sample."""
    if len(figure.samples) < 2:
        return ""
    low, high = figure.spread
    return f"{shown(low, figure.unit)} to {shown(high, figure.unit)}"


def section(title: str) -> Iterator[str]:
    yield f"## {cell(title)}"
    yield ""


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Yield a Markdown table, and the empty line behind it."""
    yield f"| {' | '.join(map(cell, head))} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(map(cell, row))} |"
    yield ""


def cell(value: object) -> str:
    """Return text that stays within a cell.

    >>> cell("a|b\\nc")
    'a\\\\|b c'
    """
    return " ".join(str(value).split()).replace("|", "\\|")
