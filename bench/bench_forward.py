"""Frames a second from one veth to another, copy mode: ours against the peers found here.

Question: does our engine forward faster than every peer on the same bed?
Method:   the lab of ``bed.py``; the generator offers more than any engine carries, so the
          engine's CPU is the limit; frames are counted at the sink, never in the engine.
          Each pair is one run of ours and one of the peer; who goes first alternates.
          Peers: ``dpdk-testpmd`` over net_af_xdp (apt install dpdk-dev) where installed, and
          a Python loop over AF_PACKET.
Prints:   one JSON object last: frames a second (``pps``, median) by size, and by peer and size
          ``ratio`` ours / peer, median of the pairs, higher is better, goal above 1.0, with its
          ``spread`` (least, most).  ``noisy_pairs`` ran while something else used a CPU.

    python bench/bench_forward.py [--json] [--pairs N] [--seconds S] [--tiny]
    pytest -p benchmark bench/bench_forward.py
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any, Final

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # pytest imports a bench without its directory

import bed as bench

NAME: Final = "forward_pps"
GOAL: Final = 1.0
SIZES: Final = (64, 1514)
PAIRS: Final = 10
SECONDS: Final = 2.0
TINY_SECONDS: Final = 0.2
QUIET_WAIT_SECONDS: Final = 3.0


def measure(size: int, pairs: int, seconds: float, quiet_wait: float) -> dict[str, Any]:
    """Run ours and every peer by turns; return the figures of one frame size."""
    own: list[float] = []
    runs: dict[str, list[tuple[float, float]]] = {peer: [] for peer in bench.peers()}
    noisy = 0
    with bench.bench_bed() as bed:

        def rate(engine: Any) -> float:
            return bench.forward_rate(engine(bed), bed, size, seconds)

        for peer, engine in bench.peers().items():
            for i in range(pairs):
                noisy += not bench.wait_until_quiet(quiet_wait)
                order = (bench.ours, engine) if i % 2 else (engine, bench.ours)
                found = {each: rate(each) for each in order}
                own.append(found[bench.ours])
                runs[peer].append((found[bench.ours], found[engine]))
    return {
        "pps": round(statistics.median(own)),
        "noisy_pairs": noisy,
        "peers": {peer: _compare(each) for peer, each in runs.items()},
    }


def _compare(runs: list[tuple[float, float]]) -> dict[str, Any]:
    ratios = [ours / peer for ours, peer in runs]
    return {
        "pps": round(statistics.median(peer for _, peer in runs)),
        "ratio": round(statistics.median(ratios), 3),
        "spread": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def report(pairs: int, seconds: float, quiet_wait: float) -> dict[str, Any]:
    """Measure every size, and turn the figures so that peers are looked up by name."""
    by_size = {size: measure(size, pairs, seconds, quiet_wait) for size in SIZES}
    return {
        "name": NAME,
        "goal": GOAL,
        "pairs": pairs,
        "seconds": seconds,
        "sizes": {size: {"pps": figures["pps"]} for size, figures in by_size.items()},
        "peers": {
            peer: {size: figures["peers"][peer] for size, figures in by_size.items()}
            for peer in bench.peers()
        },
        "noisy_pairs": sum(figures["noisy_pairs"] for figures in by_size.values()),
    }


@pytest.mark.parametrize("size", SIZES)
def test_forward_rate(benchmark: Any, size: int) -> None:
    """pytest-benchmark's table is per run; frames a second and ratios are in extra_info."""
    figures = benchmark.pedantic(measure, args=(size, 1, TINY_SECONDS, 0.0), rounds=1)
    benchmark.extra_info.update(figures)
    assert figures["pps"] > 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="print only one JSON object")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="runs of each (%(default)s)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a run (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="run once, without a meaning")
    arguments = parser.parse_args()
    if arguments.pairs < 1 or not 0 < arguments.seconds < 3600:
        parser.error("pairs must be at least 1, seconds in (0, 3600)")
    if arguments.tiny:
        result = report(1, TINY_SECONDS, 0.0)
    else:
        result = report(arguments.pairs, arguments.seconds, QUIET_WAIT_SECONDS)
    if not arguments.json:
        for size, figures in result["sizes"].items():
            print(f"{size:5} bytes  ours {figures['pps'] / 1e6:.3f} Mpps")
        for peer, sizes in result["peers"].items():
            for size, figures in sizes.items():
                low, high = figures["spread"]
                print(
                    f"{size:5} bytes  {peer} {figures['pps'] / 1e6:.3f} Mpps, "
                    f"ratio {figures['ratio']:.3f} ({low:.3f} to {high:.3f})"
                )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
