"""Numbered frames for the lab: sent on one link, checked byte by byte on another.

Size and bytes of a frame follow from its sequence number, so the receiver needs nothing
from the sender.  Never more than ``WINDOW`` frames are under way: a slow receiver makes the
sender wait, and whatever is missing was lost by the forwarder.
"""

import errno
import random
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Final

from l2fwd import link
from l2fwd.abi import ETHERNET_HEADER_BYTES
from l2fwd.errors import kernel_error

# Half the ring of a veth queue (VETH_RING_SIZE), which drops what does not fit.
WINDOW: Final = 128
ETHERTYPE_IPV4: Final = 0x0800
PROTOCOL: Final = 253  # RFC 3692: for experiments; packets of other protocols are not ours
MIN_FRAME_BYTES: Final = 60  # of Ethernet, less the check sequence
MAX_FRAME_BYTES: Final = 1514

_SEQUENCE: Final = struct.Struct("!Q")
_IPV4: Final = struct.Struct("!BBHHHBBH4s4s")
_IP_PROTOCOL: Final = ETHERNET_HEADER_BYTES + 9  # where it is in a frame
_NUMBER: Final = ETHERNET_HEADER_BYTES + _IPV4.size  # where the sequence number is
_BODY: Final = _NUMBER + _SEQUENCE.size
_OURS: Final = bytes((PROTOCOL,))
_KINDS: Final = 1009  # frames that differ; prime, and far more than a window
_RECEIVE_BYTES: Final = 16384  # also takes what came out longer than it went in
_BUFFER_BYTES: Final = 1 << 22  # a window, at one page and an skb per frame, many times over
_WAIT_MS: Final = 20
_GIVE_UP_SECONDS: Final = 0.5  # no frame for so long: what is under way is gone

# asm/socket.h, linux/if_packet.h
_SO_RCVBUFFORCE: Final = 33
_SOL_PACKET: Final = 263
_PACKET_STATISTICS: Final = 6


@dataclass(slots=True)
class Tally:
    """What became of numbered frames.

    Attributes
    ----------
    sent : int
    received : int
        Intact, each counted once.
    duplicated : int
        Intact, and received before.
    reordered : int
        Received after a frame that was sent later.
    corrupted : int
        Not what was sent.
    """

    sent: int = 0
    received: int = 0
    duplicated: int = 0
    reordered: int = 0
    corrupted: int = 0

    @property
    def lost(self) -> int:
        """Frames sent of which nothing came."""
        return max(0, self.sent - self.received - self.corrupted)

    def __add__(self, other: "Tally") -> "Tally":
        mine, theirs = asdict(self), asdict(other)
        return Tally(**{name: mine[name] + theirs[name] for name in mine})


class Stream:
    """Numbered frames from one link to another; close it after use.

    Parameters
    ----------
    source, target : (netns, ifname)
    station : int
        Different for each stream, so that a frame on the wrong link is noticed.
    flows : int
        Source addresses the frames have.  By these a link spreads them over its queues; the
        order counts within each.
    """

    def __init__(
        self, source: tuple[str, str], target: tuple[str, str], *, station: int, flows: int
    ) -> None:
        self.tally = Tally()
        self._flows = flows
        kinds = _frame_kinds(station, flows)
        self._frames = [bytearray(header + bytes(8) + body) for header, body in kinds]
        self._kinds = kinds
        self._outstanding: set[int] = set()
        self._newest = [-1] * flows
        self._arrived = 0
        self._given_up = 0
        self._sender = _packet_socket(*source, protocol=0)
        try:
            self._receiver = _packet_socket(*target, protocol=ETHERTYPE_IPV4)
        except BaseException:
            self._sender.close()
            raise

    def close(self) -> None:
        """Close both sockets."""
        self._sender.close()
        self._receiver.close()

    def fileno(self) -> int:
        """Return the receiver's descriptor, for ``poll``."""
        return self._receiver.fileno()

    @property
    def under_way(self) -> int:
        """Frames sent that neither came nor were given up."""
        return self.tally.sent - self._arrived - self._given_up

    def send(self) -> None:
        """Send until the window is full, or the link takes no more for now."""
        frames, send, pack = self._frames, self._sender.send, _SEQUENCE.pack_into
        outstanding = self._outstanding
        first = self.tally.sent
        for sequence in range(first, first + WINDOW - self.under_way):
            frame = frames[sequence % _KINDS]
            pack(frame, _NUMBER, sequence)
            try:
                send(frame)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.ENOBUFS):
                    return
                raise kernel_error(error.errno or 0, "send on", "lab link") from error
            outstanding.add(sequence)
            self.tally.sent += 1

    def receive(self) -> int:
        """Check every frame that is there; return how many."""
        receive, check = self._receiver.recv, self._check
        before = self._arrived
        try:
            while True:
                check(receive(_RECEIVE_BYTES))
        except BlockingIOError:
            return self._arrived - before
        except OSError as error:
            raise kernel_error(error.errno or 0, "receive on", "lab link") from error

    def give_up(self) -> None:
        """Wait no longer for what is under way."""
        self._given_up += self.under_way

    def socket_drops(self) -> int:
        """Return frames the receiving socket had no room for, since the last call."""
        answer = self._receiver.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        _packets, drops = struct.unpack("II", answer)  # struct tpacket_stats
        return int(drops)

    def _check(self, frame: bytes) -> None:
        if frame[_IP_PROTOCOL : _IP_PROTOCOL + 1] != _OURS:
            return
        self._arrived += 1
        tally = self.tally
        sequence = int.from_bytes(frame[_NUMBER:_BODY], "big")
        kind = sequence % _KINDS
        header, body = self._kinds[kind]
        if not (
            sequence < tally.sent
            and len(frame) == _BODY + len(body)
            and frame.startswith(header)
            and frame.endswith(body)
        ):
            tally.corrupted += 1
            return
        if sequence not in self._outstanding:
            tally.duplicated += 1
            return
        self._outstanding.remove(sequence)
        flow = kind % self._flows
        if sequence > self._newest[flow]:
            self._newest[flow] = sequence
        else:
            tally.reordered += 1
        tally.received += 1


def exchange(streams: Sequence[Stream], seconds: float, go_on: Callable[[], bool]) -> float:
    """Send on all streams for so long, and receive; return the seconds it took.

    ``go_on`` is asked some times a second; False ends it at once.
    """
    began = now = look = heard = time.monotonic()
    poller = _poller(streams)
    while now < began + seconds:
        for stream in streams:
            stream.send()
        arrived = sum(stream.receive() for stream in streams)
        if arrived or poller.poll(_WAIT_MS):
            heard = now
        elif now - heard > _GIVE_UP_SECONDS:
            heard = now
            for stream in streams:
                stream.give_up()
        if now >= look:
            look = now + _WAIT_MS / 1000
            if not go_on():
                break
        now = time.monotonic()
    return now - began


def settle(streams: Sequence[Stream], seconds: float) -> None:
    """Receive what is still under way, for at most so long."""
    deadline = time.monotonic() + seconds
    poller = _poller(streams)
    while any(stream.under_way > 0 for stream in streams) and time.monotonic() < deadline:
        poller.poll(_WAIT_MS)
        for stream in streams:
            stream.receive()


def _poller(streams: Sequence[Stream]) -> "select.poll":
    poller = select.poll()
    for stream in streams:
        poller.register(stream, select.POLLIN)
    return poller


def _frame_kinds(station: int, flows: int) -> list[tuple[bytes, bytes]]:
    """Return what is before and after the sequence number, by sequence number % ``_KINDS``."""
    chance = random.Random(station)
    sizes = [MIN_FRAME_BYTES, MAX_FRAME_BYTES]
    sizes += [chance.randint(MIN_FRAME_BYTES, MAX_FRAME_BYTES) for _ in range(_KINDS - len(sizes))]
    return [
        (_header(station, kind % flows, size), chance.randbytes(size - _BODY))
        for kind, size in enumerate(sizes)
    ]


def _header(station: int, flow: int, size: int) -> bytes:
    """Return the Ethernet and IPv4 headers of a frame of ``size`` bytes."""
    # Locally administered, and no link's own: the stack that receives it looks no further.
    macs = bytes((2, 0, 0, 1, station, 2, 2, 0, 0, 1, station, 1))
    source = bytes((198, 18)) + flow.to_bytes(2, "big")  # RFC 2544: for benchmarks
    target = bytes((198, 19, station, 1))
    length = size - ETHERNET_HEADER_BYTES
    fields = [0x45, 0, length, 0, 0, 64, PROTOCOL, 0, source, target]
    total = sum(struct.unpack("!10H", _IPV4.pack(*fields)))
    total = (total & 0xFFFF) + (total >> 16)
    fields[7] = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF  # RFC 1071
    return macs + ETHERTYPE_IPV4.to_bytes(2, "big") + _IPV4.pack(*fields)


def _packet_socket(netns: str, ifname: str, *, protocol: int) -> socket.socket:
    with link.in_netns(netns), ExitStack() as undo:
        try:
            # Protocol 0 until bound, or it would queue frames of every link.
            sock = undo.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
            sock.setblocking(False)
            sock.bind((ifname, protocol))
        except OSError as error:
            raise kernel_error(error.errno or 0, "open packet socket on", ifname) from error
        undo.pop_all()
    return sock
