"""Fixtures: beds over the VM's NICs, and numbered frames through them, each accounted for."""

import time
from contextlib import ExitStack
from uuid import uuid4

import pytest

from l2fwd import link
from l2fwd.errors import ConfigError
from l2fwd.lab import NicBed
from l2fwd.lab_traffic import Stream, settle

IGB = ("zc0", "zc1", "zc2", "zc3")
VIRTIO = ("zc4", "zc5", "zc6", "zc7")
CARRIER_SECONDS = 10
collect_ignore = ["vm.py", "packages.py"]  # run on the host, and import each other
GIVE_UP_SECONDS = 2.0


def drivers(names):
    """Return the drivers of links; of what is not there, nothing."""
    try:
        return {link.find_link(name).driver for name in names}
    except ConfigError:
        return set()


def nic_bed(names, driver, queues):
    """Make a bed over NICs of one driver, or skip the test."""
    if drivers(names) != {driver}:
        pytest.skip(f"needs four NICs with driver {driver}: make test-zerocopy")
    return NicBed(f"t{uuid4().hex[:8]}", names, queues=queues)


def wait_for_carriers(bed):
    for netns, name in (
        (bed.gen, bed.gen_link),
        (bed.fwd, bed.in_link),
        (bed.fwd, bed.out_link),
        (bed.sink, bed.sink_link),
    ):
        with link.in_netns(netns):
            assert link.wait_for_carrier(name, CARRIER_SECONDS, lambda: None), f"{name}: no carrier"


@pytest.fixture
def bed():
    """A bed of igb ports with two queues each: the emulated Intel 82576."""
    with nic_bed(IGB, "igb", 2) as made:
        wait_for_carriers(made)
        yield made


@pytest.fixture
def virtio_bed():
    """A bed of virtio-net ports with one queue each."""
    with nic_bed(VIRTIO, "virtio_net", 1) as made:
        wait_for_carriers(made)
        yield made


@pytest.fixture
def set_mtu():
    """Set the MTU of all links of a bed; put back after the test."""
    changed = []

    def change(bed, mtu):
        for netns, name in (
            (bed.gen, bed.gen_link),
            (bed.fwd, bed.in_link),
            (bed.fwd, bed.out_link),
            (bed.sink, bed.sink_link),
        ):
            with link.in_netns(netns):
                changed.append((netns, name, link.find_link(name).mtu))
                link.set_mtu(name, mtu)
        wait_for_carriers(bed)

    yield change
    for netns, name, mtu in changed:
        with link.in_netns(netns):
            link.set_mtu(name, mtu)


@pytest.fixture
def traffic():
    """Send numbered frames through a bed, a window at a time; return the tally of each way."""

    def run(bed, count, *, both_ways=False, flows=32, during=lambda sent: None):
        left, right = (bed.gen, bed.gen_link), (bed.sink, bed.sink_link)
        with ExitStack() as undo:
            streams = [Stream(left, right, station=1, flows=flows)]
            undo.callback(streams[0].close)
            if both_ways:
                streams.append(Stream(right, left, station=2, flows=flows))
                undo.callback(streams[1].close)
            while any(stream.tally.sent < count for stream in streams):
                for stream in streams:
                    if stream.tally.sent < count:
                        stream.send()
                settle(streams, GIVE_UP_SECONDS)
                for stream in streams:
                    stream.give_up()
                during(streams[0].tally.sent)
            return [stream.tally for stream in streams]

    return run


@pytest.fixture
def obtained(capsys):
    """Say in the log, and return, how each socket is bound."""

    def tell(ready):
        with capsys.disabled():
            print()
            for each in ready["sockets"]:
                print(
                    f"    {each['link']} queue {each['queue']}: {each['attach_mode']} XDP, "
                    f"{each['bind_mode']}, frames of {each['frame_size']} bytes"
                )
            for each in ready["links"]:
                print(f"    {each['link']}: {each['attach_mode']} XDP")
        return [(each["attach_mode"], each["bind_mode"]) for each in ready["sockets"]]

    return tell


@pytest.fixture
def run_cli(forward):
    """Run ``forward`` between the middle links of a bed until it ends: exit code and stderr."""

    def run(bed, *arguments, seconds=40):
        forwarder = forward(bed, *arguments, ready=False)
        deadline = time.monotonic() + seconds
        while forwarder.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        return forwarder.wait(), forwarder.stderr

    return run
