"""A suite's tiny form as a function, for the tests of pytest-benchmark."""

import importlib

from bench.options import add_common, settle
from bench.record import Record
from l2fwd.__main__ import Parser


def figures_by_name(suite: str, *arguments: str) -> dict[str, float]:
    """Run a suite as its command line says, tiny; return the median of each figure."""
    module = importlib.import_module(f"bench.bench_{suite}")
    parser = Parser(prog=f"bench {suite}", allow_abbrev=False)
    add_common(parser)
    module.add_arguments(parser)
    options = settle(parser, parser.parse_args(["--tiny", *arguments]), module.ROUNDS)
    with Record(suite, {}, output=None, quiet=False) as record:
        module.run(options, record)
    return {figure.name: figure.median for figure in record.figures}
