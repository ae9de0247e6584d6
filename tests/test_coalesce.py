"""Packets that come close after each other gather; one that is alone never waits."""

import time

import pytest

pytestmark = pytest.mark.privileged


def naps_of(summary):
    return sum(port.get("worker_naps", 0) for port in summary["ports"])


@pytest.fixture
def flood(bed, forward):
    """Send packets on one end at a steady rate, through a forwarder; return its summary."""

    def run(*options, count=5000, rate=25_000):
        forwarder = forward(bed, *options)
        size = ("-s", 60, "-C", count, "--rate", rate, "-b", 1)
        sender = forward(
            bed_of_sender(bed), *size, links=(bed.gen_link,), verb="txonly", ready=False
        )
        assert sender.wait_for("summary", 30)["ports"][0]["tx_packets"] == count
        sender.wait()
        time.sleep(0.2)
        summary = forwarder.stop()
        assert summary["forwarded"] >= count
        assert summary["unaccounted"] == 0
        assert not any(summary["drops"].values())
        return summary

    return run


def bed_of_sender(bed):
    class Place:
        fwd = bed.gen

    return Place


def test_packets_that_come_close_are_let_gather(flood):
    summary = flood()
    assert 0 < naps_of(summary) < summary["forwarded"]


def test_without_coalescing_the_worker_never_naps(flood):
    assert naps_of(flood("--coalesce", 0)) == 0


def test_a_packet_that_is_alone_is_not_kept_waiting(bed, forward, open_wire):
    forwarder = forward(bed, "--coalesce", 1000)
    wire = open_wire(bed)
    for _ in range(10):
        sent = wire.send(1)
        assert wire.receive(1) == sent
        time.sleep(0.02)
    assert naps_of(forwarder.stop()) == 0


def test_packets_that_wait_for_each_other_are_kept_less_and_less(bed, forward, open_wire):
    """A nap that gathered nothing makes the worker twice as patient before the next."""
    rounds = 400
    forwarder = forward(bed)
    wire = open_wire(bed)
    for _ in range(rounds):
        sent = wire.send(1)
        assert wire.receive(1) == sent
    assert naps_of(forwarder.stop()) < rounds / 20


@pytest.mark.parametrize("value", ["-1", "1001"])
def test_a_bound_that_makes_no_sense_is_refused(bed, forward, value):
    forwarder = forward(bed, f"--coalesce={value}", ready=False)
    assert forwarder.wait() == 2
    assert "coalesce must be in [0, 1000] us" in forwarder.stderr


def test_redirect_has_no_workers_to_coalesce_for(bed, forward):
    forwarder = forward(bed, "--data-path", "redirect", "--coalesce", 20, ready=False)
    assert forwarder.wait() == 2
    assert "coalesce" in forwarder.stderr
