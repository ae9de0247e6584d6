"""What the README says works as it stands."""

import argparse
import importlib
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import cable
from l2fwd import XdpSocket
from l2fwd.__main__ import VERBS
from l2fwd.cli import forward

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
POLICIES = (ROOT / "docs" / "policies.md").read_text()
LIBRARY = (ROOT / "docs" / "library.md").read_text()


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def run_in(bed, code, folder="."):
    subprocess.run(
        ["nsenter", f"--net=/run/netns/{bed.fwd}", sys.executable, "-c", code],
        check=True,
        timeout=60,
        cwd=folder,
    )


@pytest.mark.privileged
@pytest.mark.parametrize("code", blocks(README, "python"))
def test_the_examples_of_the_library_run(bed, code):
    run_in(bed, code)


@pytest.mark.privileged
def test_the_code_about_policies_runs(bed, tmp_path):
    (code,) = blocks(POLICIES, "c")
    (tmp_path / "policy.c").write_text(code)
    (command,) = re.findall(r"`(cc .*?)`", POLICIES)
    subprocess.run([*command.split(), "-Wall", "-Wextra", "-Werror"], check=True, cwd=tmp_path)
    for code in blocks(POLICIES, "python"):
        run_in(bed, code, tmp_path)


def compile_own_program(folder):
    (code,) = blocks(LIBRARY, "c")
    (folder / "own.c").write_text(code)
    (command,) = re.findall(r"`(clang .*?)`", LIBRARY)
    subprocess.run([*command.split(), "-Wall", "-Wextra", "-Werror"], check=True, cwd=folder)


@pytest.mark.privileged
@pytest.mark.parametrize("code", blocks(LIBRARY, "python"))
def test_the_code_about_the_library_runs_on_a_cable(code, tmp_path):
    if "own.o" in code:
        compile_own_program(tmp_path)
    with cable():
        subprocess.run(
            [sys.executable, "-W", "error", "-c", code], check=True, timeout=60, cwd=tmp_path
        )


def test_every_option_of_a_socket_is_told():
    table = LIBRARY.split("## Opening")[1].split("Sizes are checked")[0]
    told = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (.*?) \|", table, re.MULTILINE)))
    assert sorted(told) == sorted(inspect.signature(XdpSocket).parameters)


def test_every_verb_is_in_the_readme_and_every_verb_of_it_exists():
    table = README.split("## The command line")[1].split("`VERB --help`")[0]
    named = set(re.findall(r"^\| `(\w+)", table, re.MULTILINE))
    assert named == set(VERBS)


def parsed(words):
    parser = argparse.ArgumentParser(exit_on_error=False)
    importlib.import_module(f"l2fwd.cli.{words[0]}").add_arguments(parser)
    return parser.parse_args(words[1:])


def test_every_line_of_the_readme_is_one_its_verb_understands():
    table = README.split("## The command line")[1].split("`VERB --help`")[0]
    lines = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    assert len(lines) >= len(VERBS)
    for line in lines:
        assert parsed(shlex.split(line)), line


def test_every_option_in_the_readme_exists():
    parser = argparse.ArgumentParser()
    forward.add_arguments(parser)
    table = README.split("The ones that matter most")[1].split("Exit codes")[0]
    for option in re.findall(r"`(--[a-z-]+)", table):
        assert option in parser._option_string_actions, option


def test_every_link_in_the_documents_leads_somewhere():
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"
        headings = re.findall(r"^#+ (.*)", path.read_text(), re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}
        for anchor in re.findall(r"\]\(#(.*?)\)", path.read_text()):
            assert anchor in anchors, f"{path.name}: {anchor}"


def test_every_file_in_the_architecture_exists():
    layers = (ROOT / "ARCHITECTURE.md").read_text().split("```")[1]
    for name in re.findall(r"[\w/]+\.(?:py|pyx|pxd|bpf\.c|h)\b", layers):
        places = [ROOT, ROOT / "l2fwd", ROOT / "l2fwd" / "datapath", ROOT / "kern"]
        assert any((place / name).exists() for place in places), name


OF_ANOTHER = {"rxdrop": {"--sequence"}}


def test_every_option_in_the_document_of_the_verbs_exists():
    text = (ROOT / "docs" / "verbs.md").read_text().split("## Command lines of other tools")[0]
    common, *sections = re.split(r"^## (?=\w+: )", text, flags=re.MULTILINE)
    assert len(sections) == 7
    for section in sections:
        verb = section.partition(":")[0]
        parser = argparse.ArgumentParser()
        importlib.import_module(f"l2fwd.cli.{verb}").add_arguments(parser)
        known = parser._option_string_actions
        own = section if verb == "dump" else section + common
        spans = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", own, flags=re.DOTALL))
        words = re.findall(r"(?<![\w-])--?[a-zA-Z][a-z-]*", " ".join(spans))
        for line in re.findall(r"^python -m l2fwd .*", section, re.MULTILINE):
            words += re.findall(r" (--?[a-zA-Z][a-z-]*)", line.replace(" -m l2fwd", ""))
        for option in set(words) - {"--help"} - OF_ANOTHER.get(verb, set()):
            assert option in known, f"{verb} {option}"
