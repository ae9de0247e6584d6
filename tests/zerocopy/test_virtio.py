"""virtio-net with zero-copy, which it has where it uses the DMA API (iommu_platform)."""

import pytest

pytestmark = pytest.mark.privileged


def test_both_ways(virtio_bed, forward, traffic, obtained):
    forwarder = forward(virtio_bed, "--bind", "zero-copy", "--strict")
    assert obtained(forwarder.ready) == [("native", "zero-copy")] * 2
    tallies = traffic(virtio_bed, 2000, both_ways=True)
    summary = forwarder.stop()
    assert [(t.lost, t.duplicated, t.reordered, t.corrupted) for t in tallies] == [(0, 0, 0, 0)] * 2
    assert summary["unaccounted"] == 0
