"""What is built: the wheel's content, the messages of a build that lacks something."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of what git tracks."""
    listed = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("not a git checkout")
    folder = tmp_path_factory.mktemp("tree")
    for name in listed.stdout.split():
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def build(tree, hook):
    """Call a PEP 517 hook in ``tree``; return the file it made."""
    code = f"import sys, setuptools.build_meta as b; print('made', b.{hook}('dist'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert not re.search(r"\.(?:c|pyx|pxd|h):\d+.*warning", done.stdout + done.stderr)
    return tree / "dist" / re.findall(r"^made (\S+)$", done.stdout, re.MULTILINE)[0]


def test_a_wheel_made_from_the_sdist_holds_what_runs_and_no_c(tree, tmp_path):
    sdist = build(tree, "build_sdist")
    subprocess.run(["tar", "-xzf", sdist, "-C", tmp_path], check=True, timeout=60)
    (unpacked,) = tmp_path.iterdir()
    assert not list(unpacked.glob("l2fwd/*.c"))
    with zipfile.ZipFile(build(unpacked, "build_wheel")) as wheel:
        names = {Path(name).name for name in wheel.namelist()}
    assert {"afxdp.o", "py.typed", "_rings.pyi", "_rings.pxd", "testing.py"} <= names
    assert {name.split(".")[0] for name in names if name.endswith(".so")} == {
        "_answer", "_bpf", "_chains", "_classify", "_decide", "_generator", "_jobs", "_rings",
        "_socket", "_verifier", "_worker",
    }  # fmt: skip
    assert not [name for name in names if name.endswith((".c", ".pyx"))]


@pytest.mark.parametrize("variable", ["CLANG", "LLVM_STRIP", "CC"])
def test_a_missing_tool_is_named_with_the_command_that_installs_it(tree, variable):
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_bpf"],
        cwd=tree, capture_output=True, text=True, check=False, timeout=120,
        env=os.environ | {variable: "nosuch-tool"},
    )  # fmt: skip
    assert done.returncode != 0
    assert "apt-get install" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_versions_agree():
    from l2fwd.__main__ import VERSION

    assert f'version = "{VERSION}"' in (ROOT / "pyproject.toml").read_text()
    assert f"## {VERSION}" in (ROOT / "CHANGELOG.md").read_text()
