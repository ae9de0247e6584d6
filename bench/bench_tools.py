"""Receive only, send only, send back: ours against xdpsock, on one veth, copy mode.

Question: are rxdrop, txonly and macswap as fast as the modes -r, -t and -l of xdpsock?
Method:   the lab of ``bed.py``.  Each pair is one run of ours and one of xdpsock's, on one CPU;
          who goes first alternates.  Neither sleeps: that is how xdpsock is by default.  What is
          sent is counted by the link at the other end; what is received, by the tool itself.
          xdpsock is not installed by anything here: name it with --xdpsock.
Prints:   one JSON object last: by tool, mode and size frames a second (``pps``, median), and
          ``ratio`` ours / xdpsock, median of the pairs, higher is better, goal 1.0, with its
          ``spread`` (least, most).  Without --xdpsock only the frames a second.

    python bench/bench_tools.py [--xdpsock PATH] [--json] [--pairs N] [--seconds S] [--tiny]
    pytest -p benchmark bench/bench_tools.py
"""

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # pytest imports a bench without its directory

import bed as bench

NAME: Final = "tools_pps"
GOAL: Final = 1.0
SIZES: Final = (64, 1514)
MODES: Final = ("native", "skb")
PAIRS: Final = 10
SECONDS: Final = 2.0
TINY_SECONDS: Final = 0.3
QUIET_WAIT_SECONDS: Final = 3.0
NOBODY: Final = "02:00:00:00:00:77"
START_SECONDS: Final = 10.0
WARM_UP_SECONDS: Final = 0.3

# Verb -> xdpsock's letter, namespace and link it works on, and where its frames are counted.
TOOLS: Final = {
    "rxdrop": ("-r", "fwd", "f0", None),
    "txonly": ("-t", "fwd", "f1", ("sink", "s0")),
    "macswap": ("-l", "fwd", "f0", ("gen", "g0")),
}


def command_of(tool: str, mode: str, size: int, xdpsock: str | None) -> list[str]:
    """Return the command line of one run, ours if there is no ``xdpsock``."""
    letter, _, link, _ = TOOLS[tool]
    # To nobody: the sink's stack forgets both at once.  xdpsock counts the check sequence in.
    sized = ["-G", NOBODY, "-s", str(size + 4 * (xdpsock is not None))] if tool == "txonly" else []
    if xdpsock is None:
        line = [sys.executable, "-m", "l2fwd", tool, link, "--mode", mode, "--bind", "copy"]
        return [*line, "-q", "0", "--busy-poll", "--json", "-n", "0.1", *sized]
    attach = "-N" if mode == "native" else "-S"
    return [
        "stdbuf",
        "-oL",
        xdpsock,
        letter,
        "-i",
        link,
        "-q",
        "0",
        attach,
        "-c",
        "-n",
        "1",
        *sized,
    ]


def received_by(output: Path) -> tuple[float, int] | None:
    """Return the time and count of the last report in ``output``, if there is one."""
    lines = output.read_text(errors="replace").splitlines()[:-1]
    for line in reversed(lines):
        if line.startswith('{"event": "stats"'):
            event = json.loads(line)
            return event["time"], event["rx_packets"]
    # xdpsock: "rx  PPS  PACKETS", once a second.
    found = [int(m[1].replace(",", "")) for m in map(_XDPSOCK_RX.match, lines) if m]
    return (float(len(found)), found[-1]) if found else None


_XDPSOCK_RX: Final = re.compile(r"rx\s+[\d,]+\s+([\d,]+)")


def own_rate(output: Path, seconds: float) -> float:
    """Return the packets a second between two reports of a tool itself, ``seconds`` apart."""
    first = wait_for(lambda: received_by(output))
    while (last := wait_for(lambda: received_by(output)))[0] < first[0] + seconds:
        time.sleep(0.05)
    return (last[1] - first[1]) / (last[0] - first[0])


def wait_for(look: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + START_SECONDS
    while not (found := look()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"nothing moved in {START_SECONDS:g} s")
        time.sleep(0.02)
    return found


def rate(bed: Any, tool: str, mode: str, size: int, seconds: float, xdpsock: str | None) -> float:
    """Return the frames a second of one run."""
    _, role, _, counted = TOOLS[tool]
    folder = str(Path(xdpsock).resolve().parent) if xdpsock else None
    with ExitStack() as undo:
        output = undo.enter_context(tempfile.NamedTemporaryFile("ab"))
        engine = bench.process(
            getattr(bed, role), command_of(tool, mode, size, xdpsock),
            output=output, folder=folder, cpu=bench.ENGINE_CPU,
        )  # fmt: skip
        undo.enter_context(engine)
        if counted is None:
            wait_for(lambda: Path(output.name).stat().st_size)
        if tool != "txonly":
            undo.enter_context(bench.generator(bed, size))
        if counted is None:
            return own_rate(Path(output.name), max(seconds, 1.0) if xdpsock else seconds)
        where = (getattr(bed, counted[0]), counted[1])
        start = bench.received(*where)
        wait_for(lambda: bench.received(*where) > start + 1000)
        time.sleep(WARM_UP_SECONDS)
        began, before = time.monotonic(), bench.received(*where)
        time.sleep(seconds)
        return (bench.received(*where) - before) / (time.monotonic() - began)


def measure(
    tool: str, mode: str, size: int, pairs: int, seconds: float, xdpsock: str | None
) -> dict[str, Any]:
    """Run ours and xdpsock by turns; return the figures of one tool, mode and size."""
    runs: list[tuple[float, float]] = []
    noisy = 0
    for i in range(pairs):
        with bench.bench_bed() as bed:
            noisy += not bench.wait_until_quiet(QUIET_WAIT_SECONDS if pairs > 1 else 0.0)
            order = (None, xdpsock) if i % 2 else (xdpsock, None)
            found = {
                each: rate(bed, tool, mode, size, seconds, each)
                for each in (order if xdpsock else (None,))
            }
            runs.append((found[None], found.get(xdpsock, 0.0)))
    figures: dict[str, Any] = {"pps": round(statistics.median(own for own, _ in runs))}
    if xdpsock:
        ratios = [own / peer for own, peer in runs]
        figures |= {
            "xdpsock_pps": round(statistics.median(peer for _, peer in runs)),
            "ratio": round(statistics.median(ratios), 3),
            "spread": [round(min(ratios), 3), round(max(ratios), 3)],
            "noisy_pairs": noisy,
        }
    return figures


def report(pairs: int, seconds: float, xdpsock: str | None, tools: list[str]) -> dict[str, Any]:
    """Measure every tool, mode and size."""
    return {
        "name": NAME,
        "goal": GOAL,
        "pairs": pairs,
        "seconds": seconds,
        "tools": {
            tool: {
                mode: {
                    size: measure(tool, mode, size, pairs, seconds, xdpsock) for size in SIZES
                }
                for mode in MODES
            }
            for tool in tools
        },
    }  # fmt: skip


@pytest.mark.parametrize("tool", TOOLS)
def test_tool_rate(benchmark: Any, tool: str) -> None:
    """pytest-benchmark's table is per run; frames a second are in extra_info."""
    arguments = (tool, "native", 64, 1, TINY_SECONDS, None)
    figures = benchmark.pedantic(measure, args=arguments, rounds=1)
    benchmark.extra_info.update(figures)
    assert figures["pps"] > 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--xdpsock", metavar="PATH", help="the peer")
    parser.add_argument("--tool", action="append", choices=TOOLS, help="only these")
    parser.add_argument("--json", action="store_true", help="print only one JSON object")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="runs of each (%(default)s)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a run (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="run once, without a meaning")
    arguments = parser.parse_args()
    if arguments.pairs < 1 or not 0 < arguments.seconds < 3600:
        parser.error("pairs must be at least 1, seconds in (0, 3600)")
    if arguments.xdpsock and not Path(arguments.xdpsock).is_file():
        parser.error(f"xdpsock: no file {arguments.xdpsock}")
    pairs, seconds = arguments.pairs, arguments.seconds
    if arguments.tiny or not arguments.xdpsock:
        pairs, seconds = 1, TINY_SECONDS if arguments.tiny else seconds
    result = report(pairs, seconds, arguments.xdpsock, arguments.tool or list(TOOLS))
    if not arguments.json:
        for tool, modes in result["tools"].items():
            for mode, sizes in modes.items():
                for size, figures in sizes.items():
                    print(_line(tool, mode, size, figures))
    print(json.dumps(result))


def _line(tool: str, mode: str, size: int, figures: dict[str, Any]) -> str:
    line = f"{tool:8} {mode:6} {size:5} bytes  ours {figures['pps'] / 1e6:.3f} Mpps"
    if "ratio" not in figures:
        return line
    low, high = figures["spread"]
    return (
        f"{line}, xdpsock {figures['xdpsock_pps'] / 1e6:.3f}, "
        f"ratio {figures['ratio']:.3f} ({low:.3f} to {high:.3f})"
    )


if __name__ == "__main__":
    main()
