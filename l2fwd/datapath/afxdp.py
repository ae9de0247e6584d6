"""Data path ``afxdp``: NIC, AF_XDP socket, worker, AF_XDP socket, NIC.

A queue pair whose socket dies is closed, and opened again once both links are there; the
other pairs go on meanwhile.
"""

import os
import time
from collections.abc import Callable
from contextlib import ExitStack

from l2fwd import bpf, link
from l2fwd.config import BindMode, ForwardConfig
from l2fwd.datapath import Event, Notify
from l2fwd.datapath.linked import LinkedPath, stop_check
from l2fwd.datapath.queue_pair import QueuePair
from l2fwd.datapath.side import Side
from l2fwd.errors import ConfigError, RunError
from l2fwd.netdev import xdp_features
from l2fwd.stats import Snapshot
from l2fwd.xsk import XdpSocket


class AfxdpPath(LinkedPath):
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
        sides = (
            Side(config.in_link, config, _make_program),
            Side(config.out_link, config, _make_program),
        )
        super().__init__(sides, notify)
        queues = _choose_queues(config, sides)
        cpus = _choose_cpus(config, len(queues))
        self.pairs = [QueuePair(sides, q, cpu) for q, cpu in zip(queues, cpus, strict=True)]
        self._undo = ExitStack()
        self._final: Snapshot | None = None

    def start(self, is_stopping: Callable[[], bool] = lambda: False) -> Event:
        """Attach both programs, bind every queue, then let packets in; all or nothing."""
        check = stop_check(is_stopping)
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
        sockets = [each for pair in self.pairs for each in pair.describe()]
        return {"sockets": sockets, "links": []}

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

    def _watch_ended(self) -> None:
        for pair in self.pairs:
            if pair.has_ended:
                self._down([pair], str(pair.error or "the worker ended"))

    def _close_all(self, reason: str) -> None:
        self._down(self.pairs, reason)

    def _is_open(self) -> bool:
        return all(pair.is_open for pair in self.pairs)

    def _open_again(self) -> None:
        for pair in self.pairs:
            if not pair.is_open:
                pair.open(bind_timeout=0)  # the next watch tries again
                pair.start()
                self._notify({"event": "port_up", "queue": pair.queue_id})

    def _down(self, pairs: list[QueuePair], reason: str) -> None:
        """Close pairs, all at once: each may sleep a while before it stops."""
        for pair in pairs:
            pair.ask_to_stop()
        for pair in pairs:
            if pair.is_open:
                pair.close()
                self._notify({"event": "port_down", "queue": pair.queue_id, "reason": reason})

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


def _make_program(found: link.Link) -> bpf.Program:
    return bpf.Program("afxdp", {"sockets": max(found.rx_queue_count, 1)})


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
