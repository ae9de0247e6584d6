"""Packets that the NIC had no buffer for: a drop of the link, beside the balance of the ports."""

from dataclasses import replace

import pytest

from l2fwd import link
from l2fwd.config import ForwardConfig
from l2fwd.datapath import side
from l2fwd.datapath.choose import make_path

pytestmark = pytest.mark.privileged


class Missing:
    """``link``, of which ``f0`` has missed packets meanwhile; a veth never does."""

    def __init__(self):
        self.count = 0

    def __getattr__(self, name):
        return getattr(link, name)

    def find_link(self, name):
        found = link.find_link(name)
        return replace(found, rx_missed=100 + self.count * (name == "f0"))


@pytest.mark.parametrize("data_path", ["afxdp", "redirect", "hybrid"])
def test_what_the_nic_missed_is_a_drop_of_its_link(bed, monkeypatch, data_path):
    missing = Missing()
    monkeypatch.setattr(side, "link", missing)
    with link.in_netns(bed.fwd):
        config = ForwardConfig(in_link="f0", out_link="f1", data_path=data_path)
        path = make_path(config, lambda event: None)
        try:
            path.start()
            assert path.sample().drops == {}
            missing.count = 7
            running = path.sample()
        finally:
            path.stop()
    ended = path.sample()
    for snapshot in (running, ended):
        assert snapshot.drops == {"rx_missed_drops": 7}
        assert [p.link for p in snapshot.ports if p.drops.get("rx_missed_drops")] == ["f0"]
        assert snapshot.unaccounted == 0


@pytest.mark.parametrize(
    ("statistics", "missed"),
    [
        ({}, 0),
        ({"rx_missed_errors": 3, "rx_errors": 9, "rx_dropped": 4}, 3),
        ({"rx_missed_errors": 3, "rx_fifo_errors": 2}, 5),
    ],
)
def test_the_kernels_two_counters_of_it_are_added(statistics, missed):
    class Message:
        def get_attr(self, name):
            assert name == "IFLA_STATS64"
            return statistics

    assert link._rx_missed(Message()) == missed
