"""What came of one run of a suite: shown as it comes, written to a file whatever happens."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from bench.environment import describe
from bench.figures import RATIO, Figure

_SCALES: Final = ((1e6, " M"), (1e3, " k"), (1.0, " "))


class Record:
    """Figures of one run of a suite; a context manager that writes them at its end.

    Parameters
    ----------
    suite : str
    options : mapping
        As given on the command line.
    output : Path, optional
        The file; also written if the run is cut short, with ``complete`` false.  A run that
        ended before its first figure leaves the file as it was.
    quiet : bool
        Show nothing but the JSON object.
    links : sequence of str
        The NICs, which the environment tells of.
    """

    def __init__(
        self,
        suite: str,
        options: Mapping[str, Any],
        *,
        output: Path | None,
        quiet: bool,
        links: Sequence[str] = (),
    ) -> None:
        self.figures: list[Figure] = []
        self.skipped: list[dict[str, str]] = []
        self.notes: list[str] = []
        self._suite, self._options = suite, dict(options)
        self._output, self._quiet = output, quiet
        self._began = time.time()
        self._environment = describe(links)
        self._is_complete = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self._is_complete = kind is None
        text = json.dumps(self.as_dict())
        if self._output and (self._is_complete or self.figures):
            self._output.parent.mkdir(parents=True, exist_ok=True)
            self._output.write_text(text + "\n")
        if self._quiet:
            print(text, flush=True)

    def take(self, figure: Figure) -> None:
        """Keep a figure, and show it."""
        self.figures.append(figure)
        self.say(row(figure))

    def skip(self, name: str, reason: str) -> None:
        """Keep what was not measured, and why."""
        self.skipped.append({"name": name, "reason": reason})
        self.say(f"{name}: skipped: {reason}")

    def note(self, text: str) -> None:
        """Keep what a reader of the figures should know."""
        self.notes.append(text)
        self.say(f"note: {text}")

    def as_dict(self) -> dict[str, Any]:
        """Return it as the files have it; ``ratios`` repeats those of the figures."""
        return {
            "suite": self._suite,
            "options": self._options,
            "environment": self._environment,
            "began": self._began,
            "elapsed": round(time.time() - self._began, 1),
            "complete": self._is_complete,
            "figures": [figure.as_dict() for figure in self.figures],
            "ratios": [brief(figure) for figure in self.figures if figure.unit == RATIO],
            "skipped": self.skipped,
            "notes": self.notes,
        }

    def say(self, line: str) -> None:
        """Show a line that the file need not keep."""
        print(line, file=sys.stderr if self._quiet else sys.stdout, flush=True)


def brief(figure: Figure) -> dict[str, Any]:
    """Return a ratio as scripts want it."""
    whole = figure.as_dict()
    return {
        "name": whole["name"],
        "ratio": whole["median"],
        "spread": whole["spread"],
        "goal": whole["goal"],
    }


def row(figure: Figure) -> str:
    """Return a figure in one line."""
    low, high = figure.spread
    text = f"{figure.name}: {shown(figure.median, figure.unit)}"
    if len(figure.samples) > 1:
        text += f" ({shown(low, figure.unit)} to {shown(high, figure.unit)})"
    if figure.against:
        text += f" against {figure.against}"
    if figure.goal is not None:
        sign = "<=" if figure.better == "lower" else ">="
        text += f", goal {sign} {figure.goal:g}: {'met' if figure.is_met else 'missed'}"
    return text


def shown(value: float, unit: str) -> str:
    """Return a value with its unit: 1.83 Mframes/s, 0.97 x."""
    if not unit.endswith("/s"):
        return f"{value:.4g} {unit}"
    scale, prefix = next((each for each in _SCALES if abs(value) >= each[0]), _SCALES[-1])
    return f"{value / scale:.3f}{prefix}{unit}"
