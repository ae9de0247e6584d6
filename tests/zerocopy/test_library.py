"""The library's sockets and the tools with zero-copy."""

import pytest

from l2fwd import ConfigError, UnsupportedError, XdpSocket, link

pytestmark = pytest.mark.privileged


def test_a_socket_receives_and_another_sends(bed, open_wire, capsys):
    wire = open_wire(bed)
    with link.in_netns(bed.fwd):
        options = {"bind": "zero-copy", "frame_size": 4096, "frames": 512}
        with XdpSocket(bed.in_link, queue=0, **options) as left:
            with XdpSocket(bed.out_link, umem=left.umem, bind="zero-copy", frames=256) as right:
                with capsys.disabled():
                    for each in (left, right):
                        kind = "zero-copy" if each.is_zero_copy else "copy"
                        print(f"\n    {each.link} queue {each.queue}: {each.attach_mode}, {kind}")
                assert left.is_zero_copy
                assert right.is_zero_copy
                sent = wire.send(100, length=1400)  # not IP: all to the first queue
                received = []
                while len(received) < len(sent):
                    with left.read_batch(timeout=2.0) as batch:
                        assert len(batch)
                        received += batch.tolist()
                        batch.send_on(right)
                assert right.flush(2.0)
                assert received == sent
                assert wire.receive(len(sent)) == sent
                stats = left.stats()
                assert stats.rx_packets == len(sent)
                assert not any(stats.drops.values())


def test_a_socket_refuses_frames_that_the_nic_would_split(bed):
    with link.in_netns(bed.fwd), pytest.raises(ConfigError, match="--frame-size 4096"):
        XdpSocket(bed.in_link)


def test_macswap_sends_every_frame_back(bed, forward, open_wire, obtained):
    tool = forward(bed, "-z", "-f", 4096, links=(bed.in_link,), verb="macswap")
    assert obtained(tool.ready) == [("native", "zero-copy")] * 2
    wire = open_wire(bed)
    sent = wire.send(100, length=200)
    swapped = [frame[6:12] + frame[:6] + frame[12:] for frame in sent]
    assert wire.receive(len(sent), end=wire.gen) == swapped
    assert tool.stop()["unaccounted"] == 0


def test_what_igb_does_not_tell_or_do_is_named(bed):
    options = {"bind": "zero-copy", "frame_size": 4096, "frames": 512}
    with link.in_netns(bed.fwd):
        with pytest.raises(UnsupportedError, match="driver igb tells programs nothing"):
            XdpSocket(bed.in_link, rx_metadata=True, **options)
        with XdpSocket(bed.in_link, tx_metadata=True, **options) as xsk:
            assert xsk.is_zero_copy
            with pytest.raises(UnsupportedError, match="driver igb has no checksum for zero-copy"):
                xsk.write(bytes(60), checksum=(34, 6))
            xsk.write(bytes(60))
            assert xsk.flush(2.0)
