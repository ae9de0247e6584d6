"""MTU 9000 on NICs: longer than a frame, and neither driver takes several in zero-copy."""

import pytest

from tests.zerocopy.conftest import with_mtu

pytestmark = pytest.mark.privileged

LENGTHS = (60, 1514, 2000, 4100, 9014)


@pytest.fixture(scope="module")
def jumbo_igb(igb_nics):
    with with_mtu(igb_nics, 9000):
        yield igb_nics


@pytest.fixture(scope="module")
def jumbo_virtio(virtio_nics):
    with with_mtu(virtio_nics, 9000):
        yield virtio_nics


@pytest.fixture
def jumbo(request, bed, virtio_bed):
    """The beds' fixtures have waited for carriers."""
    return request.getfixturevalue(f"jumbo_{request.param}")


igb = pytest.mark.parametrize("jumbo", ["igb"], indirect=True)
virtio = pytest.mark.parametrize("jumbo", ["virtio"], indirect=True)
both = pytest.mark.parametrize("jumbo", ["igb", "virtio"], indirect=True)


def cross(wire):
    sent = [frame for n in range(4) for i in LENGTHS for frame in wire.send(1, first=n, length=i)]
    assert wire.receive(len(sent)) == sent
    return len(sent)


def warnings(forwarder):
    return [str(each["message"]) for each in forwarder.events if each["event"] == "warning"]


@both
def test_zero_copy_is_refused(jumbo, run_cli):
    code, said = run_cli(jumbo, "--bind", "zero-copy")
    assert (code, said.count("\n")) == (2, 1)
    assert "MTU 9000 needs 9018" in said
    assert "use --frame-size 4096 with an MTU of at most" in said
    assert "or --bind copy" in said


@igb
def test_native_mode_is_refused_by_igb(jumbo, run_cli):
    code, said = run_cli(jumbo, "--mode", "native")
    assert (code, said.count("\n")) == (2, 1)
    assert "MTU 9000 (no RX_SG)" in said


@igb
def test_igb_falls_back_to_skb_mode_and_says_so(jumbo, forward, open_wire, obtained):
    forwarder = forward(jumbo)
    assert obtained(forwarder.ready) == [("skb", "copy")] * 4
    count = cross(open_wire(jumbo))
    summary = forwarder.stop()
    assert (summary["forwarded"], summary["drops"], summary["unaccounted"]) == (count, {}, 0)
    assert any("fell back to skb" in each for each in warnings(forwarder))


@virtio
def test_virtio_takes_them_in_native_mode_by_copy(jumbo, forward, open_wire, obtained):
    forwarder = forward(jumbo)
    assert obtained(forwarder.ready) == [("native", "copy")] * 2
    count = cross(open_wire(jumbo))
    summary = forwarder.stop()
    assert (summary["forwarded"], summary["drops"], summary["unaccounted"]) == (count, {}, 0)
    assert any("copy mode was obtained" in each for each in warnings(forwarder))


@both
def test_they_are_redirected_in_skb_mode(jumbo, forward, open_wire):
    forwarder = forward(jumbo, "--data-path", "redirect", "--mode", "skb")
    count = cross(open_wire(jumbo))
    summary = forwarder.stop()
    assert (summary["forwarded"], summary["drops"]) == (count, {})


@virtio
def test_virtio_redirects_them_natively_or_says_so(jumbo, forward, open_wire):
    forwarder = forward(jumbo, "--data-path", "redirect", "--mode", "native")
    wire = open_wire(jumbo)
    sent = [frame for i in LENGTHS for frame in wire.send(1, length=i)]
    received = wire.receive(len(sent), seconds=1)
    forwarder.stop()
    if received != sent:
        assert any("jumbo frames may be lost" in each for each in warnings(forwarder))
