"""What all data paths share: links with programs on them, watched and mended."""

import errno
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from l2fwd import link
from l2fwd.datapath import Notify, Stopped
from l2fwd.datapath.side import Side
from l2fwd.errors import ConfigError, KernelError, L2fwdError

_MIN_RETRY_SECONDS: Final = 0.1
_MAX_RETRY_SECONDS: Final = 1.6  # a queue that is free again is taken within two seconds


def stop_check(is_stopping: Callable[[], bool]) -> Callable[[], None]:
    """Return what raises ``Stopped`` once ``is_stopping``; for between the steps of a start."""

    def check() -> None:
        if is_stopping():
            raise Stopped

    return check


class LinkedPath:
    """A data path over links that may come and go.

    A path adds what runs between the links: ``_watch_ended``, ``_close_on``, ``_is_open`` and
    ``_open_again``.
    """

    _needs_all_links = True  # False: what runs on a link goes on without the others

    def __init__(self, sides: tuple[Side, ...], notify: Notify) -> None:
        self.sides = sides
        self._notify = notify
        self._hindrances: list[str] = []  # the same one, as often as it came in a row
        self._retry = Backoff()

    def _watch_ended(self) -> None:
        """Close what ended by itself."""

    def _close_on(self, side: Side, reason: str) -> None:
        """Close what cannot run without a link."""

    def _is_open(self) -> bool:
        """Tell whether nothing is closed."""
        return True

    def _open_again(self) -> None:
        """Open what is closed, and has its links; all of them where all are needed."""

    def _wait_for_carrier(self, side: Side, check: Callable[[], None]) -> None:
        if not side.link.has_carrier:
            self._warn([f"{side.name}: no carrier; what is sent there is dropped"])
            return
        if not link.wait_for_carrier(side.name, side.config.carrier_timeout, check):
            self._warn([f"{side.name}: no carrier since the program was attached"])

    def _warn(self, notes: list[str]) -> None:
        for note in notes:
            self._notify({"event": "warning", "message": note})

    def watch(self) -> None:
        """Notice dead sockets, lost programs and vanished links; mend what can be mended."""
        for side in self.sides:
            if side.attachment is not None:
                self._watch_side(side)
        self._watch_ended()
        if all(side.attachment for side in self.sides) and self._is_open():
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
            side.detach()
        except KernelError as error:
            if error.errno != errno.ENODEV:
                raise
            side.detach()  # first: whoever hears of it finds no program of ours there
            self._close_on(side, f"{side.name} is gone")

    def _mend(self) -> None:
        """Attach and open again what is closed; what does not work is said, and tried again."""
        failures: list[L2fwdError] = []
        for side in self.sides:
            if side.attachment is None:
                self._try(partial(self._attach_again, side), failures)
        if not (failures and self._needs_all_links):
            self._try(self._open_again, failures)
        if failures:
            self._complain("; ".join(map(str, failures)))
        # A link that is not there yet costs little to look for: no back-off.
        if not failures or not all(isinstance(each, ConfigError) for each in failures):
            self._retry.fail()  # until it has held for a while

    def _try(self, step: Callable[[], None], failures: list[L2fwdError]) -> None:
        try:
            step()
        except L2fwdError as error:
            failures.append(error)

    def _attach_again(self, side: Side) -> None:
        side.find()
        self._warn(side.attach())
        self._notify({"event": "program_attached", "link": side.name})

    def _complain(self, reason: str) -> None:
        """Say once what hinders; not at first, as a queue just closed is busy for a moment."""
        self._hindrances = [*self._hindrances, reason] if reason in self._hindrances else [reason]
        if len(self._hindrances) == 2:
            self._warn([f"not mended yet: {reason}"])


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
