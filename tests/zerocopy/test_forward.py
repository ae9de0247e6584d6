"""Forwarding between NICs with zero-copy: every frame arrives, once and whole."""

import pytest
from pyroute2 import IPRoute

from l2fwd import link

pytestmark = pytest.mark.privileged

ZERO_COPY = ("native", "zero-copy")
WHOLE = {"lost": 0, "duplicated": 0, "reordered": 0, "corrupted": 0}


def verdict(tally):
    return {name: getattr(tally, name) for name in WHOLE}


@pytest.mark.parametrize("data_path", ["afxdp", "hybrid"])
def test_both_ways_on_two_queues(bed, forward, traffic, obtained, data_path):
    forwarder = forward(bed, "--data-path", data_path, "--bind", "zero-copy", "--strict")
    assert obtained(forwarder.ready) == [ZERO_COPY] * 4
    assert {each["frame_size"] for each in forwarder.ready["sockets"]} == {4096}
    tallies = traffic(bed, 3000, both_ways=True)
    summary = forwarder.stop()
    assert [verdict(tally) for tally in tallies] == [WHOLE, WHOLE]
    assert summary["forwarded"] == sum(tally.sent for tally in tallies)
    assert summary["unaccounted"] == 0
    assert summary["drops"] == {}
    if data_path == "afxdp":
        assert all(port["rx_packets"] > 0 for port in summary["ports"])
        assert all(port["tx_wakeups"] > 0 for port in summary["ports"])


def test_hybrid_is_in_copy_mode_if_not_told_otherwise(bed, forward, traffic, obtained):
    """Most of its packets are redirected, and each of those is copied in zero-copy."""
    forwarder = forward(bed, "--data-path", "hybrid", "--strict")
    assert obtained(forwarder.ready) == [("native", "copy")] * 4
    tallies = traffic(bed, 1000, both_ways=True)
    assert [verdict(tally) for tally in tallies] == [WHOLE, WHOLE]
    assert forwarder.stop()["unaccounted"] == 0


def test_ready_waits_for_the_carrier_that_attaching_takes_down(bed, forward, open_wire, in_fwd):
    wire = open_wire(bed)
    before = in_fwd(bed, carrier_losses, bed.out_link)
    forwarder = forward(bed, "--bind", "zero-copy")
    sent = wire.send(100)  # at once
    assert in_fwd(bed, carrier_losses, bed.out_link) > before
    assert wire.receive(len(sent)) == sent
    summary = forwarder.stop()
    assert (summary["drops"], summary["unaccounted"]) == ({}, 0)


def carrier_losses(name):
    with IPRoute() as ip:
        return ip.link("get", ifname=name)[0].get_attr("IFLA_CARRIER_DOWN_COUNT")


def test_redirect_on_native_mode(bed, forward, traffic, obtained):
    forwarder = forward(bed, "--data-path", "redirect", "--strict")
    ready = forwarder.ready
    obtained(ready)
    assert [each["attach_mode"] for each in ready["links"]] == ["native", "native"]
    tallies = traffic(bed, 3000, both_ways=True)
    summary = forwarder.stop()
    assert [verdict(tally) for tally in tallies] == [WHOLE, WHOLE]
    assert summary["forwarded"] == sum(tally.sent for tally in tallies)
    assert not any("ndo-xmit" in str(event) for event in forwarder.events)


def test_one_way(bed, forward, traffic, obtained):
    forwarder = forward(bed, "--one-way", "--bind", "zero-copy", "-f", 4096)
    assert obtained(forwarder.ready) == [ZERO_COPY] * 4
    (tally,) = traffic(bed, 1000)
    summary = forwarder.stop()
    assert verdict(tally) == WHOLE
    assert summary["unaccounted"] == 0


def test_without_need_wakeup(bed, forward, traffic, obtained):
    forwarder = forward(bed, "--no-need-wakeup", "--bind", "zero-copy", "-f", 4096)
    assert obtained(forwarder.ready) == [ZERO_COPY] * 4
    (tally,) = traffic(bed, 1000)
    assert verdict(tally) == WHOLE
    assert forwarder.stop()["unaccounted"] == 0


def test_stopping_forwards_what_was_received(bed, forward, open_wire):
    forwarder = forward(bed, "--bind", "zero-copy", "-f", 4096)
    wire = open_wire(bed)
    sent = wire.send(200, length=600)  # not IP: all to the first queue
    received = wire.receive(1)  # the others are anywhere between
    summary = forwarder.stop()
    received += wire.receive(summary["forwarded"] - 1)
    assert summary["unaccounted"] == summary["in_flight"] == 0
    assert received == sent[: summary["forwarded"]]


def test_killed_under_load_and_started_again(bed, forward, traffic, obtained):
    forwarder = forward(bed, "--bind", "zero-copy", "-f", 4096)

    def kill_once(sent):
        if sent > 500 and forwarder.process.poll() is None:
            forwarder.kill()

    (tally,) = traffic(bed, 800, during=kill_once, patience=1.0)
    assert tally.received > 0
    with link.in_netns(bed.fwd):
        assert link.find_link(bed.in_link).xdp_program_id == 0
    again = forward(bed, "--bind", "zero-copy", "-f", 4096)
    assert obtained(again.ready) == [ZERO_COPY] * 4
    (tally,) = traffic(bed, 1000)
    assert verdict(tally) == WHOLE
    assert again.stop()["unaccounted"] == 0


def test_skb_mode_means_copy_mode(bed, forward, traffic, obtained):
    """The kernel grants zero-copy to a NIC without a native program, which then sends nothing."""
    forwarder = forward(bed, "--mode", "skb")
    assert obtained(forwarder.ready) == [("skb", "copy")] * 4
    (tally,) = traffic(bed, 500)
    assert verdict(tally) == WHOLE
    assert forwarder.stop()["unaccounted"] == 0


def test_frames_of_2048_bytes_carry_what_fits_a_kibibyte(
    bed, forward, obtained, set_mtu, open_wire
):
    set_mtu(bed, 1006)
    forwarder = forward(bed, "--bind", "zero-copy", "-f", 2048)
    assert obtained(forwarder.ready) == [ZERO_COPY] * 4
    wire = open_wire(bed)
    sent = wire.send(100, length=1020)
    assert wire.receive(len(sent)) == sent
    assert forwarder.stop()["unaccounted"] == 0


def test_the_demo_over_four_nics(bed, start_l2fwd, capsys, request):
    links = (bed.gen_link, bed.in_link, bed.out_link, bed.sink_link)
    bed.down()  # they are the demo's, until it is over
    request.addfinalizer(bed.up)
    words = ["lab", "demo", "--links", *links, "--queues", "2", "--both-ways", "-d", "2"]
    demo = start_l2fwd(None, [*words, "--bind", "zero-copy"])  # which runs python -m l2fwd forward
    with demo.stdout, demo.stderr:
        said, complaints = demo.stdout.read(), demo.stderr.read()
    with capsys.disabled():
        print(f"\n{said}")
    assert demo.wait(10) == 0, said + complaints
    assert "unaccounted 0" in said
    for name in links:
        assert link.find_link(name).ifname == name
