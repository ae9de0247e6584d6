"""A job from start to summary: data path, signals, intervals, teardown."""

import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any, Final

from l2fwd.datapath import DataPath, Event, Notify
from l2fwd.stats import Snapshot, rates

_WATCH_SECONDS: Final = 0.2  # how soon a dead link or a lost program is noticed
_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(Exception):  # noqa: N818 - a signal while starting; not an error
    """A stop was asked for before the engine was ready."""


class Engine:
    """Runs a data path until a signal, a duration, or ``stop``.

    Parameters
    ----------
    path : DataPath
    notify : callable
        Gets every event as a dict: ``ready``, ``stats``, ``warning`` …, ``summary``.
    duration : float or None
        Seconds to run; None for ever.
    interval : float
        Seconds between ``stats`` events; 0 for none.
    """

    def __init__(
        self,
        path: DataPath,
        notify: Notify,
        *,
        duration: float | None = None,
        interval: float = 1.0,
    ) -> None:
        self.path = path
        self._notify = notify
        self._duration = duration
        self._interval = interval
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stopping = False
        self.is_starting = False

    def stop(self) -> None:
        """Ask ``run`` to end.  Callable from any thread and from a signal handler."""
        self._stopping = True
        os.eventfd_write(self._wakeup, 1)

    def run(self) -> dict[str, Any]:
        """Start, forward, stop; return the ``summary`` event.

        Raises
        ------
        L2fwdError
            If it cannot be started; nothing is left behind.
        Stopped
            If a signal came before it was ready; nothing is left behind.
        """
        with ExitStack() as undo:
            undo.callback(os.close, self._wakeup)
            undo.callback(self.path.stop)
            self.is_starting = True
            sockets = self.path.start()
            self.is_starting = False
            self._notify({"event": "ready", "sockets": sockets})
            first = self.path.sample()
            self._loop(first)
            self.path.stop()
            last = self.path.sample()
        summary = summarize(first, last)
        self._notify(summary)
        return summary

    def _loop(self, first: Snapshot) -> None:
        end = first.time + self._duration if self._duration is not None else float("inf")
        previous = first
        next_stats = first.time + self._interval if self._interval else float("inf")
        while not self._stopping:
            now = time.monotonic()
            if now >= end:
                return
            if now >= next_stats:
                sample = self.path.sample()
                self._notify(stats_event(previous, sample))
                previous = sample
                next_stats += self._interval
            self._sleep(min(_WATCH_SECONDS, max(0.0, min(end, next_stats) - now)))
            self.path.watch()

    def _sleep(self, seconds: float) -> None:
        select.select([self._wakeup], [], [], seconds)


def stats_event(before: Snapshot, now: Snapshot) -> Event:
    """Describe one interval: totals since start, and rates over the interval."""
    return {
        "event": "stats",
        "time": round(now.time, 6),
        **now.as_dict(),
        "rates": [rate.as_dict() for rate in rates(before, now)],
    }


def summarize(first: Snapshot, last: Snapshot) -> Event:
    """Describe the whole run; ``unaccounted`` is zero unless a frame or packet was lost."""
    return {
        "event": "summary",
        "elapsed": round(last.time - first.time, 6),
        **last.as_dict(),
        "frames": last.frames,
        "frame_count": last.frame_count,
        "unaccounted": last.unaccounted,
        "rates": [rate.as_dict() for rate in rates(first, last)],
    }


@contextmanager
def stop_on_signals(engine: Engine) -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP stop ``engine``; a second one changes nothing."""

    def handle(number: int, frame: FrameType | None) -> None:
        engine.stop()
        if engine.is_starting:  # starting may wait, for a carrier or a queue: do not
            engine.is_starting = False
            raise Stopped

    before = {number: signal.signal(number, handle) for number in _STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
