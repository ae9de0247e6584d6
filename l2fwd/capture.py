"""All packets of a link in the order read, until there are enough, or time is up, or ``stop``."""

import select
import socket
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Final

from l2fwd.errors import RunError
from l2fwd.sockets import MultiQueueSocket, XdpSocket

_BURST: Final = 64
_WAIT_SECONDS: Final = 0.1  # how soon a stop, or a link that is gone, is noticed


@dataclass(frozen=True, slots=True)
class Burst:
    """Packets of one queue, read together.

    Attributes
    ----------
    queue : int
    time_ns : int
        When they were read, ns since 1970.
    packets : list of bytes
    """

    queue: int
    time_ns: int
    packets: list[bytes]


class Capture:
    """Iterate over it to read packets.

    At its end what arrives goes to the host again, and what had arrived before is read, too.

    Parameters
    ----------
    sockets : MultiQueueSocket
    count : int
        Packets that are enough; 0 for no end.
    duration : float, optional
        Seconds.
    give_back : bool
        The host gets the packets as well, once they were yielded.

    Attributes
    ----------
    packet_count : int
        Read so far.
    given_count : int
        Of these, given to the host.

    Examples
    --------
    >>> from l2fwd import XdpSocket
    >>> with MultiQueueSocket("veth0") as sockets, XdpSocket("veth1") as sender:
    ...     sender.write_batch([bytes(60)] * 3)
    ...     sum(len(burst.packets) for burst in Capture(sockets, count=2))
    3
    2

    Raises
    ------
    RunError
        While iterating: if the link is gone.
    """

    def __init__(
        self,
        sockets: MultiQueueSocket,
        *,
        count: int = 0,
        duration: float | None = None,
        give_back: bool = False,
    ) -> None:
        self._sockets = sockets.sockets
        self._link = sockets.sockets[0].link
        self._ifindex = socket.if_nametoindex(self._link)
        self._count = count
        self._end = float("inf") if duration is None else time.monotonic() + duration
        self._is_stopped = False
        self._give_back = give_back
        self.packet_count = 0
        self.given_count = 0

    def stop(self) -> None:
        """End soon; from any thread, or a signal handler."""
        self._is_stopped = True

    def __iter__(self) -> Iterator[Burst]:
        poll = select.poll()
        for each in self._sockets:
            poll.register(each.fileno(), select.POLLIN)
        while not self._is_over():
            found = yield from self._read_all()
            if not found and not poll.poll(1e3 * max(0.0, min(_WAIT_SECONDS, self._left()))):
                self._check_link()
        for each in self._sockets:
            each.stop_receiving()
        while not self._has_enough() and (yield from self._read_all()):
            pass

    def _left(self) -> float:
        return self._end - time.monotonic()

    def _has_enough(self) -> bool:
        return 0 < self._count <= self.packet_count

    def _is_over(self) -> bool:
        return self._is_stopped or self._has_enough() or self._left() <= 0

    def _read_all(self) -> Generator[Burst, None, bool]:
        """Yield a burst of each queue that has one; return whether any had."""
        found = False
        for each in self._sockets:
            if self._has_enough():
                break
            burst = self._read(each)
            if burst.packets:
                found = True
                self.packet_count += len(burst.packets)
                yield burst
                if self._give_back:
                    self.given_count += each.give_to_host(burst.packets)
        return found

    def _read(self, each: XdpSocket) -> Burst:
        most = min(_BURST, self._count - self.packet_count) if self._count else _BURST
        with each.read_batch(most, timeout=0) as batch:
            return Burst(each.queue, int(batch.timestamp_ns[0]) if batch else 0, batch.tolist())

    def _check_link(self) -> None:
        """No event tells of a link that was deleted."""
        try:
            found = socket.if_nametoindex(self._link)
        except OSError:
            found = 0
        if found != self._ifindex:
            raise RunError(f"{self._link}: the link is gone")
