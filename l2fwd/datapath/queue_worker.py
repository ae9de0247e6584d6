"""Queue *i* of all links: one UMEM, a socket each, one worker thread."""

import contextlib
import errno
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Final

from l2fwd._worker import Worker
from l2fwd.abi import MIN_TX_SKB_BUDGET
from l2fwd.config import BindMode, ForwardConfig, SocketConfig
from l2fwd.datapath import Event
from l2fwd.datapath.side import Side
from l2fwd.errors import KernelError, RunError, kernel_error
from l2fwd.stats import PortSample, add
from l2fwd.xsk import BIND_RETRY_SECONDS, BoundSocket, Umem, in_skb_mode

_JOIN_SECONDS: Final = 2.0


Options = Callable[["QueueWorker", Umem], dict[str, Any]]


class QueueWorker:
    """Queue *i* of all links: one UMEM, a socket each, one worker thread.

    Parameters
    ----------
    sides : tuple of Side
        The two that forward to each other first.
    queue_id : int
    cpu : int or None
    options : callable
        Returns what the ``Worker`` is told beside its ports and their geometry.
    """

    def __init__(
        self, sides: tuple[Side, ...], queue_id: int, cpu: int | None, options: Options
    ) -> None:
        self.sides = sides
        self._options = options
        self.queue_id = queue_id
        self.cpu = cpu
        self.config = sides[0].config
        self.error: KernelError | None = None
        self.held: tuple[object, ...] = ()  # memory that the running worker writes to
        self.sockets: list[BoundSocket] = []
        self._undo = ExitStack()
        self._completed: dict[str, int] = {}  # by link, when `stalled` was asked last
        self._thread: threading.Thread | None = None
        self.worker: Worker | None = None
        # What the sockets before the present ones have counted, by side.
        self._past_hits: dict[int, tuple[int, int]] = {}
        self._past_learned: dict[str, int] = {}
        self._past: list[PortSample] = [self._blank(side) for side in sides]

    def _blank(self, side: Side) -> PortSample:
        return PortSample(side.name, self.queue_id, {}, {}, {})

    @property
    def place(self) -> Event:
        """Which links and queue it serves, as events tell it."""
        return {"links": [side.name for side in self.sides], "queue": self.queue_id}

    @property
    def is_open(self) -> bool:
        return bool(self.sockets)

    def open(self, bind_timeout: float = BIND_RETRY_SECONDS) -> None:
        """Make UMEM, sockets and worker, and fill the fill rings; nothing flows yet."""
        wanted = self.config.socket
        for side in self.sides:
            if side.attachment is not None and side.attachment.mode == "skb":
                wanted = in_skb_mode(wanted, side.name)
        if self.config.keeps_to_copy_mode:
            wanted = replace(wanted, bind_mode=BindMode.COPY)
        try:
            self._open(wanted, bind_timeout)
        except KernelError as error:
            # The second socket inherits zero-copy from the first and may not have it.
            if wanted.bind_mode is not BindMode.AUTO or error.operation != "bind":
                raise
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
            self._open(replace(wanted, bind_mode=BindMode.COPY), bind_timeout)

    def _open(self, settings: SocketConfig, bind_timeout: float) -> None:
        config = self.config
        fragments = max(config.umem.fragments(side.link.mtu) for side in self.sides)
        if settings.frags is None:
            settings = replace(settings, frags=config.takes_fragments and fragments > 1)
        if not settings.tx_budget and settings.ring_size >= MIN_TX_SKB_BUDGET:
            burst = config.batch_size * (fragments if settings.frags else 1)
            budget = max(MIN_TX_SKB_BUDGET, min(burst, settings.ring_size))
            settings = replace(settings, tx_budget=budget)
        with ExitStack() as undo:
            umem = Umem(config.umem, settings.ring_size, near=self.sides[0].name)
            undo.callback(umem.close)
            sockets = []
            for side in self.sides:
                xsk = BoundSocket(
                    umem, side.name, self.queue_id, settings, bind_timeout=bind_timeout, split=True
                )
                undo.callback(xsk.close)
                sockets.append(xsk)
            for xsk in sockets[: config.receivers]:
                xsk.lend(config.fill_target)
            self.worker = Worker(
                *(xsk.port for xsk in sockets),
                batch_size=config.batch_size,
                busy_poll=config.busy_poll or settings.busy_poll_budget > 0,
                coalesce_us=config.coalesce_us,
                **self._options(self, umem),
            )
            self.sockets = sockets
            self._undo = undo.pop_all()

    def start(self) -> None:
        """Let packets in and forward them, in a thread of its own; or close, and raise."""
        with ExitStack() as undo:
            undo.callback(self.close)
            self._start()
            undo.pop_all()

    def _start(self) -> None:
        self.error = None
        name = f"l2fwd-queue-{self.queue_id}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        for side, xsk in self._receiving():
            assert side.program is not None
            side.program.set_socket(self.queue_id, xsk.handle.fd)

    def _receiving(self) -> list[tuple[Side, BoundSocket]]:
        pairs = list(zip(self.sides, self.sockets, strict=False))  # none while closed
        return pairs[: self.config.receivers]

    def on(self, side: Side) -> list[BoundSocket]:
        """Return the socket on a link, if it has one."""
        return [xsk for each, xsk in zip(self.sides, self.sockets, strict=False) if each is side]

    def receives(self, side: Side) -> bool:
        return side in self.sides[: self.config.receivers]

    def _run(self) -> None:
        assert self.worker is not None
        try:
            if self.cpu is not None:
                os.sched_setaffinity(0, {self.cpu})  # 0 is this thread
            self.worker.run()
        except OSError as error:
            number = error.errno or errno.EIO
            failed = self.worker.failed or f"queue {self.queue_id}"
            self.error = (
                error
                if isinstance(error, KernelError)
                else kernel_error(number, "pin the worker of", failed)
            )

    @property
    def is_done(self) -> bool:
        """True once its job has nothing left to do."""
        return self.worker is not None and self.worker.job is not None and self.worker.job.is_done

    @property
    def has_ended(self) -> bool:
        """True once the worker returned without having been asked to."""
        return self.is_open and self._thread is not None and not self._thread.is_alive()

    def ask_to_stop(self) -> None:
        """Let no more packets in, and have the worker end when it has forwarded the last.

        Does not wait.
        """
        for side, _ in self._receiving():
            if side.program is not None:
                side.program.clear_socket(self.queue_id)
        if self.worker is not None:
            self.worker.stop()

    def stop(self) -> None:
        """End the thread, after it has forwarded what is there."""
        if self._thread is None:
            return
        self.ask_to_stop()
        self._thread.join(_JOIN_SECONDS)
        if self._thread.is_alive():
            asks = isinstance(self.config, ForwardConfig) and self.config.policy is not None
            hint = "; its policy has not returned" if asks else ""
            raise RunError(f"the worker of queue {self.queue_id} does not stop{hint}")
        self._thread = None

    def close(self) -> None:
        """Stop, keep the counters, and close worker, sockets and UMEM."""
        self.stop()
        if not self.is_open:
            return
        self._keep_decided()
        self._past = self.sample()
        waiting = [xsk.port.waiting() for xsk in self.sockets]
        for sample, left in zip(self._past, waiting, strict=True):
            counters, drops = sample.counters, sample.drops
            # In all, not more: what earlier sockets left behind is in both differences.
            drops["tx_abandoned_drops"] = counters["tx_packets"] - counters["tx_completed"]
            add(drops, {"rx_abandoned_drops": left})
            sample.frames = {}
        self.sockets = []
        self.worker = None
        self.held = ()
        self._undo.close()

    def sample(self) -> list[PortSample]:
        """Read the counters of all ports, those of earlier sockets added."""
        samples = [
            PortSample(past.link, past.queue, dict(past.counters), dict(past.drops), {})
            for past in self._past
        ]
        ports = [xsk.port for xsk in self.sockets]
        sent = [port.counters() for port in ports]
        # After all: so that no packet is seen sent that was not seen received.
        received = [port.counters() for port in ports]
        for i, xsk in enumerate(self.sockets):
            both = {key: (received if key.startswith("rx_") else sent)[i][key] for key in sent[i]}
            add(samples[i].counters, {k: v for k, v in both.items() if not k.endswith("_drops")})
            add(samples[i].drops, {k: v for k, v in both.items() if k.endswith("_drops")})
            with contextlib.suppress(KernelError):
                add(samples[i].drops, xsk.kernel_drops())
            samples[i].frames = xsk.port.frames()
        if self.worker is not None:
            turns, sleeps, naps = self.worker.turns
            counts = {"worker_turns": turns, "worker_sleeps": sleeps, "worker_naps": naps}
            add(samples[0].counters, counts)
            if self.worker.job is not None:
                add(samples[0].counters, self.worker.job.counters())
        return samples

    def rule_hits(self, rule_id: int) -> tuple[int, int]:
        """Return packets and bytes that this queue's workers gave to a rule."""
        packets, size = self._past_hits.get(rule_id, (0, 0))
        decider = self.worker.decider if self.worker else None
        now = decider.hits(rule_id) if decider else (0, 0)
        return packets + now[0], size + now[1]

    @property
    def learned(self) -> dict[str, int]:
        """What became of new flows, and of questions to the policy; see ``Decider.counters``."""
        counts = dict(self._past_learned)
        if self.worker is not None and self.worker.decider is not None:
            add(counts, self.worker.decider.counters())
        return counts

    def _keep_decided(self) -> None:
        decider = self.worker.decider if self.worker else None
        if decider is None:
            return
        self._past_learned = self.learned
        self._past_hits = {each: self.rule_hits(each) for each in range(decider.rules)}

    def stalled(self) -> list[BoundSocket]:
        """Return polled sockets of which nothing is completed any more, though packets wait.

        To be asked about once a second or less often.
        """
        found = []
        for xsk in self.sockets:
            counters = xsk.port.counters()
            done = counters["tx_completed"]
            waiting = counters["tx_packets"] - done
            if xsk.port.is_polled and waiting and self._completed.get(xsk.ifname) == done:
                found.append(xsk)
            self._completed[xsk.ifname] = done
        return found

    def frames(self) -> dict[str, int]:
        return self.worker.frames() if self.worker else {}

    def describe(self) -> list[Event]:
        """Say what was obtained, per socket."""
        return [
            {
                "link": side.name,
                "queue": self.queue_id,
                "attach_mode": side.attachment.mode if side.attachment else "none",
                "bind_mode": "zero-copy" if xsk.is_zero_copy else "copy",
                "ring_size": xsk.config.ring_size,
                "tx_budget": xsk.tx_budget,
                "multi_buffer": bool(xsk.config.frags),
                "frame_size": self.config.umem.frame_size,
                "frames": self.config.umem.frame_count,
                "cpu": self.cpu,
                "receives": (side, xsk) in self._receiving(),
            }
            for side, xsk in zip(self.sides, self.sockets, strict=True)
        ]
