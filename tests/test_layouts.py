"""What Python packs is what the objects' BTF says: kern/l2fwd.h is the one truth."""

import json
import os
import re
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from l2fwd import abi, records, rule_keys, rule_layout, rule_table, tool_config
from l2fwd.rule_keys import KEY
from l2fwd.rule_table import ACTION

HEADER = Path(__file__).parent.parent / "kern" / "l2fwd.h"

# Struct -> fields and their (offset, size), and its size, as Python has them.
COUNTERS = [(name, "=u8") for name in abi.DATAPATH_COUNTERS]
PROGRESS = {"names": ["done"], "formats": ["=u8"], "offsets": [records.PROGRESS_DONE],
            "itemsize": records.PROGRESS_BYTES}  # fmt: skip
RULE_KEY = np.dtype([("generation", "=u4"), ("mask_index", "=u4"), ("packet", records.KEY)])
LAYOUTS = {
    "packet_key": records.KEY,
    "rule_action": records.ACTION,
    "rule_key": RULE_KEY,
    "rule_mask": np.dtype([("mask", records.KEY), ("best_rank", "=u4"), ("zero", "=u4")]),
    "near_rule": np.dtype([("key", RULE_KEY), ("action", records.ACTION)]),
    "rule_table": np.dtype([("mask_count", "=u4"), ("miss_verdict", "=u4"), ("is_near", "=u4")]),
    "link_rule": np.dtype([("in_ifindex", "=u4"), ("action", records.ACTION)]),
    "rule_hits": np.dtype([("packets", "=u8"), ("bytes", "=u8")]),
    "flow_key": records.FLOW_KEY,
    "flow": records.FLOW,
    "queue_progress": np.dtype(PROGRESS),
    "datapath_counters": np.dtype(COUNTERS),
    "asked_address": np.dtype([("bytes", "16u1"), ("version", "=u4")]),
    "echo_settings": np.dtype([("mac", "6u1"), ("flags", "=u2")]),
    "sample_counters": np.dtype([(name, "=u8") for name in abi.SAMPLE_COUNTERS]),
    "rx_metadata": records.RX_METADATA,
}
TOOLS_ONLY = {"asked_address", "echo_settings", "sample_counters", "rx_metadata"}
FLOWS_ONLY = {"flow_key", "flow", "queue_progress"}


def spans(dtype):
    """Return (offset, size) of every field, by name."""
    return {name: (each[1], each[0].itemsize) for name, each in dtype.fields.items()}


def types_of(name):
    """Return the BTF of an object: types by id."""
    bpftool = shutil.which("bpftool") or "/usr/sbin/bpftool"
    if not os.path.exists(bpftool):
        pytest.skip("bpftool is not installed")
    path = str(files("l2fwd") / "bpf_objects" / f"{name}.o")
    command = [bpftool, "-j", "btf", "dump", "file", path]
    dump = subprocess.run(command, capture_output=True, text=True, check=True)
    return {each["id"]: each for each in json.loads(dump.stdout)["types"]}


def size_of(types, type_id):
    found = types[type_id]
    if found["kind"] == "ARRAY":
        return found["nr_elems"] * size_of(types, found["type_id"])
    return found["size"] if "size" in found else size_of(types, found["type_id"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("afxdp", {"datapath_counters"}),
        ("metadata", {"datapath_counters", "rx_metadata"}),
        ("l3fwd", {"datapath_counters"}),
        ("redirect", LAYOUTS.keys() - FLOWS_ONLY - TOOLS_ONLY),
        ("hybrid", LAYOUTS.keys() - TOOLS_ONLY),
        ("echo", {"asked_address", "echo_settings", "datapath_counters"}),
        ("sample", {"sample_counters"}),
    ],
)
def test_the_layouts_in_python_are_those_of_the_objects(name, expected):
    types = types_of(name)
    structs = {each["name"]: each for each in types.values() if each["kind"] == "STRUCT"}
    assert structs.keys() & LAYOUTS.keys() == expected
    for struct_name in expected:
        members = {
            member["name"]: (member["bits_offset"] // 8, size_of(types, member["type_id"]))
            for member in structs[struct_name]["members"]
        }
        assert spans(LAYOUTS[struct_name]).items() <= members.items(), struct_name
        assert LAYOUTS[struct_name].itemsize == structs[struct_name]["size"], struct_name


def test_what_is_packed_by_struct_has_the_same_size():
    assert (KEY.size, ACTION.size) == (records.KEY.itemsize, records.ACTION.itemsize)


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (rule_layout, "LINK_RULES HASHED_WORDS HASH_FACTOR NEAR_BITS NEAR_PROBES"),
        (rule_table, "MAX_MASKS"),
        (rule_keys, "NO_VLAN"),
    ],
)
def test_the_constants_in_python_are_those_of_the_header(module, names):
    text = HEADER.read_text()
    for name in names.split():
        (value,) = re.findall(rf"^#define {name} (0x[0-9a-f]+|\d+)", text, re.MULTILINE)
        assert getattr(module, name) == int(value, 0), name


def test_the_enums_in_python_are_those_of_the_header():
    text = HEADER.read_text()
    bits = {name: 1 << int(bit) for name, bit in re.findall(r"(\w+) = 1 << (\d+),", text)}
    changes = abi.CHANGES.items()
    assert {f"CHANGE_{name.removeprefix('set_').upper()}": bit for name, bit in changes} == {
        name: bit for name, bit in bits.items() if name.startswith("CHANGE_")
    }
    assert bits["KEY_HAS_PORTS"] == rule_keys.HAS_PORTS
    assert bits["KEY_LINK_LOCAL"] == rule_keys.LINK_LOCAL
    has = {name: bits[f"RX_HAS_{name}"] for name in ("TIMESTAMP", "HASH", "VLAN_TAG")}
    assert has == {flag.name: flag.value for flag in records.RxHas}
    verdicts = re.findall(r"^\tVERDICT_(\w+),$", text, re.MULTILINE)
    assert {name.lower(): i for i, name in enumerate(verdicts)} == abi.VERDICTS


def test_what_echo_shares_with_the_kernel_is_that_of_its_sources():
    kern = HEADER.parent
    text = (kern / "answer.h").read_text()
    kinds = re.findall(r"^\tASKS_(\w+),$", text, re.MULTILINE)
    assert kinds == ["ECHO4", "ECHO6", "ARP", "NEIGHBOUR", "NOTHING"]
    assert len(kinds) - 1 == len(abi.ANSWER_KINDS)
    text = (kern / "echo.bpf.c").read_text()
    bits = re.findall(r"ECHO_(\w+) = 1 << (\d)", text)
    assert {name.lower(): 1 << int(bit) for name, bit in bits} == abi.ECHO_FLAGS
    assert f"max_entries, {tool_config.MAX_ANSWERED})" in text
