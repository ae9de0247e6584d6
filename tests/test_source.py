"""Rules about the source itself: who imports whom, and what the hot path may call."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "l2fwd"
GENERATED = ROOT / "build" / "cython" / "l2fwd"

# A module imports only from layers above its own; ARCHITECTURE.md says why.
LAYERS = (
    {"errors", "abi", "records", "event_loops", "_xdp", "_libxdp"},
    {"words"},
    {
        "rule_words",
        "packet",
        "pcap",
        "stats",
        "policy_batch",
        "traffic",
        "verification",
        "nics",
    },
    {"rules"},
    {"rule_keys", "fib"},
    {"rule_table"},
    {"rule_layout", "policy"},
    {"config"},
    {"tool_config"},
    {
        "_rings",
        "_metadata",
        "_chains",
        "_classify",
        "_decide",
        "_worker",
        "_jobs",
        "_answer",
        "_generator",
        "_verifier",
        "_socket",
    },
    {
        "link",
        "rtnetlink",
        "ethtool",
        "netdev",
        "numa",
        "bpf",
        "pins",
        "busy_poll",
        "tx_socket",
        "_bpf",
    },
    {"rule_maps", "flow_table", "routes", "xsk"},
    {"batch", "link_programs"},
    {"sockets"},
    {"datapath"},
    {"engine", "check", "control", "explain", "flow_list", "metrics", "capture", "dissect"},
    {"cli", "lab", "lab_traffic", "testing"},
    {"__main__", "__init__"},
)
LAYER_OF = {module: layer for layer, modules in enumerate(LAYERS) for module in modules}
WITHIN_A_LAYER = {
    ("_metadata", "_rings"),
    ("_chains", "_rings"),
    ("_socket", "_chains"),
    ("_socket", "_metadata"),
    ("_socket", "_rings"),
    ("_socket", "_worker"),
    ("_jobs", "_chains"),
    ("_jobs", "_rings"),
    ("_jobs", "_worker"),
    ("_generator", "_rings"),
    ("_generator", "_worker"),
    ("_verifier", "_rings"),
    ("_verifier", "_worker"),
    ("_answer", "_rings"),
    ("_answer", "_worker"),
    ("_worker", "_chains"),
    ("_worker", "_rings"),
    ("_worker", "_classify"),
    ("_worker", "_decide"),
    ("_decide", "_classify"),
    ("_classify", "_rings"),
    ("link", "ethtool"),
    ("numa", "ethtool"),
    ("flow_list", "explain"),
    ("dissect", "explain"),
    ("bpf", "_bpf"),
    ("bpf", "ethtool"),
    ("bpf", "pins"),
    ("pins", "_bpf"),
    ("pins", "link"),
    ("lab", "lab_traffic"),
    ("cli", "lab"),
}
ONLY_IMPORTED_BY = {
    "pyroute2": {"link", "netdev"},
    "l2fwd._bpf": {"bpf", "pins", "xsk"},
    "l2fwd._libxdp": {"_bpf"},
}

SOURCES = sorted(path for pattern in ("*.py", "*.pyx", "*.pxd") for path in PACKAGE.rglob(pattern))
CYTHON_IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+c?import[ \t]+(\([^)]*\)|[^#\n]*)|c?import[ \t]+([\w.]+))",
    re.M,
)

HOT_SOURCES = (
    "_rings.pxd",
    "_rings.pyx",
    "_chains.pyx",
    "_classify.pyx",
    "_decide.pyx",
    "_worker.pyx",
    "_jobs.pyx",
    "_generator.pyx",
    "_verifier.pyx",
    "_answer.pyx",
)
HOT_DEFINITION = re.compile(r"^cdef (?:inline )?[^\n(=]*?(\w+)\([^)]*\) noexcept nogil:", re.M)
HOT_AT_LEAST = {
    "forward_burst", "kick_tx", "refill", "reclaim", "turn", "idle", "run_worker", "drain",
    "ring_peek", "ring_reserve", "ring_submit", "ring_release", "rewrite_packet",
    "parse_packet", "classify", "list_hits", "ttl_allows", "change_packet", "decide_burst",
    "take_packet", "turn_of_pair", "turn_with_rules", "drop_burst",
    "generate_burst", "patch_packet", "take_due", "verify_burst", "find_datagram", "note_number",
    "answer_burst", "answer_packet",
    "forward_chains", "decide_chains", "take_chains", "send_chain", "sleep",
    "packets_come_close", "rings_are_large_enough",
}  # fmt: skip


def module_of(path: Path) -> str:
    """Name the unit a file belongs to: its module, or its package under l2fwd."""
    return path.relative_to(PACKAGE).parts[0].partition(".")[0]


def imports_of(path: Path) -> Iterator[str]:
    """Yield the dotted names a source file imports or cimports, also for type checking only."""
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path.name}: relative import"
                names = [alias.name for alias in node.names]
                yield from expand(str(node.module), names)
        return
    for source, names_text, plain in CYTHON_IMPORT.findall(path.read_text()):
        yield from [plain] if plain else expand(source, re.findall(r"\w+", names_text))


def expand(source: str, names: list[str]) -> list[str]:
    """``from l2fwd import link`` imports l2fwd.link; ``from l2fwd.link import x`` does too."""
    return [f"l2fwd.{name}" for name in names] if source == "l2fwd" else [source]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_from_layers_above_it(path):
    module = module_of(path)
    assert module in LAYER_OF, f"{module} has no layer: give it one in LAYERS"
    for name in imports_of(path):
        package, _, rest = name.partition(".")
        imported = rest.partition(".")[0]
        if package != "l2fwd" or not imported or imported == module:
            continue
        assert imported in LAYER_OF, f"{module} imports {name}, which has no layer"
        assert LAYER_OF[imported] < LAYER_OF[module] or (module, imported) in WITHIN_A_LAYER, (
            f"{path.name} (layer {LAYER_OF[module]}) imports {name} (layer {LAYER_OF[imported]})"
        )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_netlink_and_libxdp_are_known_to_their_own_modules_only(path):
    for name in imports_of(path):
        for guarded, allowed in ONLY_IMPORTED_BY.items():
            if name == guarded or name.startswith(guarded + "."):
                assert module_of(path) in allowed, f"{path.name} imports {name}"


def test_the_import_parser_sees_what_it_must():
    """A parser that finds nothing would pass every rule above."""
    assert {"l2fwd._rings", "l2fwd._xdp", "l2fwd.errors"} <= set(
        imports_of(PACKAGE / "_worker.pyx")
    )
    assert {"l2fwd._xdp", "libc.stdint"} <= set(imports_of(PACKAGE / "_rings.pxd"))
    assert "pyroute2" in set(imports_of(PACKAGE / "link.py"))


def hot_functions() -> dict[str, str]:
    """Map every ``noexcept nogil`` function of the hot path to the extension that defines it."""
    return {
        name: source.partition(".")[0]
        for source in HOT_SOURCES
        for name in HOT_DEFINITION.findall((PACKAGE / source).read_text())
    }


def test_the_hot_path_is_found():
    assert set(hot_functions()) >= HOT_AT_LEAST


@pytest.mark.parametrize(("name", "extension"), hot_functions().items())
def test_a_hot_function_calls_no_python(name, extension):
    generated = GENERATED / f"{extension}.c"
    if not generated.exists():
        pytest.skip(f"no generated C in {GENERATED}: not an in-place build")
    symbol = f"__pyx_f_5l2fwd_{len(extension)}{extension}_{name}"
    pattern = rf"^static [^;\n]*\b{symbol}\([^;\n]*\) \{{\n(.*?)^\}}"
    bodies = re.findall(pattern, generated.read_text(), re.M | re.S)
    assert len(bodies) == 1, f"{symbol} is not in {generated.name}: stale build, or a new mangling"
    code = re.sub(r"/\*.*?\*/", "", bodies[0], flags=re.S)
    assert "__pyx_r" in code or "__pyx_v" in code, "the body was not cut out right"
    assert not re.findall(r"\b(?:Py[A-Z]\w*|__Pyx_\w+)\s*\(", code)
