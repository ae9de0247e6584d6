"""What all jobs over AF_XDP sockets share: programs, workers, and mending what died.

A worker whose socket dies is closed, and opened again once all links are there; the
other workers go on meanwhile.
"""

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final, Generic, TypeVar

from l2fwd import bpf, link
from l2fwd.busy_poll import DeferredInterrupts
from l2fwd.config import BindMode, JobConfig
from l2fwd.datapath import Event, Notify, Stopped
from l2fwd.datapath.linked import LinkedPath, stop_check
from l2fwd.datapath.queue_worker import QueueWorker
from l2fwd.datapath.side import Side, missed_samples, with_fitting_frames
from l2fwd.errors import ConfigError, RunError
from l2fwd.netdev import xdp_features
from l2fwd.stats import Snapshot
from l2fwd.xsk import BoundSocket, Umem, check_nic_ring

_STALL_SECONDS: Final = 1.0

Config = TypeVar("Config", bound=JobConfig)


class SocketPath(LinkedPath, Generic[Config]):
    """Runs workers over the sockets of ``config``'s links.

    A path says which sockets a worker has, and what it does with them: ``_make_workers`` and
    ``_worker_options``.

    Parameters
    ----------
    config : JobConfig
    notify : callable
        Gets one dict per event: ``warning``, ``port_down``, ``port_up``, ``program_lost``,
        ``program_attached``.

    Raises
    ------
    ConfigError
        If a link is unknown or down, a queue or CPU does not exist, or the MTU does not fit.
    """

    def __init__(self, config: Config, notify: Notify) -> None:
        self.config = config = with_fitting_frames(config)
        sides = tuple(Side(name, config, self._make_program) for name in config.links)
        super().__init__(sides, notify)
        self.workers = self._make_workers()
        self._undo = ExitStack()
        self._final: Snapshot | None = None
        self._next_look = 0.0

    def start(self, is_stopping: Callable[[], bool] = lambda: False) -> Event:
        """Attach both programs, bind every queue, then let packets in; all or nothing."""
        check = stop_check(is_stopping)
        with ExitStack() as undo:
            for side in self.sides:
                undo.callback(side.close)
            self._prepare(undo)
            for side in self.sides:
                self._warn(side.attach())
                check()
            for side in self.sides:
                self._wait_for_carrier(side, check)
            self._defer_interrupts(undo)
            for worker in self.workers:
                undo.callback(worker.close)
                worker.open()
                check()
            self._check_obtained()
            # Only now: a packet let in earlier would find no worker.
            for worker in self.workers:
                worker.start()
            self._undo = undo.pop_all()
        sockets = [each for worker in self.workers for each in worker.describe()]
        return {"sockets": sockets, "links": []}

    def _make_workers(self) -> list[QueueWorker]:
        """Return one worker a queue, each with a socket on every link."""
        queues = choose_queues(self.config, self.sides)
        return [
            QueueWorker(self.sides, queue, cpu, self._worker_options)
            for queue, cpu in zip(queues, choose_cpus(self.config, len(queues)), strict=True)
        ]

    def _make_program(self, found: link.Link) -> bpf.Program:
        return bpf.Program("afxdp", {"sockets": max(found.rx_queue_count, 1)})

    def _prepare(self, undo: ExitStack) -> None:
        """Make ready what must be in force before a program is attached."""

    def _worker_options(self, of: QueueWorker, umem: Umem) -> dict[str, Any]:
        """Return what a ``Worker`` is told beside its ports and their geometry."""
        raise NotImplementedError

    def _check_obtained(self) -> None:
        for side in self.sides:
            queues = side.link.rx_queue_count
            served = [worker for worker in self.workers if worker.receives(side)]
            if 0 < len(served) < queues:
                self._warn(
                    [
                        f"{side.name}: {len(served)} of {queues} RX queues are served; "
                        "the others go to the host stack"
                    ]
                )
            sockets = [xsk for worker in served for xsk in worker.on(side)]
            if any(xsk.is_zero_copy for xsk in sockets):
                self._warn(check_nic_ring(side.link, self.config.fill_target))
            is_auto = self.config.socket.bind_mode is BindMode.AUTO
            if is_auto and not self.config.keeps_to_copy_mode:
                self._check_zero_copy(side, [xsk for w in self.workers for xsk in w.on(side)])

    def _check_zero_copy(self, side: Side, sockets: list[BoundSocket]) -> None:
        """The kernel falls back to copy mode without a word (``xp_assign_dev``)."""
        features = xdp_features(side.link.ifindex)
        if features is None or not features.zero_copy or all(s.is_zero_copy for s in sockets):
            return
        note = f"{side.name}: the driver has zero-copy, copy mode was obtained; see l2fwd check"
        if self.config.strict:
            raise RunError(f"--strict: {note}")
        self._warn([note])

    def _defer_interrupts(self, undo: ExitStack) -> None:
        """Have the NICs wait for the workers that poll them, until the end."""
        if self.config.socket.busy_poll_budget:
            for side in self.sides:
                undo.callback(DeferredInterrupts(side.name).close)

    def _watch_polled(self) -> None:
        """Give interrupts back to a NIC that sends nothing while it is polled.

        RX and TX of a queue that have interrupts of their own (igb, unless the channels are at
        their most; virtio_net): the call polls RX only.
        """
        now = time.monotonic()
        if not self.config.socket.busy_poll_budget or now < self._next_look:
            return
        self._next_look = now + _STALL_SECONDS
        for xsk in (xsk for worker in self.workers for xsk in worker.stalled()):
            xsk.prefer_busy_poll(0)
            self._warn(
                [
                    f"{xsk.ifname} queue {xsk.queue_id}: sends nothing while it is busy polled; "
                    f"interrupts are used again; try ethtool -L {xsk.ifname} combined MOST, or "
                    "leave out --prefer-busy-poll"
                ]
            )

    def watch(self) -> None:
        self._watch_polled()
        if self.workers and all(worker.is_done for worker in self.workers):
            raise Stopped
        super().watch()

    def _watch_ended(self) -> None:
        for worker in self.workers:
            if worker.has_ended:
                self._down([worker], str(worker.error or "the worker ended"))

    def _close_on(self, side: Side, reason: str) -> None:
        self._down([worker for worker in self.workers if side in worker.sides], reason)

    def _is_open(self) -> bool:
        return all(worker.is_open for worker in self.workers)

    def _open_again(self) -> None:
        for worker in self.workers:
            if not worker.is_open and all(side.attachment for side in worker.sides):
                worker.open(bind_timeout=0)  # the next watch tries again
                worker.start()
                self._notify({"event": "port_up", **worker.place})

    def _down(self, workers: list[QueueWorker], reason: str) -> None:
        """Close workers, all at once: each may sleep a while before it stops."""
        for worker in workers:
            worker.ask_to_stop()
        for worker in workers:
            if worker.is_open:
                worker.close()
                self._notify({"event": "port_down", **worker.place, "reason": reason})

    def sample(self) -> Snapshot:
        """Read all counters."""
        return self._sample_now() if self._final is None else self._final

    def _sample_now(self) -> Snapshot:
        snapshot = Snapshot(time.monotonic(), [])
        for worker in self.workers:
            snapshot.ports.extend(worker.sample())
            if worker.is_open:
                snapshot.frame_count += self.config.umem.frame_count
                for place, count in worker.frames().items():
                    snapshot.frames[place] = snapshot.frames.get(place, 0) + count
        snapshot.ports.extend(missed_samples(self.sides))
        return snapshot

    def stop(self) -> None:
        """Let no more in, drain, detach, close.

        Detached only after the drain, as some drivers send nothing without a program; closed
        only after that, as some crash when a socket closes under one.
        """
        for worker in self.workers:  # all at once: each may sleep a while before it looks
            worker.ask_to_stop()
        with ExitStack() as steps:  # from the last to the first, and each whatever the others do
            steps.callback(self._undo.close)
            steps.callback(self._keep_sample)
            for side in self.sides:
                steps.callback(side.detach)
            for worker in self.workers:
                steps.callback(worker.stop)

    def _keep_sample(self) -> None:
        if self._final is None:
            self._final = self.sample()


def choose_queues(config: JobConfig, sides: tuple[Side, ...]) -> tuple[int, ...]:
    """Return the queue ids to serve, each of which all links have for RX and for TX.

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


def choose_cpus(config: JobConfig, workers: int) -> tuple[int | None, ...]:
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
