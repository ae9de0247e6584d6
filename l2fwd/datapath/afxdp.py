"""Data path ``afxdp``: NIC, AF_XDP socket, worker, AF_XDP socket, NIC.

A queue pair whose socket dies is closed, and opened again once both links are there; the
other pairs go on meanwhile.
"""

import errno
import os
import time
from contextlib import ExitStack

from l2fwd.config import ForwardConfig
from l2fwd.datapath import Event, Notify
from l2fwd.datapath.queue_pair import QueuePair
from l2fwd.datapath.side import Side
from l2fwd.errors import ConfigError, KernelError, L2fwdError
from l2fwd.stats import Snapshot


class AfxdpPath:
    """Forwards between the two links of ``config`` through AF_XDP sockets.

    Parameters
    ----------
    config : ForwardConfig
    notify : callable
        Gets one dict per event: ``warning``, ``port_down``, ``port_up``, ``program_lost``.

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
        self._missing: set[str] = set()

    def start(self) -> list[Event]:
        """Attach both programs, bind every queue, then let packets in; all or nothing."""
        with ExitStack() as undo:
            for side in self.sides:
                undo.callback(side.close)
                self._warn(side.attach())
            self._wait_for_carrier()
            for pair in self.pairs:
                undo.callback(pair.close)
                pair.open()
            # Only now: a packet let in earlier would find no worker.
            for pair in self.pairs:
                pair.start()
            self._undo = undo.pop_all()
        self._check_obtained()
        return [event for pair in self.pairs for event in pair.describe()]

    def _wait_for_carrier(self) -> None:
        for side in self.sides:
            if side.link.has_carrier and not side.wait_for_carrier():
                self._warn([f"{side.name}: no carrier since the program was attached"])
            elif not side.link.has_carrier:
                self._warn([f"{side.name}: no carrier; what is sent there is dropped"])

    def _check_obtained(self) -> None:
        for side in self.sides:
            if side.link.rx_queue_count > len(self.pairs):
                self._warn(
                    [
                        f"{side.name} has {side.link.rx_queue_count} RX queues, {len(self.pairs)} "
                        "are forwarded; the others go to the host stack"
                    ]
                )

    def _warn(self, notes: list[str]) -> None:
        for note in notes:
            self._notify({"event": "warning", "message": note})

    def watch(self) -> None:
        """Notice dead sockets, lost programs and vanished links; mend what can be mended."""
        for side in self.sides:
            self._watch_side(side)
        for pair in self.pairs:
            if pair.has_ended:
                self._down(pair, str(pair.error or "the worker ended"))
        if not self._missing:
            self._reopen()

    def _watch_side(self, side: Side) -> None:
        try:
            if side.name in self._missing:
                side.find_again()
                self._missing.discard(side.name)
            elif side.attachment is not None and not side.is_attached():
                side.detach()
                self._notify({"event": "program_lost", "link": side.name})
        except ConfigError:
            return  # not back yet
        except KernelError as error:
            if error.errno != errno.ENODEV:
                raise
            self._missing.add(side.name)
            side.detach()
            for pair in self.pairs:
                self._down(pair, f"{side.name} is gone")

    def _down(self, pair: QueuePair, reason: str) -> None:
        if pair.is_open:
            pair.close()
            self._notify({"event": "port_down", "queue": pair.queue_id, "reason": reason})

    def _reopen(self) -> None:
        """Attach and open again what is closed; what does not work now is tried again."""
        try:
            for side in self.sides:
                if side.attachment is None:
                    self._warn(side.attach())
                    self._notify({"event": "program_attached", "link": side.name})
            for pair in self.pairs:
                if not pair.is_open:
                    pair.open()
                    pair.start()
                    self._notify({"event": "port_up", "queue": pair.queue_id})
        except L2fwdError:
            return

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
        """Detach first, so that nothing arrives any more, then drain, then close.

        Closing a socket under a live program crashes some drivers.
        """
        for side in self.sides:
            side.detach()
        for pair in self.pairs:  # all at once: each may sleep a while before it looks
            pair.ask_to_stop()
        for pair in self.pairs:
            pair.stop()
        if self._final is None:
            self._final = self.sample()
        self._undo.close()


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
