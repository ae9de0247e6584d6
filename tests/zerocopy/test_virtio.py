"""virtio-net with zero-copy, which it has where it uses the DMA API (iommu_platform)."""

import pytest

from tests.zerocopy.test_forward import WHOLE, ZERO_COPY, verdict

pytestmark = pytest.mark.privileged


def test_both_ways(virtio_bed, forward, traffic, obtained):
    forwarder = forward(virtio_bed, "--bind", "zero-copy", "--strict")
    assert obtained(forwarder.ready) == [ZERO_COPY] * 2
    assert_both_ways(virtio_bed, forwarder, traffic)


def test_hybrid_is_in_copy_mode(virtio_bed, forward, traffic, obtained):
    """In zero-copy the driver drops all that is redirected into the NIC, uncounted by us."""
    forwarder = forward(virtio_bed, "--data-path", "hybrid")
    assert obtained(forwarder.ready) == [("native", "copy")] * 2
    assert_both_ways(virtio_bed, forwarder, traffic)


def test_hybrid_in_zero_copy_is_refused(virtio_bed, run_cli):
    code, said = run_cli(virtio_bed, "--data-path", "hybrid", "--bind", "zero-copy")
    assert (code, said.count("\n")) == (2, 1)
    assert "drops what a program redirects into it; use --bind copy, or --data-path afxdp" in said


def assert_both_ways(bed, forwarder, traffic):
    tallies = traffic(bed, 2000, both_ways=True)
    summary = forwarder.stop()
    assert [verdict(tally) for tally in tallies] == [WHOLE, WHOLE]
    assert summary["forwarded"] == sum(tally.sent for tally in tallies)
    assert (summary["drops"], summary["unaccounted"]) == ({}, 0)


def test_redirect_on_native_mode(virtio_bed, forward, traffic, obtained):
    forwarder = forward(virtio_bed, "--data-path", "redirect", "--strict")
    obtained(forwarder.ready)
    assert [each["attach_mode"] for each in forwarder.ready["links"]] == ["native", "native"]
    tallies = traffic(virtio_bed, 2000, both_ways=True)
    summary = forwarder.stop()
    assert [verdict(tally) for tally in tallies] == [WHOLE, WHOLE]
    assert summary["forwarded"] == sum(tally.sent for tally in tallies)


def test_killed_under_load_and_started_again(virtio_bed, forward, traffic, obtained):
    forwarder = forward(virtio_bed, "--bind", "zero-copy")

    def kill_once(sent):
        if sent > 500 and forwarder.process.poll() is None:
            forwarder.kill()

    (tally,) = traffic(virtio_bed, 800, during=kill_once, patience=1.0)
    assert 0 < tally.received < tally.sent
    again = forward(virtio_bed, "--bind", "zero-copy")
    assert obtained(again.ready) == [ZERO_COPY] * 2
    (tally,) = traffic(virtio_bed, 1000)
    assert verdict(tally) == WHOLE
    assert again.stop()["unaccounted"] == 0
