"""Data path ``afxdp``: NIC, AF_XDP socket, worker, AF_XDP socket, NIC.

A queue pair whose socket dies is closed, and opened again once both links are there; the
other pairs go on meanwhile.
"""

import errno
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

from l2fwd.config import BindMode, ForwardConfig
from l2fwd.datapath import Event, Notify, Stopped
from l2fwd.datapath.queue_pair import QueuePair
from l2fwd.datapath.side import Side
from l2fwd.errors import ConfigError, KernelError, L2fwdError, RunError
from l2fwd.netdev import xdp_features
from l2fwd.stats import Snapshot
from l2fwd.xsk import XdpSocket

_CARRIER_POLL_SECONDS: Final = 0.02
_MIN_RETRY_SECONDS: Final = 0.1
_MAX_RETRY_SECONDS: Final = 1.6  # a queue that is free again is taken within two seconds


class AfxdpPath:
    """Forwards between the two links of ``config`` through AF_XDP sockets.

    Parameters
    ----------
    config : ForwardConfig
    notify : callable
        Gets one dict per event: ``warning``, ``port_down``, ``port_up``, ``program_lost``,
        ``program_attached``.

    Raises
    ------
    ConfigError
        If a link is unknown or down, a queue or CPU does not exist, or the MTU does not fit.
    """

    def __init__(self, config: ForwardConfig, notify: Notify) -> None:
        self.config = config
        self._notify = notify
        self.sides = (Side(config.in_link, config), Side(config.out_link, config))
        queues = _choose_queues(config, self.sides)
        cpus = _choose_cpus(config, len(queues))
        self.pairs = [QueuePair(self.sides, q, cpu) for q, cpu in zip(queues, cpus, strict=True)]
        self._undo = ExitStack()
        self._final: Snapshot | None = None
        self._hindrances: list[str] = []  # the same one, as often as it came in a row
        self._retry = Backoff()

    def start(self, is_stopping: Callable[[], bool] = lambda: False) -> list[Event]:
        """Attach both programs, bind every queue, then let packets in; all or nothing."""

        def check() -> None:
            if is_stopping():
                raise Stopped

        with ExitStack() as undo:
            for side in self.sides:
                undo.callback(side.close)
                self._warn(side.attach())
                check()
            for side in self.sides:
                self._wait_for_carrier(side, check)
            for pair in self.pairs:
                undo.callback(pair.close)
                pair.open()
                check()
            self._check_obtained()
            # Only now: a packet let in earlier would find no worker.
            for pair in self.pairs:
                pair.start()
            self._undo = undo.pop_all()
        return [event for pair in self.pairs for event in pair.describe()]

    def _wait_for_carrier(self, side: Side, check: Callable[[], None]) -> None:
        """Attaching resets the rings of Intel NICs, which takes their carrier away."""
        if not side.link.has_carrier:
            self._warn([f"{side.name}: no carrier; what is sent there is dropped"])
            return
        deadline = time.monotonic() + self.config.carrier_timeout
        while not side.has_carrier():
            check()
            if time.monotonic() > deadline:
                self._warn([f"{side.name}: no carrier since the program was attached"])
                return
            time.sleep(_CARRIER_POLL_SECONDS)

    def _check_obtained(self) -> None:
        for i, side in enumerate(self.sides):
            queues = side.link.rx_queue_count
            if queues > len(self.pairs) and not (self.config.one_way and i == 1):
                self._warn(
                    [
                        f"{side.name}: {len(self.pairs)} of {queues} RX queues are forwarded; "
                        "the others go to the host stack"
                    ]
                )
            if self.config.socket.bind_mode is BindMode.AUTO:
                self._check_zero_copy(side, [pair.sockets[i] for pair in self.pairs])

    def _check_zero_copy(self, side: Side, sockets: list[XdpSocket]) -> None:
        """The kernel falls back to copy mode without a word (``xp_assign_dev``)."""
        features = xdp_features(side.link.ifindex)
        if features is None or not features.zero_copy or all(s.is_zero_copy for s in sockets):
            return
        note = f"{side.name}: the driver has zero-copy, copy mode was obtained; see l2fwd check"
        if self.config.strict:
            raise RunError(f"--strict: {note}")
        self._warn([note])

    def _warn(self, notes: list[str]) -> None:
        for note in notes:
            self._notify({"event": "warning", "message": note})

    def watch(self) -> None:
        """Notice dead sockets, lost programs and vanished links; mend what can be mended."""
        for side in self.sides:
            if side.attachment is not None:
                self._watch_side(side)
        for pair in self.pairs:
            if pair.has_ended:
                self._down([pair], str(pair.error or "the worker ended"))
        if all(side.attachment for side in self.sides) and all(p.is_open for p in self.pairs):
            self._retry.succeed()
            self._hindrances = []
        elif self._retry.is_due():
            self._mend()

    def _watch_side(self, side: Side) -> None:
        assert side.attachment is not None
        try:
            if side.attachment.is_there():
                return
            self._notify({"event": "program_lost", "link": side.name})
        except KernelError as error:
            if error.errno != errno.ENODEV:
                raise
            self._down(self.pairs, f"{side.name} is gone")
        side.detach()

    def _down(self, pairs: list[QueuePair], reason: str) -> None:
        """Close pairs, all at once: each may sleep a while before it stops."""
        for pair in pairs:
            pair.ask_to_stop()
        for pair in pairs:
            if pair.is_open:
                pair.close()
                self._notify({"event": "port_down", "queue": pair.queue_id, "reason": reason})

    def _mend(self) -> None:
        """Attach and open again what is closed; what does not work is said, and tried again."""
        try:
            for side in self.sides:
                if side.attachment is None:
                    side.find()
                    self._warn(side.attach())
                    self._notify({"event": "program_attached", "link": side.name})
            for pair in self.pairs:
                if not pair.is_open:
                    pair.open(bind_timeout=0)  # the next watch tries again
                    pair.start()
                    self._notify({"event": "port_up", "queue": pair.queue_id})
        except L2fwdError as error:
            self._complain(str(error))
            # A link that is not there yet costs little to look for: no back-off.
            if not isinstance(error, ConfigError):
                self._retry.fail()
        else:
            self._retry.fail()  # until it has held for a while

    def _complain(self, reason: str) -> None:
        """Say once what hinders; not at first, as a queue just closed is busy for a moment."""
        self._hindrances = [*self._hindrances, reason] if reason in self._hindrances else [reason]
        if len(self._hindrances) == 2:
            self._warn([f"not mended yet: {reason}"])

    def sample(self) -> Snapshot:
        """Read all counters."""
        if self._final is not None:
            return self._final
        snapshot = Snapshot(time.monotonic(), [])
        for pair in self.pairs:
            snapshot.ports.extend(pair.sample())
            if pair.is_open:
                snapshot.frame_count += self.config.umem.frame_count
                for place, count in pair.frames().items():
                    snapshot.frames[place] = snapshot.frames.get(place, 0) + count
        return snapshot

    def stop(self) -> None:
        """Let no more in, drain, detach, close.

        Detached only after the drain, as some drivers send nothing without a program; closed
        only after that, as some crash when a socket closes under one.
        """
        for pair in self.pairs:  # all at once: each may sleep a while before it looks
            pair.ask_to_stop()
        for pair in self.pairs:
            pair.stop()
        for side in self.sides:
            side.detach()
        if self._final is None:
            self._final = self.sample()
        self._undo.close()


class Backoff:
    """Doubles the time between tries from one failure to the next."""

    def __init__(self) -> None:
        self._delay = 0.0
        self._due = 0.0
        self._since = 0.0

    def is_due(self) -> bool:
        return time.monotonic() >= self._due

    def fail(self) -> None:
        self._delay = min(_MAX_RETRY_SECONDS, max(_MIN_RETRY_SECONDS, 2 * self._delay))
        self._due = time.monotonic() + self._delay
        self._since = 0.0

    def succeed(self) -> None:
        """Forget earlier failures once it has been well for a while."""
        now = time.monotonic()
        self._since = self._since or now
        if now - self._since > _MAX_RETRY_SECONDS:
            self._delay = self._due = 0.0


def _choose_queues(config: ForwardConfig, sides: tuple[Side, Side]) -> tuple[int, ...]:
    """Return the queue ids to serve, each of which both links have for RX and for TX.

    Beyond the TX queues a copy-mode ``sendto`` sends nothing (``xsk_generic_xmit``).
    """
    narrow = min(sides, key=lambda side: min(side.link.rx_queue_count, side.link.tx_queue_count))
    count = min(narrow.link.rx_queue_count, narrow.link.tx_queue_count)
    if config.queues is None:
        return tuple(range(count))
    for queue in config.queues:
        if queue >= count:
            raise ConfigError(
                f"queue {queue}: {narrow.name} has {count} queues, 0 to {count - 1}; "
                f"choose among them or see ethtool -L {narrow.name}"
            )
    return config.queues


def _choose_cpus(config: ForwardConfig, workers: int) -> tuple[int | None, ...]:
    """Return one CPU per worker, or None for each where none was asked for."""
    if config.cpus is None:
        return (None,) * workers
    usable = os.sched_getaffinity(0)
    for cpu in config.cpus:
        if cpu not in usable:
            listed = ",".join(map(str, sorted(usable)))
            raise ConfigError(f"cpu {cpu} is not usable by this process; it may use {listed}")
    if len(config.cpus) != workers:
        raise ConfigError(
            f"cpus names {len(config.cpus)} CPUs for {workers} workers; name one each"
        )
    return config.cpus
