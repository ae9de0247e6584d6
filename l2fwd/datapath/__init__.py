"""The data paths.  Each has the same protocol, so that the engine need not know which it runs."""

from collections.abc import Callable
from typing import Any, Protocol

from l2fwd.stats import Snapshot

Event = dict[str, Any]
Notify = Callable[[Event], None]


class Stopped(Exception):  # noqa: N818 - an answer to a signal, not an error
    """A stop was asked for before the data path was ready."""


class DataPath(Protocol):
    """What the engine asks of a data path."""

    def start(self, is_stopping: Callable[[], bool]) -> Event:
        """Attach, bind and forward; all or nothing.

        Returns
        -------
        dict
            What was obtained: ``sockets`` and ``links``, lists of one dict each.

        Raises
        ------
        Stopped
            Soon after ``is_stopping`` says so.
        """

    def watch(self) -> None:
        """Notice what died and bring back what can be; called a few times a second."""

    def sample(self) -> Snapshot:
        """Read all counters.  Callable while forwarding and after ``stop``."""

    def stop(self) -> None:
        """Forward what was received, detach, close.  A second call does nothing."""
