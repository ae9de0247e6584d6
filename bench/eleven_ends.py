"""Where the suite ``eleven`` runs: a link, its far end, and a filler that offers packets there.

The far end of a veth drops in an XDP program whatever is sent: the same for all contenders, and in
the sender's own time, as a veth takes frames in the softirq of who sent them.  The link with no far
end is an ifb, which throws away what it is given to send: what is left is the sender's own cost.
"""

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import bed
from bench.traffic import Load, packet_of
from l2fwd import link
from l2fwd.bpf import Program
from l2fwd.config import AttachMode
from l2fwd.errors import KernelError, UnsupportedError
from l2fwd.lab import Bed

SIZE: Final = 64  # bytes of a packet
TURN: Final = 768  # packets between two looks at the clock, per queue; a socket has 1024 frames
BURST: Final = 64  # packets of a batch
_FLOWS: Final = 64  # so that the hash leaves no queue idle
_SOURCE_PORT: Final = 34  # offset in an untagged IPv4 packet without options
RECEIVE_BUFFER: Final = 16 << 20  # bytes; the kernel counts 768 for a packet of 64
SO_RCVBUFFORCE: Final = 33
_LOOK_SECONDS: Final = 0.0005


@dataclass(frozen=True)
class Ends:
    """The link under test, and what is at the other end of its wire; None: of this namespace."""

    link: str
    netns: str | None
    peer: str | None
    peer_netns: str | None
    queues: int

    def arrived(self) -> int:
        """Return how many packets have come to the far end, from the kernel's own counter.

        An ifb counts what it threw away as dropped on reception (``ifb_xmit``).
        """
        ifname, column = (self.link, 3) if self.peer is None else (self.peer, 1)
        with link.in_netns(self.netns if self.peer is None else self.peer_netns):
            lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
        (line,) = (line for line in lines if line.strip().startswith(f"{ifname}:"))
        return int(line.split(":")[1].split()[column])


@contextmanager
def veth_ends(queues: int) -> Iterator[Ends]:
    with Bed(f"l2fwd-bench{os.getpid()}", queues=queues) as lab, ExitStack() as undo:
        ends = Ends("f0", lab.fwd, "g0", lab.gen, queues)
        undo.callback(drop_all(ends))
        yield ends


@contextmanager
def nic_ends(ifname: str, peer: str) -> Iterator[Ends]:
    """Use two links that a cable joins; one queue each way is what both are sure to have."""
    queues = min(2, max(1, link.find_link(ifname).rx_queue_count))
    ends = Ends(ifname, None, peer, None, queues)
    with ExitStack() as undo:
        undo.callback(drop_all(ends))
        yield ends


@contextmanager
def lone_ends(queues: int) -> Iterator[Ends]:
    """Make a link that throws away what it is given to send."""
    netns = f"l2fwd-bench{os.getpid()}-lone"
    link.create_netns(netns)
    with ExitStack() as undo:
        undo.callback(link.remove_netns, netns)
        inside = ["ip", "netns", "exec", netns]
        many = ["numtxqueues", str(queues), "numrxqueues", str(queues)]
        for command in (
            ["ip", "link", "add", "i0", *many, "type", "ifb"],
            ["ip", "link", "set", "i0", "up"],
            ["tc", "qdisc", "replace", "dev", "i0", "root", "noqueue"],  # as a veth has it
        ):
            try:
                subprocess.run([*inside, *command], check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError) as error:
                raise UnsupportedError(f"no ifb: {error}") from None
        yield Ends("i0", netns, None, None, queues)


def drop_all(ends: Ends) -> Callable[[], None]:
    """Have the far end drop what comes; return what undoes it."""
    assert ends.peer is not None
    with link.in_netns(ends.peer_netns):
        program = Program("lab_drop")
        try:
            ifindex = link.find_link(ends.peer).ifindex
            attachment = program.attach(ifindex, ends.peer, AttachMode.AUTO)
        except BaseException:
            program.close()
            raise

    def undo() -> None:
        with suppress(KernelError), link.in_netns(ends.peer_netns):
            attachment.detach()
        program.close()

    return undo


def packet(flow: int = 0) -> bytes:
    """Return a UDP packet of ``SIZE`` bytes."""
    made = bytearray(packet_of(Load(size=SIZE, packet="udp")))
    made[_SOURCE_PORT : _SOURCE_PORT + 2] = (1024 + flow).to_bytes(2, "big")
    return bytes(made)


def packet_socket(ifname: str, protocol: int) -> socket.socket:
    """Open an AF_PACKET socket with room for what waits; protocol 0 is for sending alone."""
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    opened.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
    opened.bind((ifname, protocol))
    return opened


# Packets to receive


class Filler:
    """Sends packets from the far end, on the other CPU, until the link has so many more."""

    def __init__(self, ends: Ends) -> None:
        assert ends.peer is not None
        self._ends = ends
        self._packets = [packet(flow) for flow in range(_FLOWS)]
        with link.in_netns(ends.peer_netns):
            self._socket = packet_socket(ends.peer, 0)
        self._thread = ThreadPoolExecutor(1, initializer=_pin, initargs=(bed.GENERATOR_CPU,))

    def fill(self, count: int) -> None:
        """Return when ``count`` packets have been sent and had the time to arrive."""
        self._thread.submit(self._send, count).result()
        time.sleep(_LOOK_SECONDS)

    def _send(self, count: int) -> None:
        send, packets = self._socket.send, self._packets
        for i in range(count):
            send(packets[i % _FLOWS])

    def close(self) -> None:
        self._thread.shutdown()
        self._socket.close()


def _pin(cpu: int) -> None:
    os.sched_setaffinity(0, {cpu % (os.cpu_count() or 1)})


@contextmanager
def pinned() -> Iterator[None]:
    """Give this thread the CPU that engines have, while the context lasts."""
    before = os.sched_getaffinity(0)
    _pin(bed.ENGINE_CPU)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
