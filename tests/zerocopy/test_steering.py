"""The bench's look at real drivers, and what it changes on them and puts back."""

from contextlib import ExitStack

import pytest

from bench.nic_facts import describe_link
from bench.preflight import Needs, ready, steer
from l2fwd import ethtool, link

pytestmark = pytest.mark.privileged


def test_the_flows_are_spread_as_asked_and_as_before_afterwards(bed):
    with link.in_netns(bed.fwd):
        before = ethtool.rss_table(bed.in_link)
        hashed = ethtool.hash_fields(bed.in_link, ethtool.UDP_V4_FLOW)
        assert set(before) == {0, 1}
        with ExitStack() as undo:
            steer(undo, bed.in_link, 1, print)
            assert set(ethtool.rss_table(bed.in_link)) == {0}
        assert ethtool.rss_table(bed.in_link) == before
        said = []
        with ExitStack() as undo:
            ethtool.set_rss_table(bed.in_link, [0] * len(before))
            steer(undo, bed.in_link, 2, said.append)
            assert ethtool.rss_table(bed.in_link) == [i % 2 for i in range(len(before))]
            fields = ethtool.hash_fields(bed.in_link, ethtool.UDP_V4_FLOW)
            assert said or fields == ethtool.ADDRESSES_AND_PORTS
        assert set(ethtool.rss_table(bed.in_link)) == {0}
        assert ethtool.hash_fields(bed.in_link, ethtool.UDP_V4_FLOW) == hashed
        ethtool.set_rss_table(bed.in_link, ())


def test_a_driver_with_zero_copy_is_tried_and_what_is_said_of_it_is_true(bed, capsys):
    with link.in_netns(bed.fwd):
        said = []
        with ready([bed.in_link, bed.out_link], Needs(queues=2, cpus=(0,)), said.append):
            facts = describe_link(bed.in_link)
        with capsys.disabled():
            print("", *said, facts, sep="\n    ")
    assert not [line for line in said if "copy mode" in line]
    assert facts["driver"] == "igb"
    assert facts["pci_address"].startswith("0000:")
    assert (facts["rx_ring"], facts["rx_queues"], facts["mtu"]) == (256, 2, 1500)
    assert any("TxRx-0" in each["name"] or "rx-0" in each["name"] for each in facts["interrupts"])
