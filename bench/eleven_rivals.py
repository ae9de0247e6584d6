"""The rivals of the library's sockets: AF_PACKET in a Python loop, and scapy."""

import importlib.util
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Final

from bench.eleven_ends import RECEIVE_BUFFER, SO_RCVBUFFORCE, TURN, Ends, packet, packet_socket
from l2fwd import link

SCAPY_TURN: Final = 64
_BUFFER: Final = 2048
_ETH_P_IP: Final = 0x0800
_NO_WAIT: Final = socket.MSG_DONTWAIT  # what is lost on the way must not cost a time-out

Turn = Callable[[], int]  # moves packets, and returns how many
Rival = Callable[[Ends], AbstractContextManager[Turn]]


@contextmanager
def packet_send(ends: Ends) -> Iterator[Turn]:
    """A Python loop of AF_PACKET ``send``."""
    with link.in_netns(ends.netns):
        opened = packet_socket(ends.link, 0)

    def turn() -> int:
        send, each = opened.send, packet()
        for _ in range(TURN):
            send(each)
        return TURN

    with opened:
        yield turn


@contextmanager
def packet_receive(ends: Ends) -> Iterator[Turn]:
    """A Python loop of AF_PACKET ``recv``."""
    with link.in_netns(ends.netns):
        opened = packet_socket(ends.link, _ETH_P_IP)

    def turn() -> int:
        receive = opened.recv
        done = 0
        with suppress(BlockingIOError):
            while done < TURN * ends.queues:
                receive(_BUFFER, _NO_WAIT)
                done += 1
        return done

    with opened:
        yield turn


@contextmanager
def packet_echo(ends: Ends) -> Iterator[Turn]:
    """A Python loop of AF_PACKET ``recv`` and ``send``."""
    with link.in_netns(ends.netns):
        opened = packet_socket(ends.link, _ETH_P_IP)

    def turn() -> int:
        receive, send = opened.recv, opened.send
        done = 0
        with suppress(BlockingIOError):
            while done < TURN * ends.queues:
                send(receive(_BUFFER, _NO_WAIT))
                done += 1
        return done

    with opened:
        yield turn


@contextmanager
def _scapy(ends: Ends) -> Iterator[Any]:
    from scapy.all import conf  # all: what a user of it has, and what fills conf in

    with link.in_netns(ends.netns):
        conf.ifaces.reload()
        opened = conf.L2socket(iface=ends.link)
    try:
        opened.ins.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        opened.ins.setblocking(False)
        yield opened
    finally:
        opened.close()


@contextmanager
def scapy_send(ends: Ends) -> Iterator[Turn]:
    """Scapy's ``L2socket.send`` of a packet made before."""
    from scapy.layers.l2 import Ether

    with _scapy(ends) as opened:
        each = Ether(packet())

        def turn() -> int:
            for _ in range(SCAPY_TURN):
                opened.send(each)
            return SCAPY_TURN

        yield turn


@contextmanager
def scapy_receive(ends: Ends) -> Iterator[Turn]:
    """Scapy's ``L2socket.recv``."""
    with _scapy(ends) as opened:

        def turn() -> int:
            done = 0
            with suppress(BlockingIOError):
                for _ in range(SCAPY_TURN):
                    done += opened.recv(_BUFFER) is not None
            return done

        yield turn


@contextmanager
def scapy_echo(ends: Ends) -> Iterator[Turn]:
    """Scapy's ``L2socket.recv`` and ``send``."""
    with _scapy(ends) as opened:

        def turn() -> int:
            done = 0
            with suppress(BlockingIOError):
                for _ in range(SCAPY_TURN):
                    opened.send(opened.recv(_BUFFER))
                    done += 1
            return done

        yield turn


RIVALS: Final[Mapping[str, Mapping[str, Rival]]] = {
    "send": {"AF_PACKET": packet_send, "scapy": scapy_send},
    "receive": {"AF_PACKET": packet_receive, "scapy": scapy_receive},
    "both": {"AF_PACKET": packet_echo, "scapy": scapy_echo},
}


def is_missing(name: str) -> bool:
    """Tell whether a rival is not installed."""
    return name == "scapy" and importlib.util.find_spec("scapy") is None
