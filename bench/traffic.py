"""The generator, frames made by the kernel on one link, and the sink, which counts on another.

``BPF_PROG_TEST_RUN`` with live frames makes more than 10 million a second of them on one CPU: more
than any engine takes.  It blocks its thread for as long as it sends, so it runs in a process of
its own, which a signal interrupts.
"""

import errno
import json
import os
import signal
import struct
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

from bench.latency import BUCKETS, Latency
from l2fwd import link
from l2fwd._bpf import test_run
from l2fwd.bpf import Attachment, Program
from l2fwd.config import AttachMode
from l2fwd.errors import ConfigError, KernelError, RunError

GENERATOR_CPU: Final = 0
MAX_BYTES: Final = 3520  # of a live frame: a page, less headroom and skb_shared_info
MIN_BYTES: Final = 60
HEADER_BYTES: Final = 42  # before the stamp: Ethernet, IPv4, UDP
IMIX: Final = (60, 570, 60, 570, 60, 1514, 60, 570, 60, 570, 60, 60)  # 7:4:1, without FCS

_LIVE_FRAMES: Final = 1 << 1  # BPF_F_TEST_XDP_LIVE_FRAMES
_ENDLESS: Final = (1 << 31) - 1
_BATCH: Final = 256  # TEST_XDP_MAX_BATCH
_PACED_BATCH: Final = 8  # frames leave together with their batch
_MOST_PACED: Final = 64
_BATCH_SECONDS: Final = 1e-5  # that frames of a batch may be late at a high rate
_SETTINGS: Final = struct.Struct("=7Q6I12H48s")  # struct lab_settings
_SEEN_FIELDS: Final = 7 + BUCKETS  # struct lab_seen
_SECOND_NS: Final = 10**9
_FIRST: Final = bytes(4)  # the key of an array's only entry
_TARGET_MAC: Final = "02 00 00 01 01 02"  # no link's own: what gets to a host is not looked at
_RAW: Final = bytes.fromhex(f"{_TARGET_MAC} 02 00 00 01 01 01 88 b5")  # experimental
_UDP: Final = (
    bytes.fromhex("02 00 00 00 00 02  02 00 00 00 00 01  08 00")
    + bytes.fromhex("45000032 00000000 40110000 0a4d0001 0a4d0002")
    + bytes.fromhex("04000009 001e0000")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a generator offers.

    Attributes
    ----------
    size : int
        Bytes of a frame in memory, without its check sequence: 60 to 3520.
    rate : float
        Frames a second; 0: as fast as the kernel makes them.
    packet : str
        ``raw`` (an experimental ethertype) or ``udp`` (10.77.0.1 to 10.77.0.2, port 9).
    flows : int
        Source MACs and IPv4 sources that take turns; 0: as the packet has them.
    imix : bool
        Seven frames of 60 bytes, four of 570 and one of 1514; ``size`` must be 1514.
    limit : int
        Frames in all; 0: until stopped.
    stamped : bool
        Number and time in every frame, for ``Sink.seen``.
    later_from : int
        Frames after which ``later_rate`` holds, without a pause; 0: never.  Needs a ``rate``.
    later_rate : float
    """

    size: int = 64
    rate: float = 0.0
    packet: str = "raw"
    flows: int = 0
    imix: bool = False
    limit: int = 0
    stamped: bool = False
    later_from: int = 0
    later_rate: float = 0.0

    def __post_init__(self) -> None:
        if not MIN_BYTES <= self.size <= MAX_BYTES:
            raise ConfigError(
                f"size must be in [{MIN_BYTES}, {MAX_BYTES}] bytes for frames that the kernel "
                f"makes, got {self.size}"
            )
        if self.imix and self.size != max(IMIX):
            raise ConfigError(f"size must be {max(IMIX)} for imix, got {self.size}")


def packet_of(load: Load) -> bytes:
    """Return the frame that a generator sends, as it is without flows and stamps."""
    return (_UDP if load.packet == "udp" else _RAW).ljust(load.size, b"\0")


class Generator:
    """Sends on one link; a context manager that ends its process.

    Parameters
    ----------
    netns, ifname : str
        A NIC needs a native XDP program to send live frames: the ``Sink`` is one.
    """

    _module = "bench.traffic"  # of its process

    def __init__(self, netns: str, ifname: str) -> None:
        with link.in_netns(netns):
            ifindex = link.find_link(ifname).ifindex
            self._child = subprocess.Popen(
                [sys.executable, "-m", self._module, str(ifindex)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                start_new_session=True,
            )  # fmt: skip
        self._is_sending = False
        self._changed_ns = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._child.kill()
        self._child.communicate()

    @property
    def pid(self) -> int:
        return self._child.pid

    def start(self, load: Load) -> None:
        """Send until ``stop``, or until the load's limit."""
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(asdict(load)) + "\n")
        self._child.stdin.flush()
        self._answer()
        self._is_sending = True

    def stop(self) -> int:
        """End it; return the frames sent since ``start``."""
        if not self._is_sending:
            return 0
        self._is_sending = False
        self._child.send_signal(signal.SIGUSR1)
        answer = self._answer()
        self._changed_ns = int(answer.get("changed_ns", 0))
        return int(answer["sent"])

    @property
    def changed_ns(self) -> int:
        """When the last load went over to its later rate, CLOCK_MONOTONIC; 0: it did not."""
        return self._changed_ns

    def _answer(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise RunError(f"the generator ended: exit code {self._child.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RunError(f"the generator failed: {answer['error']}")
        return answer


@dataclass(frozen=True, slots=True)
class Seen:
    """What a sink has counted.

    Attributes
    ----------
    packets, bytes, reordered, corrupted : int
        The last two of stamped frames only.
    latency : Latency
        Of stamped frames, from the program that made them to the one that counts them.
    last_gap_ns : int
        When the last frame was sent before which one is missing, CLOCK_MONOTONIC.
    """

    packets: int
    bytes: int
    reordered: int
    corrupted: int
    latency: Latency
    last_gap_ns: int = 0

    def __sub__(self, before: "Seen") -> "Seen":
        return Seen(
            self.packets - before.packets,
            self.bytes - before.bytes,
            self.reordered - before.reordered,
            self.corrupted - before.corrupted,
            self.latency - before.latency,
            self.last_gap_ns,
        )


class Sink:
    """The program that takes every frame of a link; ``close`` detaches it."""

    def __init__(self, netns: str, ifname: str) -> None:
        self._program = Program("lab_sink")
        try:
            with link.in_netns(netns):
                self._attachment = self._attach(ifname)
        except BaseException:
            self._program.close()
            raise

    def _attach(self, ifname: str) -> Attachment:
        return self._program.attach(link.find_link(ifname).ifindex, ifname, AttachMode.NATIVE)

    def close(self) -> None:
        self._attachment.detach()
        self._program.close()

    def look(self, *, stamped: bool, checked: bool = False) -> None:
        """Say what frames have in them from now on: stamps, and nothing but zeros behind."""
        self._program.update("lab_check", {_FIRST: struct.pack("=IIQ", stamped, checked, 0)})

    def seen(self) -> Seen:
        """Return what it has counted since it was attached."""
        by_field = self._program.by_field("lab_seen", 0, _SEEN_FIELDS)
        packets, size, reordered, corrupted, _newest, total, _gap, *buckets = map(sum, by_field)
        latency = Latency(buckets, total)
        return Seen(packets, size, reordered, corrupted, latency, max(by_field[6]))


class _Sender:
    """The generator's own process: a load a line, one answer when it begins and one at its end."""

    def __init__(self, ifindex: int) -> None:
        self._ifindex = ifindex
        self._program = Program("lab_send")
        self._program.load()
        self._is_told = False
        self._sent = 0
        signal.signal(signal.SIGUSR1, self._interrupt)

    def _interrupt(self, *_: object) -> None:
        self._is_told = True
        # Told before it was in the system call, it must be told again.
        signal.setitimer(signal.ITIMER_REAL, 0.05)

    def serve(self) -> None:
        signal.signal(signal.SIGALRM, self._interrupt)
        for line in sys.stdin:
            load = Load(**json.loads(line))
            before = self._sent
            self._is_told = False
            self._write(load)
            print("{}", flush=True)
            self._send(load)
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._sent, changed_ns = self._read()
            answer = {"sent": self._sent - before, "changed_ns": changed_ns}
            print(json.dumps(answer), flush=True)

    def _send(self, load: Load) -> None:
        batch = _paced_batch(load) if load.rate or load.stamped else _BATCH
        while not self._is_told:
            try:
                test_run(
                    self._program.fd, packet_of(load), repeat=_ENDLESS, flags=_LIVE_FRAMES,
                    ingress_ifindex=self._ifindex, batch_size=batch,
                )  # fmt: skip
            except KernelError as error:
                if error.errno != errno.EINTR:
                    raise

    def _write(self, load: Load) -> None:
        """Tell the program what to send; numbers go on from load to load."""
        sizes = IMIX if load.imix else (0,) * len(IMIX)
        limit = self._sent + load.limit if load.limit else 0
        fields = (
            round(_SECOND_NS / load.rate) if load.rate else 0,
            time.monotonic_ns(), limit, self._sent,
            self._sent + load.later_from if load.later_from else 0,
            round(_SECOND_NS / load.later_rate) if load.later_rate else 0, 0,
            load.flows, 0, load.stamped,
            len(IMIX) if load.imix else 0, 0, load.size, *sizes, packet_of(load)[:HEADER_BYTES],
        )  # fmt: skip
        self._program.update("lab_settings", {_FIRST: _SETTINGS.pack(*fields)})

    def _read(self) -> tuple[int, int]:
        """Return the frames sent since the process began, and when the rate changed."""
        _, values = self._program.items("lab_settings")
        fields = _SETTINGS.unpack(values)
        return fields[3], fields[6]


def _paced_batch(load: Load) -> int:
    """Return how many frames may leave together: a few, more where they are close anyway."""
    return max(_PACED_BATCH, min(_MOST_PACED, round(load.rate * _BATCH_SECONDS)))


def main() -> None:
    os.sched_setaffinity(0, {GENERATOR_CPU})
    try:
        _Sender(int(sys.argv[1])).serve()
    except (KernelError, OSError) as error:
        print(json.dumps({"error": str(error)}), flush=True)


if __name__ == "__main__":
    main()
