"""Pictures of one result, beside its page: rates by size, latency, ratios, growth."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

from bench.figures import RATIO, Figure
from bench.result import Result
from bench.wire import SPEEDS, line_rate

_DPI: Final = 110
_DECADE: Final = 10.0
_MOST_LABELS: Final = 12  # lines that one legend can tell apart
_RATES: Final = ("frames/s", "packets/s")  # what a wire's rate can be held against
_OF_SIZES: Final = ("bytes", "size", "generator")  # what differs where sizes do
_MIXED: Final = "imix"
_COLUMNS: Final = 2
_PANEL: Final = (6.5, 4.0)  # inches
_LEAST_RATIO: Final = 1 / 8  # what is below is drawn as that; its number stands beside it
_NO_DIMENSIONS: Final = ("histogram", "percentile")  # of a case; they tell no lines apart


def draw(result: Result, page: Path) -> list[Path]:
    """Draw whatever the figures of a result are good for; return the files."""
    figures = [figure for figure in result.figures if math.isfinite(figure.median)]
    found = []
    for kind, drawing in (
        ("rates", draw_rates),
        ("latency", draw_latency),
        ("ratios", draw_ratios),
        ("growth", draw_growth),
    ):
        target = page.with_name(f"{page.stem}-{result.suite}-{kind}.png")
        picture = drawing(figures)
        if picture is None:
            target.unlink(missing_ok=True)  # of an earlier run: no page links to it
            continue
        picture.suptitle(f"{result.suite}, {result.revision}")
        picture.savefig(target, dpi=_DPI)
        plt.close(picture)
        found.append(target)
    return found


def draw_rates(figures: Sequence[Figure]) -> Any:
    """Draw frames a second by frame size, below what wires carry; None without such figures."""
    chosen = _of_several_sizes(figures)
    if not chosen:
        return None
    sizes = sorted({int(figure.case["bytes"]) for figure in chosen})
    panels = _panels(chosen, hidden=_OF_SIZES)
    picture, grid = _grid(len(panels), min(_COLUMNS, len(panels)))
    for axes, (title, some) in zip(grid, panels.items(), strict=False):
        _draw_lines(axes, some, "bytes", hidden=_OF_SIZES)
        _draw_line_rates(axes, sizes)
        axes.set_title(title)
        if _spans_decades(sizes):
            axes.set_xscale("log")
        axes.set_xlabel("bytes of a frame (without FCS); dashed: line rate")
        axes.set_ylabel(", ".join(sorted({figure.unit for figure in some})))
        axes.set_yscale("log")
    return picture


def _of_several_sizes(figures: Sequence[Figure]) -> list[Figure]:
    """Return the rates that were taken with more than one size of frames, all else being equal."""
    rates = [
        figure
        for figure in figures
        if figure.unit in _RATES
        and _is_number(figure.case.get("bytes"))
        and "sweep" not in figure.case
        and figure.case.get("size") != _MIXED
    ]
    labels = _labels(rates, hidden=_OF_SIZES)
    sizes: dict[str, set[int]] = {}
    for figure, label in zip(rates, labels, strict=True):
        sizes.setdefault(label, set()).add(figure.case["bytes"])
    return [each for each, label in zip(rates, labels, strict=True) if len(sizes[label]) > 1]


def _grid(count: int, columns: int) -> tuple[Any, list[Any]]:
    """Return a picture and its first ``count`` panels, row by row; the rest stays empty."""
    rows = -(-count // columns)
    picture, grid = plt.subplots(
        rows, columns, figsize=(_PANEL[0] * columns, _PANEL[1] * rows + 0.5),
        layout="constrained", squeeze=False,
    )  # fmt: skip
    for axes in grid.flat[count:]:
        axes.remove()
    return picture, list(grid.flat[:count])


def _draw_line_rates(axes: Any, sizes: Sequence[int]) -> None:
    between = range(sizes[0], sizes[-1] + 1)  # no straight lines: the rate goes with 1 / size
    for name, bits in SPEEDS.items():
        rates = [line_rate(bits, size) for size in between]
        axes.plot(between, rates, linestyle="--", color="gray", linewidth=1)
        axes.annotate(name, (between[-1], rates[-1]), color="gray", ha="right", va="bottom")


def draw_latency(figures: Sequence[Figure]) -> Any:
    """Draw how many packets took how long; None without a histogram."""
    chosen = [figure for figure in figures if figure.case.get("histogram")]
    if not chosen:
        return None
    picture, axes = plt.subplots(figsize=(11, 6), layout="constrained")
    labels = _labels(chosen, hidden=("histogram", "percentile"))
    for figure, label in zip(chosen, labels, strict=True):
        bounds, counts = zip(*sorted(figure.case["histogram"]), strict=True)
        shares = [100 * count / (sum(counts) or 1) for count in counts]
        axes.step(bounds, shares, where="pre", label=label)
    axes.set_xscale("log")
    axes.set_xlabel("us, upper bound")
    axes.set_ylabel("% of the packets")
    _legend(axes)
    return picture


def draw_ratios(figures: Sequence[Figure]) -> Any:
    """Draw ratios as bars with quartiles, and the goals; None without one."""
    chosen = [figure for figure in figures if figure.unit == RATIO]
    if not chosen:
        return None
    picture, axes = plt.subplots(figsize=(11, 0.3 * len(chosen) + 1.5), layout="constrained")
    for place, figure in enumerate(chosen):
        low, high = (max(_LEAST_RATIO, each) for each in _finite_spread(figure))
        median = max(_LEAST_RATIO, figure.median)
        color = "tab:orange" if figure.is_met is False else "tab:blue"
        errors = [[median - low], [high - median]]
        axes.barh(place, median - 1, left=1, xerr=errors, capsize=3, color=color)
        if figure.goal is not None:
            axes.plot([figure.goal] * 2, [place - 0.45, place + 0.45], color="tab:red")
        axes.text(1.01, place, f"{figure.median:.3g}", va="center",
                  transform=axes.get_yaxis_transform())  # fmt: skip
    axes.axvline(1, color="gray", linewidth=1)
    axes.set_yticks(range(len(chosen)), [_ratio_label(figure) for figure in chosen])
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("ours / theirs, quartiles; red: goal, orange: missed")
    return picture


def draw_growth(figures: Sequence[Figure]) -> Any:
    """Draw figures against what was swept, a panel a sweep and unit; None without one."""
    panels: dict[tuple[str, str], list[Figure]] = {}
    for figure in figures:
        if "sweep" in figure.case and _is_number(figure.case.get("value")):
            panels.setdefault((str(figure.case["sweep"]), figure.unit), []).append(figure)
    if not panels:
        return None
    units = {unit for _, unit in panels}
    picture, grid = _grid(len(panels), len(units))
    for axes, ((sweep, unit), chosen) in zip(grid, panels.items(), strict=True):
        _draw_lines(axes, chosen, "value", hidden=("sweep",))
        axes.set_xlabel(sweep)
        axes.set_ylabel(unit)
        _set_scales(axes, chosen)
    return picture


def _draw_lines(axes: Any, figures: Sequence[Figure], along: str, hidden: Sequence[str]) -> None:
    """Draw medians with quartiles along a dimension, a line for each set of the others."""
    lines: dict[str, list[Figure]] = {}
    for figure, label in zip(figures, _labels(figures, (along, *hidden)), strict=True):
        lines.setdefault(label, []).append(figure)
    for label, line in lines.items():
        line.sort(key=lambda figure: figure.case[along])
        places = [figure.case[along] for figure in line]
        medians = [figure.median for figure in line]
        spreads = [_finite_spread(figure) for figure in line]
        axes.plot(places, medians, marker="o", markersize=4, label=label)
        axes.fill_between(places, *zip(*spreads, strict=True), alpha=0.2)
    _legend(axes)


def _panels(figures: Sequence[Figure], hidden: Sequence[str]) -> dict[str, list[Figure]]:
    """Return the figures by panel: one, or as many as the first dimension has values."""
    varying = _varying(figures, hidden)
    if len(set(_labels(figures, hidden))) <= _MOST_LABELS:
        return {"": list(figures)}
    panels: dict[str, list[Figure]] = {}
    for figure in figures:
        panels.setdefault(f"{varying[0]} {figure.case.get(varying[0], '')}", []).append(figure)
    return panels


def _labels(figures: Sequence[Figure], hidden: Sequence[str]) -> list[str]:
    """Name each figure by those of its dimensions that differ between the figures."""
    varying = _varying(figures, hidden)
    return [_joined((name, figure.case[name]) for name in varying if name in figure.case)
            for figure in figures]  # fmt: skip


def _varying(figures: Sequence[Figure], hidden: Sequence[str]) -> list[str]:
    """Return the dimensions that differ between the figures, in the order of the cases."""
    names = dict.fromkeys(name for figure in figures for name in figure.case)
    return [
        name
        for name in names
        if name not in (*hidden, *_NO_DIMENSIONS)
        and len({str(figure.case.get(name)) for figure in figures}) > 1
    ]


def _finite_spread(figure: Figure) -> tuple[float, float]:
    low, high = (each if math.isfinite(each) else figure.median for each in figure.spread)
    return low, high


def _joined(pairs: Iterable[tuple[str, Any]]) -> str:
    """Return values that speak for themselves alone, and numbers with their names."""
    return ", ".join(
        f"{name} {value}" if _is_number(value) else str(value) for name, value in pairs
    )


def _ratio_label(figure: Figure) -> str:
    if not figure.against or figure.name.endswith(figure.against):
        return figure.name
    return f"{figure.name} / {figure.against}"


def _set_scales(axes: Any, figures: Sequence[Figure]) -> None:
    """Make axes logarithmic where values span decades; zero, where there is one, stays in sight."""
    places = [figure.case["value"] for figure in figures]
    if _spans_decades(places):
        axes.set_xscale("symlog", linthresh=1) if min(places) <= 0 else axes.set_xscale("log")
    else:
        axes.set_xticks(sorted(set(places)))
    if _spans_decades([figure.median for figure in figures]):
        axes.set_yscale("log")


def _spans_decades(values: Sequence[float]) -> bool:
    above = [value for value in values if value > 0]
    return bool(above) and max(above) >= _DECADE * min(above)


def _legend(axes: Any) -> None:
    labels = axes.get_legend_handles_labels()[1]
    if any(labels):
        small = "x-small" if len(labels) > _MOST_LABELS else "small"
        axes.legend(fontsize=small, ncols=1 + len(labels) // _MOST_LABELS)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
