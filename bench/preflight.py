"""Before a suite runs: what would spoil its figures is refused or said, and NICs are steered.

What was changed on a NIC is put back at the end, also after an error or Ctrl-C.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

from bench.bed import wait_until_quiet
from bench.environment import governors
from bench.nic_facts import cpus_in, interrupts
from l2fwd import ethtool
from l2fwd.abi import ETHERNET_HEADER_BYTES
from l2fwd.check import check_packets
from l2fwd.errors import EXIT_PERMISSION, ConfigError, KernelError, L2fwdError, RunError
from l2fwd.link import Link, find_link, wait_for_carrier
from l2fwd.netdev import xdp_features
from l2fwd.sockets import XdpSocket

Note = Callable[[str], None]

_CARRIER_SECONDS: Final = 10.0  # Intel NICs lose it when a program comes or goes
_LEAST_RING: Final = 1024
_QUEUE: Final = re.compile(r"(?:rx|tx|comp|input)\D*(\d+)", re.IGNORECASE)


class NotRootError(L2fwdError):
    """The suites make links, namespaces and sockets."""

    exit_code = EXIT_PERMISSION


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a suite will ask of the links.

    Attributes
    ----------
    frame_bytes : int
        Of the largest frame in memory: with its Ethernet header, without FCS.
    queues : int
        In use on each link.
    cpus : tuple of int
        Of the workers.
    """

    frame_bytes: int = 1514
    queues: int = 1
    cpus: tuple[int, ...] = ()


def require_root() -> None:
    """Refuse to go on without root.

    Raises
    ------
    NotRootError
    """
    if os.geteuid() != 0:
        raise NotRootError("not root; run it with sudo")


@contextmanager
def ready(
    names: Sequence[str], needs: Needs, note: Note, *, quiet_seconds: float = 0.0
) -> Iterator[None]:
    """Look at host and NICs, steer the NICs while the context lasts, and put them back.

    Parameters
    ----------
    names : sequence of str
        The NICs; none for a suite on veths.
    needs : Needs
    note : callable
        Is told what a reader of the figures should know.
    quiet_seconds : float
        How long to wait for other work to end; 0 does not look at all.

    Raises
    ------
    ConfigError
        If a link is missing, named twice, down, or has not what is needed.
    RunError
        If a link has no carrier.
    """
    for text in look_at_host(quiet_seconds):
        note(text)
    check_links(names, needs)
    for text in look_at_links(names, needs):
        note(text)
    with ExitStack() as undo:
        for name in names:
            steer(undo, name, needs.queues, note)
        yield


def look_at_host(quiet_seconds: float) -> Iterator[str]:
    """Yield what makes figures of this host doubtful."""
    if len(os.sched_getaffinity(0)) < 2:
        yield "one CPU only: generator and engine take turns, rates say little"
    slow = [each for each in governors() if each != "performance"]
    if slow:
        yield (
            f"the frequency governor is {', '.join(slow)}: the clock changes while we measure; "
            "cpupower frequency-set -g performance"
        )
    if quiet_seconds and not wait_until_quiet(quiet_seconds):
        yield f"other work kept the CPUs busy for {quiet_seconds:g} s: the spread tells how much"


def check_links(names: Sequence[str], needs: Needs) -> None:
    """Refuse links on which the suite could not run."""
    links = [find_link(name) for name in names]
    indexes = [link.ifindex for link in links]
    for link in links:
        if indexes.count(link.ifindex) > 1:
            raise ConfigError(f"{link.ifname} is named twice; name a link once")
        _check_link(link, needs)


def _check_link(link: Link, needs: Needs) -> None:
    name = link.ifname
    if not link.is_up:
        raise ConfigError(f"{name} is down; ip link set dev {name} up")
    if not link.has_carrier and not wait_for_carrier(name, _CARRIER_SECONDS, lambda: None):
        raise RunError(f"{name} has no carrier; plug in the cable, set up its other end")
    room = link.mtu + ETHERNET_HEADER_BYTES
    if room < needs.frame_bytes:
        mtu = needs.frame_bytes - ETHERNET_HEADER_BYTES
        raise ConfigError(
            f"{name} has an MTU of {link.mtu}, frames of up to {needs.frame_bytes} bytes need "
            f"{mtu}; ip link set dev {name} mtu {mtu}"
        )
    count = min(link.rx_queue_count, link.tx_queue_count)
    if count < needs.queues:
        raise ConfigError(
            f"{name} has {count} queues, {needs.queues} are asked for; "
            f"ethtool -L {name} combined {needs.queues}"
        )


def look_at_links(names: Sequence[str], needs: Needs) -> Iterator[str]:
    """Yield what makes figures of these NICs doubtful."""
    speeds = {name: ethtool.speed(name) for name in names}
    known = {name: speed for name, speed in speeds.items() if speed}
    if len(set(known.values())) > 1:
        listing = ", ".join(f"{name} {speed} Mbit/s" for name, speed in known.items())
        yield f"the links differ in speed: {listing}; the slowest is the limit"
    for name in names:
        link = find_link(name)
        yield from (str(finding) for finding in check_packets(name))
        yield from _shared_cpus(name, needs)
        if any(ethtool.pause_frames(name) or ()):
            yield f"{name}: pause frames are on: they hide drops; ethtool -A {name} rx off tx off"
        if link.rx_queue_count > needs.queues:
            yield (
                f"{name} has {link.rx_queue_count} queues, {needs.queues} are served; ethtool -L "
                f"{name} combined {needs.queues}, as drivers may forget the RSS table on a reset"
            )
        yield from _copy_mode(link)


def _shared_cpus(name: str, needs: Needs) -> Iterator[str]:
    """Yield which interrupts of the queues in use are taken by a CPU that a worker has."""
    for each in interrupts(name):
        match = _QUEUE.search(each.name.removeprefix(name))
        shared = cpus_in(each.cpus) & set(needs.cpus)
        if match and int(match[1]) < needs.queues and shared:
            yield (
                f"{name}: interrupt {each.number} ({each.name}) and a worker share CPU "
                f"{min(shared)}; echo CPU > /proc/irq/{each.number}/smp_affinity_list"
            )


def _copy_mode(link: Link) -> Iterator[str]:
    """Yield that a bind obtains copy mode, where the driver has zero-copy: tried on queue 0."""
    features = xdp_features(link.ifindex)
    if features is None or not features.zero_copy:
        return
    size = max(_LEAST_RING, 1 << (2 * ethtool.rx_ring_size(link.ifname) - 1).bit_length())
    with XdpSocket(link.ifname, frames=size, ring_size=size, frame_size=4096) as socket:
        is_zero_copy, notes = socket.is_zero_copy, list(socket.notes)
    if not wait_for_carrier(link.ifname, _CARRIER_SECONDS, lambda: None):
        raise RunError(f"{link.ifname}: the carrier did not come back after a bind; see dmesg")
    if not is_zero_copy:
        reason = "; ".join(notes) or f"see python -m l2fwd check {link.ifname}"
        yield f"{link.ifname}: copy mode obtained, though {link.driver} has zero-copy; {reason}"


@dataclass(frozen=True, slots=True)
class _Setting:
    """Something of a NIC that can be read and written."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], None]

    def change(self, undo: ExitStack, wanted: object, note: Note) -> None:
        """Write what is wanted; ``undo`` puts back what was there.  A refusal is only said."""
        before = self.read()
        if before == wanted:
            return
        undo.callback(self._put_back, before, note)  # first: Ctrl-C may come between the two
        try:
            self.write(wanted)
        except KernelError as error:
            note(f"{error}; which share a queue gets is the driver's choice")

    def _put_back(self, before: object, note: Note) -> None:
        """What cannot be put back is said, and the rest goes on."""
        try:
            if self.read() != before:
                self.write(before)
        except L2fwdError as error:
            note(f"the {self.name} is not as it was: {error}; see ethtool -X")


def steer(undo: ExitStack, name: str, queues: int, note: Note) -> None:
    """Have each of the queues in use get an equal share of the flows; ``undo`` puts it back."""
    size = len(ethtool.rss_table(name))
    if not size:
        if queues > 1:
            note(f"{name} has no RSS table: which share a queue gets is the driver's choice")
        return
    # The table that a driver begins with is one it may change itself, with the queues.
    own = [i % find_link(name).rx_queue_count for i in range(size)]
    _Setting(
        f"RSS table of {name}",
        lambda: ethtool.rss_table(name),
        lambda table: ethtool.set_rss_table(name, () if table == own else table),
    ).change(undo, [i % queues for i in range(size)], note)
    if queues > 1 and ethtool.hash_fields(name, ethtool.UDP_V4_FLOW) is not None:
        _Setting(
            f"UDP hash of {name}",
            lambda: ethtool.hash_fields(name, ethtool.UDP_V4_FLOW),
            lambda fields: ethtool.set_hash_fields(name, ethtool.UDP_V4_FLOW, fields),
        ).change(undo, ethtool.ADDRESSES_AND_PORTS, note)
