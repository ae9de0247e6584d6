"""Draw what ``bench_library.py --output`` wrote: packets a second, and ratios with their spread.

python bench/picture.py FILE.json [FILE.png]
"""

import json
import sys
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

CONTENDERS: Final = {"ours": "l2fwd", "af_packet": "AF_PACKET", "scapy": "scapy"}
ALONE: Final = "the sender alone: "
BAR: Final = 0.27


def rows_of(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the rows of the table by name, those of the sender alone after all others."""
    cases = result["cases"]
    alone = {ALONE + name: row["alone"] for name, row in cases.items() if "alone" in row}
    return cases | alone


def draw_rates(axes: Any, rows: dict[str, dict[str, Any]]) -> None:
    for i, (contender, label) in enumerate(CONTENDERS.items()):
        rates = [
            row["pps"] if contender == "ours" else row["rivals"][contender]["pps"]
            for row in rows.values()
        ]
        axes.barh([place + (i - 1) * BAR for place in range(len(rows))], rates, BAR, label=label)
    axes.set_xscale("log")
    axes.set_xlabel("packets/s on one core, log scale")
    axes.legend()


def draw_ratios(axes: Any, rows: dict[str, dict[str, Any]]) -> None:
    for place, row in enumerate(rows.values()):
        figures = row["rivals"]["af_packet"]
        low, high = figures["spread"]
        error = [[figures["ratio"] - low], [high - figures["ratio"]]]
        axes.barh(place, figures["ratio"], 3 * BAR, xerr=error, capsize=3, color="tab:blue")
        if row["goal"]:
            axes.plot([row["goal"]] * 2, [place - 0.45, place + 0.45], color="tab:red")
    axes.set_xscale("log")
    axes.set_xlim(left=0.5)
    axes.set_xlabel("times AF_PACKET: median and quartiles; goal in red")


def draw(result: dict[str, Any], target: Path) -> None:
    rows = rows_of(result)
    figure, (rates, ratios) = plt.subplots(
        1, 2, sharey=True, figsize=(14, 0.55 * len(rows) + 1.5), layout="constrained"
    )
    draw_rates(rates, rows)
    draw_ratios(ratios, rows)
    rates.set_yticks(range(len(rows)), rows)
    rates.invert_yaxis()
    some = next(iter(rows.values()))
    figure.suptitle(
        f"{some['packet_bytes']}-byte packets on {some['driver']}, {some['mode']}, {some['bind']}; "
        f"{result['rounds']} rounds"
    )
    figure.savefig(target, dpi=120)
    plt.close(figure)


def main() -> None:
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    source = Path(sys.argv[1])
    target = Path(sys.argv[2]) if len(sys.argv) == 3 else source.with_suffix(".png")
    draw(json.loads(source.read_text()), target)
    print(target)


if __name__ == "__main__":
    main()
