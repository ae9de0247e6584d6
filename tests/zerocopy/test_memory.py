"""Packet memory of other kinds, which a NIC writes to by itself."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.privileged

POOL = Path("/proc/sys/vm/nr_hugepages")


@pytest.fixture
def huge_pages():
    """Have 64 MiB of them reserved."""
    before = POOL.read_text()
    POOL.write_text("32")
    if int(POOL.read_text()) < 32:
        pytest.skip("the guest has no room for 32 huge pages")
    yield
    POOL.write_text(before)


@pytest.mark.parametrize(
    "options",
    [("--huge-pages",), ("--huge-pages", "--unaligned", "-f", 3000)],
    ids=["aligned", "unaligned"],
)
def test_frames_in_huge_pages(bed, forward, traffic, obtained, huge_pages, options):
    forwarder = forward(bed, "--bind", "zero-copy", "--ring-size", 512, *options)
    assert obtained(forwarder.ready) == [("native", "zero-copy")] * 4
    (tally,) = traffic(bed, 1000)
    assert (tally.lost, tally.duplicated, tally.reordered, tally.corrupted) == (0, 0, 0, 0)
    assert forwarder.stop()["unaccounted"] == 0


def test_unaligned_frames_that_lie_on_one_page(bed, forward, traffic, obtained):
    forwarder = forward(bed, "--bind", "zero-copy", "--unaligned")
    assert obtained(forwarder.ready) == [("native", "zero-copy")] * 4
    (tally,) = traffic(bed, 500)
    assert (tally.lost, tally.duplicated, tally.reordered, tally.corrupted) == (0, 0, 0, 0)
    assert forwarder.stop()["unaccounted"] == 0


def test_frames_that_cross_pages_are_refused(bed, run_cli):
    code, said = run_cli(bed, "--bind", "zero-copy", "--unaligned", "-f", 3000)
    assert code == 2
    assert "such frames cross pages; add --huge-pages, or --bind copy" in said


def test_huge_pages_that_are_not_there_are_named(bed, run_cli):
    assert int(POOL.read_text()) == 0
    code, said = run_cli(bed, "--bind", "zero-copy", "--huge-pages")
    assert (code, said.count("\n")) == (1, 1)
    assert "nr_hugepages" in said
