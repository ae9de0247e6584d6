"""Drivers that have less: zero-copy asked for is refused by name, a fall-back is said."""

from contextlib import ExitStack
from types import SimpleNamespace
from uuid import uuid4

import pytest

from l2fwd import link
from tests.zerocopy.conftest import CARRIER_SECONDS, E1000E, PLAIN, require

pytestmark = pytest.mark.privileged

DRIVERS = {"virtio_net": PLAIN, "e1000e": E1000E}


@pytest.fixture
def cable(request):
    """Two links of one wire, each in a namespace, as ``forward`` and ``open_wire`` take a bed."""
    near, far = DRIVERS[request.param]
    require((near, far), request.param)
    token = uuid4().hex[:8]
    with ExitStack() as undo:
        home = undo.enter_context(open("/proc/thread-self/ns/net", "rb"))
        for netns, ifname in ((f"{token}-near", near), (f"{token}-far", far)):
            link.create_netns(netns)
            undo.callback(link.remove_netns, netns)
            link.move(ifname, netns)
            undo.callback(move_from, netns, ifname, f"/proc/self/fd/{home.fileno()}")
            with link.in_netns(netns):
                link.disable_ipv6(ifname)
                link.set_promiscuous(ifname, True)
                link.set_up(ifname)
                assert link.wait_for_carrier(ifname, CARRIER_SECONDS, lambda: None)
        yield SimpleNamespace(
            fwd=f"{token}-near", in_link=near,
            gen=f"{token}-far", gen_link=far, sink=f"{token}-far", sink_link=far,
        )  # fmt: skip


def move_from(netns, ifname, home):
    with link.in_netns(netns):
        link.move(ifname, home)


@pytest.mark.parametrize(
    ("cable", "code", "why"),
    [
        ("virtio_net", 2, "a virtio device does without the DMA API"),
        ("e1000e", 4, "zero-copy needs a native program, skb mode was obtained"),
    ],
    indirect=["cable"],
)
def test_zero_copy_that_the_driver_has_not_is_refused(cable, run_cli, code, why):
    found, said = run_cli(cable, "--bind", "zero-copy", links=(cable.in_link,), verb="macswap")
    assert (found, said.count("\n")) == (code, 1), said
    assert cable.in_link in said
    assert why in said


@pytest.mark.parametrize(
    ("cable", "mode", "why"),
    [
        ("virtio_net", "native", "copy mode was obtained"),
        ("e1000e", "skb", "fell back to skb"),
    ],
    indirect=["cable"],
)
def test_the_fall_back_works_and_is_said(cable, forward, open_wire, obtained, mode, why):
    tool = forward(cable, links=(cable.in_link,), verb="macswap")
    assert obtained(tool.ready) == [(mode, "copy")]
    wire = open_wire(cable)
    sent = wire.send(100, length=200)
    swapped = [frame[6:12] + frame[:6] + frame[12:] for frame in sent]
    assert wire.receive(len(sent)) == swapped
    assert tool.stop()["unaccounted"] == 0
    said = [str(each["message"]) for each in tool.events if each["event"] == "warning"]
    assert any(why in each for each in said), said
