"""The eleven ways to use the library's sockets, in the order of xdppacket's list.

Each opens a socket, or one over all queues, and tells how to move packets through it.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from bench.eleven_ends import BURST, TURN, Ends, packet
from bench.eleven_rivals import Turn
from l2fwd import MultiQueueSocket, XdpSocket, link

SINGLE, SEND, RECEIVE = 1.0, 2.0, 5.0  # goals: calls of one packet, batches

Open = Callable[[Ends], Any]  # a socket, or one over many queues


def open_one(ends: Ends) -> XdpSocket:
    with link.in_netns(ends.netns):
        return XdpSocket(ends.link, block=False, poll_timeout=0.1)


def open_many(ends: Ends) -> MultiQueueSocket:
    with link.in_netns(ends.netns):
        return MultiQueueSocket(ends.link, ends.queues, block=False, poll_timeout=0.1)


def each_of(opened: Any) -> tuple[XdpSocket, ...]:
    return opened.sockets if isinstance(opened, MultiQueueSocket) else (opened,)


def send_single(opened: Any) -> Turn:
    one, writes = packet(), [each.write for each in each_of(opened)]

    def turn() -> int:
        for write in writes:
            for _ in range(TURN):
                write(one)
        return TURN * len(writes)

    return turn


def send_batches(opened: Any) -> Turn:
    packets = [packet(flow) for flow in range(BURST)]
    calls = TURN // BURST

    def turn() -> int:
        return sum(each.write_batch(packets) for each in each_of(opened) for _ in range(calls))

    return turn


def send_spread(many: MultiQueueSocket) -> Turn:
    packets = [packet(flow) for flow in range(BURST)] * len(many.sockets)

    def turn() -> int:
        return sum(many.write_batch(packets) for _ in range(TURN // BURST))

    return turn


def receive_single(opened: Any) -> Turn:
    def turn() -> int:
        done = 0
        for each in each_of(opened):
            read = each.read
            with suppress(BlockingIOError):  # the hash gives one queue more than the other
                while True:
                    read(0)
                    done += 1
        return done

    return turn


def receive_batches(opened: Any) -> Turn:
    def turn() -> int:
        done = 0
        for each in each_of(opened):
            count = 1
            while count:
                with each.read_batch(BURST, timeout=0) as batch:
                    count = len(batch)
                done += count
        return done

    return turn


def receive_from_all(many: MultiQueueSocket) -> Turn:
    def turn() -> int:
        done, count = 0, 1
        while count:
            count = len(many.read_batch(BURST, timeout=0))
            done += count
        return done

    return turn


def echo(opened: XdpSocket) -> Turn:
    def turn() -> int:
        done, count = 0, 1
        while count:
            count = opened.read_batch(BURST, timeout=0).send_on(opened)
            done += count
        return done

    return turn


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    queues: int
    direction: str  # send, receive, both
    open: Open
    use: Callable[[Any], Turn]
    goal: float | None


# The last is what xdppacket could not do.
CASES: Final = {
    "one queue, single packet send": Case(1, "send", open_one, send_single, SINGLE),
    "one queue, batch send": Case(1, "send", open_one, send_batches, SEND),
    "one queue, single packet receive": Case(1, "receive", open_one, receive_single, SINGLE),
    "one queue, batch receive": Case(1, "receive", open_one, receive_batches, RECEIVE),
    "all queues as one, send": Case(2, "send", open_many, send_spread, SEND),
    "all queues as one, receive": Case(2, "receive", open_many, receive_from_all, RECEIVE),
    "each queue, single packet send": Case(2, "send", open_many, send_single, SINGLE),
    "each queue, batch send": Case(2, "send", open_many, send_batches, SEND),
    "each queue, single packet receive": Case(2, "receive", open_many, receive_single, SINGLE),
    "each queue, batch receive": Case(2, "receive", open_many, receive_batches, RECEIVE),
    "full duplex on one link": Case(1, "both", open_one, echo, None),
}
