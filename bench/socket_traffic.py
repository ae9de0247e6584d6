"""The other generator: ours, over AF_XDP sockets.

Slower than frames that the kernel makes, but it sends jumbo frames, and by every queue of a veth.
"""

import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from bench.traffic import GENERATOR_CPU, MIN_BYTES, Generator, Load, packet_of
from l2fwd import XdpSocket
from l2fwd.errors import ConfigError, L2fwdError

MAX_BYTES: Final = 9014  # at MTU 9000
MAX_FLOWS: Final = 4096  # their packets are made beforehand
_BURST: Final = 64
_FIRST_SOURCE: Final = 10 << 24  # as the kernel's generator has them
_SOURCE: Final = slice(26, 30)
_WAIT_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketLoad(Load):
    """What this generator offers: packets of one size, as fast as it can.

    Attributes
    ----------
    size : int
        60 to 9014.
    flows : int
        IPv4 sources that take turns, 4096 at most; the MACs stay.
    queues : int
        That send, from 0 on.
    """

    queues: int = 1

    def __post_init__(self) -> None:
        if not MIN_BYTES <= self.size <= MAX_BYTES:
            raise ConfigError(
                f"size must be in [{MIN_BYTES}, {MAX_BYTES}] bytes for frames of our own, "
                f"got {self.size}"
            )
        if not 0 <= self.flows <= MAX_FLOWS:
            raise ConfigError(
                f"flows must be in [0, {MAX_FLOWS}] for frames of our own, got {self.flows}"
            )
        if self.imix or self.stamped or self.rate or self.limit:
            raise ConfigError("imix, stamps, rates and limits need frames that the kernel makes")


class SocketGenerator(Generator):
    """Sends ``SocketLoad`` on one link, where its own program is meanwhile."""

    _module = "bench.socket_traffic"


class _Sender:
    """The generator's own process: a load a line, one answer when it begins and one at its end."""

    def __init__(self, ifname: str) -> None:
        self._ifname = ifname
        self._is_told = False
        signal.signal(signal.SIGUSR1, self._interrupt)

    def _interrupt(self, *_: object) -> None:
        self._is_told = True

    def serve(self) -> None:
        for line in sys.stdin:
            load = SocketLoad(**json.loads(line))
            self._is_told = False
            with ExitStack() as undo:
                sockets = [undo.enter_context(self._open(queue)) for queue in range(load.queues)]
                print("{}", flush=True)
                sent = self._send(sockets, bursts_of(load))
            print(json.dumps({"sent": sent}), flush=True)

    def _open(self, queue: int) -> XdpSocket:
        return XdpSocket(
            self._ifname, queue, receive=False, block=False, poll_timeout=_WAIT_SECONDS
        )

    def _send(self, sockets: Sequence[XdpSocket], bursts: Sequence[list[bytes]]) -> int:
        sent = 0
        while not self._is_told:
            for burst in bursts:
                sent += sum(each.write_batch(burst) for each in sockets)
                if self._is_told:
                    break
        return sent


def bursts_of(load: Load) -> list[list[bytes]]:
    """Return all packets of a load, in the bursts they are sent by."""
    packet = packet_of(load)
    if not load.flows:
        return [[packet] * _BURST]
    packets = [
        packet[: _SOURCE.start] + (_FIRST_SOURCE + flow).to_bytes(4, "big") + packet[_SOURCE.stop :]
        for flow in range(load.flows)
    ]
    packets *= -(-_BURST // len(packets))
    return [packets[at : at + _BURST] for at in range(0, len(packets), _BURST)]


def main() -> None:
    os.sched_setaffinity(0, {GENERATOR_CPU})
    try:
        _Sender(socket.if_indextoname(int(sys.argv[1]))).serve()
    except (L2fwdError, OSError) as error:
        print(json.dumps({"error": str(error)}), flush=True)


if __name__ == "__main__":
    main()
