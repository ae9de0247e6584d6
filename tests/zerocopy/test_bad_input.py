"""What zero-copy cannot do is refused with what to do, and a fall-back is never silent."""

import pytest

pytestmark = pytest.mark.privileged


@pytest.mark.parametrize("bind", ["auto", "zero-copy"])
def test_frames_that_the_nic_would_split_are_refused(bed, run_cli, bind):
    """igb tells the NIC of 1024 bytes in a frame of 2048: longer packets become two."""
    code, said = run_cli(bed, "--bind", bind, "-f", 2048)
    assert code == 2
    assert said.count("\n") == 1
    assert "receives 1024 bytes into a frame of 2048" in said
    assert "use --frame-size 4096, or --bind copy" in said


def test_the_same_frames_in_copy_mode(bed, forward, traffic, obtained):
    forwarder = forward(bed, "--bind", "copy", "-f", 2048)
    assert obtained(forwarder.ready) == [("native", "copy")] * 4
    (tally,) = traffic(bed, 500)
    assert (tally.lost, tally.corrupted) == (0, 0)
    assert forwarder.stop()["unaccounted"] == 0


def test_a_queue_beyond_the_count(bed, run_cli):
    code, said = run_cli(bed, "--queues", 2, "-f", 4096)
    assert code == 2
    assert f"{bed.in_link} has 2 queues, 0 to 1" in said


def test_zero_copy_with_a_program_in_skb_mode(bed, run_cli):
    code, said = run_cli(bed, "--mode", "skb", "--bind", "zero-copy", "-f", 4096)
    assert code == 2
    assert "zero-copy needs a native program" in said


def test_zero_copy_where_the_mtu_sends_the_program_to_skb_mode(bed, run_cli, set_mtu):
    set_mtu(bed, 3050)
    code, said = run_cli(bed, "--bind", "zero-copy", "-f", 4096)
    assert code == 4
    assert "skb mode was obtained" in said


def test_an_mtu_that_turns_zero_copy_into_copy_is_said(virtio_bed, forward, set_mtu):
    set_mtu(virtio_bed, 1770)  # fits a frame, and not with the kernel's pad
    forwarder = forward(virtio_bed, "-f", 2048)
    assert {each["bind_mode"] for each in forwarder.ready["sockets"]} == {"copy"}
    forwarder.stop()
    said = [each["message"] for each in forwarder.events if each["event"] == "warning"]
    assert any("copy mode was obtained" in each for each in said)


def test_zero_copy_that_the_mtu_forbids(virtio_bed, run_cli, set_mtu):
    set_mtu(virtio_bed, 1770)
    code, said = run_cli(virtio_bed, "--bind", "zero-copy", "-f", 2048)
    assert code == 2
    assert "the MTU does not fit the frame size" in said


def test_fewer_frames_than_the_nic_has_slots_are_refused(bed, run_cli):
    """igb looks at old descriptors again: packets came twice, or with another one's length."""
    code, said = run_cli(bed, "--ring-size", 64, "--bind", "zero-copy", "-f", 4096)
    assert code == 2
    assert "64 frames are too few for the 256 slots" in said
    assert "use --ring-size 512 or more, or --bind copy" in said


def test_a_ring_as_large_as_the_nics_loses_nothing(bed, forward, traffic, obtained):
    """The NIC takes all frames that were lent, and asks for more by need_wakeup."""
    forwarder = forward(bed, "--ring-size", 256, "--bind", "zero-copy", "-f", 4096)
    obtained(forwarder.ready)
    (tally,) = traffic(bed, 1000)
    summary = forwarder.stop()
    assert (tally.lost, tally.duplicated, tally.corrupted, summary["unaccounted"]) == (0, 0, 0, 0)
    assert sum(port.get("rx_wakeups", 0) for port in summary["ports"]) > 0
