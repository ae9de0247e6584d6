"""Frames that do for a driver and an MTU: chosen, where the choice is left, else checked."""

from dataclasses import replace

import pytest

from l2fwd import link
from l2fwd.config import BindMode, ForwardConfig, SocketConfig, UmemConfig
from l2fwd.datapath import side
from l2fwd.datapath.side import Side, with_fitting_frames
from l2fwd.errors import ConfigError
from l2fwd.netdev import xdp_features

pytestmark = pytest.mark.privileged


@pytest.fixture
def pretend(bed, monkeypatch):
    """Have the links of a bed look like those of a NIC with zero-copy."""

    def to_be(driver, mtu, zc_max_segs=1):
        with link.in_netns(bed.fwd):
            real = link.find_link("f0")
            features = replace(xdp_features(real.ifindex), zero_copy=True, zc_max_segs=zc_max_segs)
        found = replace(real, driver=driver, mtu=mtu)
        monkeypatch.setattr(link, "find_link", lambda name: replace(found, ifname=name))
        monkeypatch.setattr(side, "xdp_features", lambda ifindex: features)

    return to_be


def config(bind, **settings):
    return ForwardConfig(
        in_link="f0", out_link="f1", socket=SocketConfig(bind_mode=BindMode(bind)), **settings
    )


@pytest.mark.parametrize(
    ("driver", "mtu", "zc_max_segs", "bind", "frame_size"),
    [
        ("igb", 1500, 1, "auto", 4096),
        ("igb", 1500, 1, "copy", 2048),
        ("igb", 1000, 1, "auto", 2048),
        ("igb", 3000, 1, "auto", 4096),  # in one frame, or it would not be zero-copy
        ("igb", 9000, 1, "auto", 2048),  # copy mode, whatever the frames are
        ("virtio_net", 1500, 1, "auto", 2048),
        ("virtio_net", 3000, 1, "zero-copy", 4096),
        ("i40e", 9000, 8, "zero-copy", 2048),
        ("i40e", 9000, 4, "zero-copy", 4096),  # three of these, six of the others
    ],
)
def test_the_smallest_frames_that_do_are_chosen(
    pretend, driver, mtu, zc_max_segs, bind, frame_size
):
    pretend(driver, mtu, zc_max_segs)
    chosen = with_fitting_frames(config(bind, may_enlarge_frames=True))
    assert chosen == config(bind, may_enlarge_frames=True, umem=UmemConfig(frame_size=frame_size))
    assert Side("f0", chosen, lambda found: None).link.driver == driver


def test_hybrid_keeps_to_copy_mode_if_zero_copy_is_not_asked_for(pretend):
    pretend("igb", 1500)
    hybrid = Side("f0", config("auto", data_path="hybrid"), lambda found: None)
    assert hybrid.config.keeps_to_copy_mode
    assert not Side(
        "f0", with_fitting_frames(config("auto", may_enlarge_frames=True)), lambda found: None
    ).config.keeps_to_copy_mode


def test_hybrid_is_refused_where_zero_copy_drops_what_is_redirected(pretend):
    """virtio_net: tx_xdp_tx_drops, and nothing else that tells."""
    pretend("virtio_net", 1500)
    with pytest.raises(ConfigError, match="use --bind copy, or --data-path afxdp"):
        Side("f0", config("zero-copy", data_path="hybrid"), lambda found: None)
    pretend("igb", 1000)
    assert not Side(
        "f0", config("zero-copy", data_path="hybrid"), lambda found: None
    ).config.keeps_to_copy_mode


@pytest.mark.parametrize("bind", ["auto", "zero-copy"])
def test_a_frame_size_that_was_asked_for_is_kept_and_refused(pretend, bind):
    pretend("igb", 1500)
    asked = config(bind)
    assert with_fitting_frames(asked) is asked
    with pytest.raises(ConfigError, match="use --frame-size 4096, or --bind copy"):
        Side("f0", asked, lambda found: None)


@pytest.mark.parametrize("driver", ["igb", "virtio_net"])
def test_jumbo_frames_in_zero_copy_are_refused_where_a_packet_has_one_frame(pretend, driver):
    pretend(driver, 9000)
    chosen = with_fitting_frames(config("zero-copy", may_enlarge_frames=True))
    with pytest.raises(ConfigError, match=r"an MTU of at most \d+, or --bind copy"):
        Side("f0", chosen, lambda found: None)
