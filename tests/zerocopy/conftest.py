"""Fixtures: beds over the VM's NICs, and numbered frames through them, each accounted for."""

from contextlib import ExitStack, contextmanager
from uuid import uuid4

import pytest

from l2fwd import link
from l2fwd.errors import ConfigError
from l2fwd.lab import NicBed
from l2fwd.lab_traffic import Stream, settle
from tests.zerocopy import warm

IGB = ("zc0", "zc1", "zc2", "zc3")
VIRTIO = ("zc4", "zc5", "zc6", "zc7")
PLAIN = ("zc8", "zc9")  # virtio-net without the DMA API
E1000E = ("zc10", "zc11")
CARRIER_SECONDS = 30
FLOWS = 32  # so that the hash leaves no queue idle
collect_ignore = ["vm.py", "packages.py", "warm.py"]  # no tests, and not all run in the VM
PATIENCE_SECONDS = 30.0  # emulated, on a machine that does other things as well


def drivers(names):
    """Return the drivers of links; of what is not there, nothing."""
    try:
        return {link.find_link(name).driver for name in names}
    except ConfigError:
        return set()


def require(names, driver):
    """Skip the test where links of one driver are not there."""
    if drivers(names) != {driver}:
        pytest.skip(f"needs {len(names)} NICs with driver {driver}: make test-zerocopy")


def nic_bed(names, driver, queues):
    """Make a bed over NICs of one driver, or skip the test."""
    require(names, driver)
    return NicBed(f"t{uuid4().hex[:8]}", names, queues=queues)


def ends(bed):
    """Return where each link of a bed is, and its name."""
    places = (bed.gen, bed.fwd, bed.fwd, bed.sink)
    return list(zip(places, (bed.gen_link, bed.in_link, bed.out_link, bed.sink_link), strict=True))


def wait_for_carriers(bed):
    for netns, name in ends(bed):
        with link.in_netns(netns):
            assert link.wait_for_carrier(name, CARRIER_SECONDS, lambda: None), f"{name}: no carrier"


@pytest.fixture(scope="session")
def igb_nics():
    """Four igb ports with two queues each, the emulated Intel 82576, in their namespaces."""
    with nic_bed(IGB, "igb", 2) as made:
        yield made


@pytest.fixture
def bed(igb_nics):
    """The bed of igb ports, with carriers: the test before took them down as it ended."""
    wait_for_carriers(igb_nics)
    return igb_nics


@pytest.fixture(scope="session")
def virtio_nics():
    """Four virtio-net ports with one queue each, in their namespaces."""
    with nic_bed(VIRTIO, "virtio_net", 1) as made:
        yield made


@pytest.fixture
def virtio_bed(virtio_nics):
    """The bed of virtio-net ports."""
    wait_for_carriers(virtio_nics)
    return virtio_nics


@pytest.fixture
def start_l2fwd():
    """Run the command line in a process that need not import it first."""
    return warm.WarmProcess


@contextmanager
def with_mtu(bed, mtu):
    """Give all links of a bed an MTU, and back what they had."""
    with ExitStack() as undo:
        for netns, name in ends(bed):
            with link.in_netns(netns):
                undo.callback(set_mtu_in, netns, name, link.find_link(name).mtu)
                link.set_mtu(name, mtu)
        wait_for_carriers(bed)
        yield bed


def set_mtu_in(netns, name, mtu):
    with link.in_netns(netns):
        link.set_mtu(name, mtu)


@pytest.fixture
def set_mtu():
    """Set the MTU of all links of a bed until the end of the test."""
    with ExitStack() as undo:
        yield lambda bed, mtu: undo.enter_context(with_mtu(bed, mtu))


@pytest.fixture
def traffic():
    """Send numbered frames through a bed, a window at a time; return the tally of each way."""

    def run(bed, count, *, both_ways=False, during=lambda sent: None, patience=PATIENCE_SECONDS):
        left, right = (bed.gen, bed.gen_link), (bed.sink, bed.sink_link)
        with ExitStack() as undo:
            streams = [Stream(left, right, station=1, flows=FLOWS)]
            undo.callback(streams[0].close)
            if both_ways:
                streams.append(Stream(right, left, station=2, flows=FLOWS))
                undo.callback(streams[1].close)
            while any(stream.tally.sent < count for stream in streams):
                for stream in streams:
                    if stream.tally.sent < count:
                        stream.send()
                during(streams[0].tally.sent)  # while a window of frames is under way
                settle(streams, patience)
                for stream in streams:
                    stream.give_up()
            return [stream.tally for stream in streams]

    return run


@pytest.fixture
def open_wire(open_wire):
    """The same, with the patience that frames need here."""

    def open_it(bed):
        wire = open_wire(bed)
        wire.patience = PATIENCE_SECONDS
        return wire

    return open_it


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

    def run(bed, *arguments, **settings):
        forwarder = forward(bed, *arguments, ready=False, **settings)
        return forwarder.wait(PATIENCE_SECONDS), forwarder.stderr

    return run
