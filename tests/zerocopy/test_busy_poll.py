"""Preferred busy polling on NICs: settings put off and back, and a TX that stalls is named."""

import subprocess

import pytest

from l2fwd import link

pytestmark = pytest.mark.privileged

ARGUMENTS = ("--prefer-busy-poll", "--queues", 0, "--bind", "zero-copy", "-f", 4096)
SETTINGS = ("napi_defer_hard_irqs", "gro_flush_timeout")


def settings_of(bed, name):
    """Read what ``ip netns exec`` shows, whose /sys is the namespace's own."""
    paths = [f"/sys/class/net/{name}/{setting}" for setting in SETTINGS]
    command = ["ip", "netns", "exec", bed.fwd, "cat", *paths]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def set_channels(bed, count):
    for name in (bed.in_link, bed.out_link):
        command = ["ip", "netns", "exec", bed.fwd, "ethtool", "-L", name, "combined", str(count)]
        subprocess.run(command, check=True)
        with link.in_netns(bed.fwd):
            assert link.wait_for_carrier(name, 10, lambda: None)


@pytest.fixture
def paired(bed):
    """The bed with RX and TX of a queue on one interrupt: with the most channels there can be."""
    set_channels(bed, 8)
    for name in (bed.in_link, bed.out_link):
        subprocess.run(
            ["ip", "netns", "exec", bed.fwd, "ethtool", "-X", name, "weight", "1"], check=True
        )
    yield bed
    set_channels(bed, 2)


def test_polled_queues_lose_nothing(paired, forward, traffic, obtained):
    before = [settings_of(paired, name) for name in (paired.in_link, paired.out_link)]
    forwarder = forward(paired, *ARGUMENTS, "--busy-poll-budget", 32)
    assert obtained(forwarder.ready) == [("native", "zero-copy")] * 2
    assert settings_of(paired, paired.in_link) == ["2", "200000"]
    (tally,) = traffic(paired, 1000)
    summary = forwarder.stop()
    assert (tally.lost, tally.duplicated, tally.corrupted, summary["unaccounted"]) == (0, 0, 0, 0)
    assert not any("sends nothing" in str(event) for event in forwarder.events)
    assert [settings_of(paired, name) for name in (paired.in_link, paired.out_link)] == before


def test_queues_with_interrupts_of_their_own_for_rx_and_tx(bed, forward, open_wire, capsys):
    """The call polls only one of the two: what is sent may stall, and is mended then."""
    check_polled(bed, forward, open_wire, capsys)


def test_virtio(virtio_bed, forward, open_wire, capsys):
    """TX was seen to stall after the first bursts."""
    check_polled(virtio_bed, forward, open_wire, capsys)


def check_polled(bed, forward, open_wire, capsys):
    forwarder = forward(bed, *ARGUMENTS)
    wire = open_wire(bed)
    sent = [frame for i in range(4) for frame in wire.send(50, first=50 * i)]
    received = wire.receive(len(sent), seconds=8)
    summary = forwarder.stop()
    said = [str(e.get("message")) for e in forwarder.events if e["event"] == "warning"]
    with capsys.disabled():
        print("", *(f"    {each}" for each in said if "sends nothing" in each), sep="\n")
    assert received == sent
    assert summary["unaccounted"] == 0
