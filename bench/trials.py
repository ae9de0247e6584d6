"""Trials as RFC 2544 has them: so many frames at one rate; how many came, how old, in order."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from bench.bed import BenchBed, Running, Sample, offer, wait_until_quiet, waited_ns
from bench.traffic import Load, Seen, Sink
from l2fwd.errors import RunError

_FLAT_OUT: Final = 1e9  # no generator gets there
_SHORT: Final = 0.99  # of the frames asked for: less, and the rate was not offered
_GRACE: Final = 0.005  # of a trial, and seconds: the generator begins later than it is told
_GRACE_SECONDS: Final = 0.005
_ATTEMPTS: Final = 3
_WAIT_NS: Final = 200_000  # without a CPU: a veth bears less at full rate, 2048 slots more
_LOOK_SECONDS: Final = 0.005
_STEAL: Final = 8  # column of /proc/stat


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of the frames of one trial.

    Attributes
    ----------
    asked, sent : int
        Frames.
    seconds : float
        For which they were sent.
    seen : Seen
        By the sink, until it saw no more.
    is_disturbed : bool
        Generator or engine were without a CPU for longer than a ring bears.
    """

    asked: int
    sent: int
    seconds: float
    seen: Seen
    is_disturbed: bool

    @property
    def lost(self) -> int:
        return self.sent - self.seen.packets

    @property
    def loss(self) -> float:
        """Lost, of all sent: 0 to 1."""
        return self.lost / self.sent if self.sent else 0.0

    @property
    def offered(self) -> float:
        """Frames a second that were sent."""
        return self.sent / self.seconds

    @property
    def delivered(self) -> float:
        """Frames a second that came."""
        return self.seen.packets / self.seconds

    @property
    def is_short(self) -> bool:
        """Whether the generator sent less than it was asked to."""
        return self.sent < _SHORT * self.asked


@dataclass(slots=True)
class Trials:
    """Takes trials of one engine that runs on one bed.

    Parameters
    ----------
    bed : BenchBed
        With an XDP program for a sink.
    running : Running
    seconds : float
        Of a trial.
    settle_seconds : float
        Without a frame, after which none is awaited; RFC 2544 says 2.
    tries : int
        Of a trial that something disturbed.
    quiet_seconds : float
        To wait at most for a quiet machine before one is taken again.
    """

    bed: BenchBed
    running: Running
    seconds: float
    settle_seconds: float
    tries: int
    quiet_seconds: float = 0.0

    @property
    def sink(self) -> Sink:
        if self.bed.sink is None:
            raise RunError("trials need a sink that is a program")
        return self.bed.sink

    def take(self, load: Load, seconds: float = 0.0) -> Trial:
        """Send at the load's rate, which must be one, for the length of a trial."""
        seconds = seconds or self.seconds
        load = replace(load, limit=load.limit or max(1, round(load.rate * seconds)))
        self.sink.look(stamped=load.stamped, checked=load.stamped)
        before, waited = self.sink.seen(), self._waited_ns()
        self.bed.generator.start(load)
        began = time.monotonic()
        time.sleep(seconds + _GRACE * seconds + _GRACE_SECONDS)
        sent = self.bed.generator.stop()
        if sent < load.limit:
            seconds = time.monotonic() - began
        waited = self._waited_ns() - waited
        seen = self.settled(before, sent)
        return Trial(load.limit, sent, seconds, seen, waited > _WAIT_NS)

    def settled(self, before: Seen, sent: int) -> Seen:
        """Wait until all that was sent has come, or nothing comes any more."""
        seen = self.sink.seen() - before
        latest = time.monotonic()
        while seen.packets < sent and time.monotonic() - latest < self.settle_seconds:
            time.sleep(_LOOK_SECONDS)
            now = self.sink.seen() - before
            if now.packets != seen.packets:
                latest = time.monotonic()
            seen = now
        return seen

    def until(self, is_good: Callable[[Trial], bool], load: Load, seconds: float = 0.0) -> Trial:
        """Take a trial; again if it is not good and something disturbed it."""
        trial = self.take(load, seconds)
        for _ in range(self.tries - 1):
            if is_good(trial) or not trial.is_disturbed:
                break
            if self.quiet_seconds:
                wait_until_quiet(self.quiet_seconds)
            trial = self.take(load, seconds)
        return trial

    def passes(self, load: Load, tolerance: float) -> bool:
        """Tell whether a rate is carried with at most this loss, 0 to 1."""

        def is_good(trial: Trial) -> bool:
            return trial.loss <= tolerance and not trial.is_short

        return is_good(self.until(is_good, load))

    def fastest(self, load: Load, seconds: float = 0.0) -> Trial:
        """Offer all that the generator makes when it paces; return the best of a few."""
        flat_out = replace(load, rate=_FLAT_OUT)
        taken = [self.take(flat_out, seconds) for _ in range(_ATTEMPTS)]
        return max(taken, key=lambda trial: trial.offered)

    def overload(self, load: Load) -> Sample:
        """Offer all that the generator makes, and forget what is still under way at the end."""
        found = offer(self.bed, self.running, replace(load, rate=0.0), self.seconds)
        self.settled(self.sink.seen(), sys.maxsize)
        return found

    def carries_burst(self, load: Load, frames: int, fastest: float) -> bool:
        """Tell whether so many frames, as fast as they are made, come without loss."""
        burst = replace(load, rate=0.0, limit=frames)
        seconds = frames / fastest + 2 * _LOOK_SECONDS

        def is_good(trial: Trial) -> bool:
            return trial.sent == frames and not trial.lost

        return is_good(self.until(is_good, burst, seconds))

    def _waited_ns(self) -> int:
        """Time without a CPU: wanted by the threads, or taken from the machine as a whole."""
        return waited_ns(self.bed, self.running) + _stolen_ns()


def _stolen_ns() -> int:
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return int(fields[_STEAL]) * 10_000_000  # USER_HZ is 100
