"""A job from start to summary: data path, signals, intervals, teardown."""

import os
import select
import signal
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from types import FrameType
from typing import Any, Final

from l2fwd.datapath import DataPath, Event, Notify, Stopped
from l2fwd.stats import Snapshot, rates

_WATCH_SECONDS: Final = 0.2  # how soon a dead link or a lost program is noticed
_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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

    def stop(self) -> None:
        """Ask ``run`` to end.  Callable from any thread and from a signal handler."""
        self._stopping = True
        if self._wakeup >= 0:
            os.eventfd_write(self._wakeup, 1)

    def _close(self) -> None:
        wakeup, self._wakeup = self._wakeup, -1
        os.close(wakeup)

    def run(self) -> dict[str, Any]:
        """Start, forward, stop; return the ``summary`` event.

        A stop while starting ends in a summary too, of nothing.

        Raises
        ------
        L2fwdError
            If it cannot be started; nothing is left behind.
        """
        with ExitStack() as undo:
            undo.callback(self._close)
            undo.callback(self.path.stop)
            first = self.path.sample()
            with suppress(Stopped):
                obtained = self.path.start(lambda: self._stopping)
                first = self.path.sample()
                self._notify({"event": "ready", **obtained})
                self._loop(first)
            ended = time.monotonic()
            self.path.stop()
            summary = summarize(first, replace(self.path.sample(), time=ended))
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
                next_stats = max(next_stats + self._interval, now)  # after a stall: no burst
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


def stop_on_signals(engine: Engine) -> None:
    """Let SIGINT, SIGTERM and SIGHUP stop ``engine``; a second one changes nothing.

    For the rest of the process: a signal while it is ending must not cut that short.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        engine.stop()

    for number in _STOP_SIGNALS:
        signal.signal(number, handle)
