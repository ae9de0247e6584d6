"""Preferred busy polling: options, settings of a link, and a TX that stalls."""

import argparse
import subprocess
from types import SimpleNamespace

import pytest

from l2fwd import link
from l2fwd.busy_poll import DeferredInterrupts
from l2fwd.cli import forward as verb
from l2fwd.config import ForwardConfig, SocketConfig
from l2fwd.datapath.afxdp import AfxdpPath
from l2fwd.datapath.queue_worker import QueueWorker
from l2fwd.errors import ConfigError, KernelError


@pytest.fixture
def polled_worker():
    """A worker with one polled socket, whose counters a test moves."""
    counters = {"tx_packets": 0, "tx_completed": 0}
    port = SimpleNamespace(is_polled=True, counters=lambda: counters)
    worker = QueueWorker.__new__(QueueWorker)
    worker.sockets = [SimpleNamespace(ifname="nic0", port=port)]
    worker._completed = {}
    return worker, counters


@pytest.mark.parametrize("budget", [-1, 65536])
def test_a_budget_out_of_range_is_refused(budget):
    with pytest.raises(ConfigError, match="busy-poll-budget"):
        SocketConfig(busy_poll_budget=budget)


def test_only_a_socket_that_waits_and_completes_nothing_is_stalled(polled_worker):
    worker, counters = polled_worker
    assert worker.stalled() == worker.stalled() == []
    counters |= {"tx_packets": 9, "tx_completed": 4}
    assert worker.stalled() == []
    assert worker.stalled() == worker.sockets
    counters |= {"tx_completed": 5}
    assert worker.stalled() == []
    counters |= {"tx_completed": 9}
    assert worker.stalled() == worker.stalled() == []


def test_an_unknown_link_has_no_interrupts_to_put_off():
    with pytest.raises(KernelError, match="nosuch0"):
        DeferredInterrupts("nosuch0")


@pytest.mark.privileged
def test_a_links_interrupts_are_put_off_and_back(pair, read_settings):
    before = read_settings(pair[0], "left")
    with link.in_netns(pair[0]):
        deferred = DeferredInterrupts("left")
        assert read_settings(pair[0], "left") == ["2", "200000"]
        deferred.close()
    assert read_settings(pair[0], "left") == before


@pytest.fixture
def read_settings():
    """Read what ``ip netns exec`` shows, whose /sys is the namespace's own."""

    def read(netns, name):
        folder = f"/sys/class/net/{name}"
        paths = [f"{folder}/napi_defer_hard_irqs", f"{folder}/gro_flush_timeout"]
        command = ["ip", "netns", "exec", netns, "cat", *paths]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    return read


@pytest.mark.privileged
def test_polled_veths_forward(bed, forward, open_wire):
    forwarder = forward(bed, "--prefer-busy-poll", "--busy-poll-budget", 16)
    wire = open_wire(bed)
    sent = wire.send(100)
    assert wire.receive(len(sent)) == sent
    assert forwarder.stop()["unaccounted"] == 0


def test_a_budget_without_polling_is_refused():
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    with pytest.raises(ConfigError, match="give both"):
        verb.config_from(parser.parse_args(["a", "b", "--busy-poll-budget", "8"]))


def test_a_stalled_queue_gets_its_interrupts_back_and_is_named():
    budgets, events = [], []
    xsk = SimpleNamespace(ifname="f0", queue_id=3, prefer_busy_poll=budgets.append)
    path = AfxdpPath.__new__(AfxdpPath)
    path.config = ForwardConfig(
        in_link="f0", out_link="f1", socket=SocketConfig(busy_poll_budget=8)
    )
    path.workers = [SimpleNamespace(stalled=lambda: [xsk])]
    path._notify, path._next_look = events.append, 0.0
    path._watch_polled()
    path._watch_polled()  # a second has not passed
    assert budgets == [0]
    (event,) = events
    assert event["message"].startswith("f0 queue 3: sends nothing while it is busy polled")
    assert "ethtool -L f0 combined MOST" in event["message"]
