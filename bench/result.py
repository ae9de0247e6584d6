"""Result files, read back: whoever wrote them, they hold what a page or a comparison needs."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from bench.figures import Figure, from_dict
from l2fwd.errors import ConfigError

_BETTER: Final = ("higher", "lower", "neither")
# Of two runs, what makes their figures hold for different things.
_MACHINE: Final = ("cpu", "cpus", "kernel", "machine", "command_line", "governors")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One run of a suite.

    Attributes
    ----------
    path : Path
    suite : str
    options, environment : mapping
    began : datetime
        UTC.
    elapsed : float
        Seconds.
    is_complete : bool
        False if it was cut short.
    figures : list of Figure
    skipped : list of mapping
        ``name`` and ``reason`` of each.
    notes : list of str
    """

    path: Path
    suite: str
    options: Mapping[str, Any]
    environment: Mapping[str, Any]
    began: datetime
    elapsed: float
    is_complete: bool
    figures: list[Figure]
    skipped: list[Mapping[str, str]]
    notes: list[str]

    @property
    def revision(self) -> str:
        return str(self.environment.get("revision", "unknown"))

    @property
    def machine(self) -> tuple[str, ...]:
        """What must be equal for figures to hold for one machine."""
        return tuple(str(self.environment.get(name)) for name in _MACHINE)


def load(path: Path) -> Result:
    """Read a result file.

    Raises
    ------
    ConfigError
        If it cannot be read, or is no result of a suite.
    """
    try:
        return _result_from(path, json.loads(path.read_text()))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; name a file that a suite wrote") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise ConfigError(
            f"{path} is no result file: {what}; name one that a suite wrote"
        ) from error


def differences(results: Iterable[Result]) -> list[str]:
    """Tell in what the runs differ that should be the same: a sentence each."""
    found = []
    results = list(results)
    for what, values in (
        ("revisions", {each.revision for each in results}),
        ("machines", {each.machine for each in results}),
    ):
        if len(values) > 1:
            said = f": {', '.join(sorted(map(str, values)))}" if what == "revisions" else ""
            found.append(f"The files are of different {what}{said}.")
    return found


def _result_from(path: Path, fields: Any) -> Result:
    return Result(
        path=path,
        suite=_text(fields["suite"]),
        options=dict(fields["options"]),
        environment=dict(fields["environment"]),
        began=datetime.fromtimestamp(fields["began"], UTC),
        elapsed=float(fields["elapsed"]),
        is_complete=fields["complete"] is True,
        figures=[_figure_from(each) for each in fields["figures"]],
        skipped=[
            {name: _text(each[name]) for name in ("name", "reason")} for each in fields["skipped"]
        ],
        notes=[_text(each) for each in fields["notes"]],
    )


def _figure_from(fields: Mapping[str, Any]) -> Figure:
    """Return a figure whose every field is of its type."""
    figure = from_dict(fields)
    for text in (figure.name, figure.unit, figure.against):
        _text(text)
    numbers = [*figure.samples, *([] if figure.goal is None else [figure.goal])]
    if not figure.samples or not all(_is_number(each) for each in numbers):
        raise ValueError(f"figure {figure.name!r} needs numbers as its samples and goal")
    if figure.better not in _BETTER:
        raise ValueError(f"figure {figure.name!r}: better is {figure.better!r}")
    if not isinstance(figure.case, dict):
        raise ValueError(f"figure {figure.name!r}: case is no object")
    return figure


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
