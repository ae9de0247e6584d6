"""The benches as a user runs them."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def bench(*arguments, netns=None):
    """Run ``python -m bench``, in a namespace if one is named."""
    inside = ["ip", "netns", "exec", netns] if netns else []
    return subprocess.run(
        [*inside, sys.executable, "-m", "bench", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip


def tiny_result(suite, folder, *options, netns=None):
    """Return what a suite prints at its tiniest, which must be what it writes."""
    output = folder / "result.json"
    done = bench(suite, "--tiny", "--json", "--output", output, *options, netns=netns)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert json.loads(output.read_text()) == printed
    return printed
