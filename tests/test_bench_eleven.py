"""The suite ``eleven`` runs, tiny, so that it cannot rot; its rates mean nothing here."""

import os
from argparse import Namespace
from contextlib import ExitStack
from uuid import uuid4

import pytest

from bench import bench_eleven, eleven_rivals
from bench.bench_eleven import FLOOD, run
from bench.eleven_cases import CASES
from bench.record import Record
from l2fwd import link
from l2fwd.errors import ConfigError
from tests.run_bench import bench, tiny_result

GOALS = {"single packet send": 1.0, "batch send": 2.0, "single packet receive": 1.0,
         "batch receive": 5.0, "one, send": 2.0, "one, receive": 5.0}  # fmt: skip


def goal_of(name):
    return next((goal for what, goal in GOALS.items() if what in name), None)


def check_case(figures, name):
    assert figures[f"{name}, ours"]["unit"] == "frames/s"
    assert 0 <= figures[f"{name}, ours, loss"]["median"] <= 100
    for rival in ("AF_PACKET", "scapy"):
        assert figures[f"{name}, ours"]["median"] > 0 < figures[f"{name}, {rival}"]["median"]
        ratio = figures[f"{name}, ours to {rival}"]
        assert ratio["spread"][0] <= ratio["median"] <= ratio["spread"][1]
        assert (ratio["against"], ratio["better"]) == (rival, "higher")
        assert ratio["goal"] == (goal_of(name) if rival == "AF_PACKET" else None)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    if os.geteuid() != 0:
        pytest.skip("needs root: sudo make test")
    return tiny_result("eleven", tmp_path_factory.mktemp("results"))


@pytest.fixture
def cable():
    """A namespace with both ends of a cable, ``left`` and ``right``, as a host with two NICs."""
    name = f"l2fwd-test-{uuid4().hex[:8]}"
    with ExitStack() as undo:
        link.create_netns(name)
        undo.callback(link.remove_netns, name)
        link.create_veth((name, "left"), (name, "right"), queues=2)
        with link.in_netns(name):
            for ifname in ("left", "right"):
                link.disable_ipv6(ifname)
                link.set_up(ifname)
        yield name


@pytest.mark.privileged
def test_every_way_to_use_a_socket_is_beside_both_rivals(result):
    figures = {figure["name"]: figure for figure in result["figures"]}
    assert len(CASES) == 11
    for name, case in CASES.items():
        check_case(figures, name)
        values = figures[f"{name}, ours"]["case"]
        assert (values["mode"], values["bind"], values["driver"]) == ("native", "copy", "veth")
        assert (values["queues"], values["bytes"]) == (case.queues, 64)


@pytest.mark.privileged
def test_a_sender_is_measured_alone_or_skipped_by_name(result):
    figures = {figure["name"]: figure for figure in result["figures"]}
    skipped = {each["name"] for each in result["skipped"]}
    for name, case in CASES.items():
        if f"{name}, alone" in skipped:
            assert case.direction == "send"
        elif case.direction == "send":
            check_case(figures, f"{name}, alone")
        else:
            assert f"{name}, alone, ours" not in figures


@pytest.mark.privileged
def test_a_flood_keeps_the_receiver_busy_for_part_of_its_core(result):
    figures = {figure["name"]: figure for figure in result["figures"]}
    assert figures[f"{FLOOD}, ours to AF_PACKET"]["median"] > 0
    assert 0 < figures[f"{FLOOD}, ours, core"]["median"] < 200


@pytest.mark.privileged
def test_eleven_runs_between_two_nics_of_one_cable(cable, tmp_path):
    result = tiny_result(
        "eleven", tmp_path, "--in", "left", "--out", "right",
        "--only", "full duplex", "--only", "one queue, batch send", "--only", "flood",
        netns=cable,
    )  # fmt: skip
    figures = {figure["name"]: figure for figure in result["figures"]}
    for name in ("full duplex on one link", "one queue, batch send"):
        check_case(figures, name)
    assert {each["name"] for each in result["skipped"]} == {"one queue, batch send, alone", FLOOD}


@pytest.mark.privileged
def test_eleven_names_a_link_that_is_not_there(tmp_path):
    done = bench(
        "eleven", "--tiny", "--in", "nosuch0", "--out", "nosuch1", "--output", tmp_path / "x"
    )  # fmt: skip
    assert done.returncode == 2
    assert "nosuch0" in done.stderr
    assert "Traceback" not in done.stderr


def test_eleven_refuses_four_links():
    options = Namespace(in_link="a", out_link="b", gen_link="c", sink_link="d")
    with pytest.raises(ConfigError, match="leave out --gen and --sink"):
        run(options, Record("eleven", {}, output=None, quiet=True))


def test_scapy_is_skipped_by_name_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr(eleven_rivals.importlib.util, "find_spec", lambda name: None)
    record = Record("eleven", {}, output=None, quiet=True)
    options = Namespace(
        level="tiny", rounds=1, seconds=0.02, only=["nothing"], in_link="", gen_link=""
    )
    run(options, record)
    assert [each["name"] for each in record.skipped] == ["scapy"]
    assert not bench_eleven.is_missing("AF_PACKET")
