"""The data paths.  Each has the same protocol, so that the engine need not know which it runs."""

from collections.abc import Callable
from typing import Any, Protocol

from l2fwd.stats import Snapshot

Event = dict[str, Any]
Notify = Callable[[Event], None]


class DataPath(Protocol):
    """What the engine asks of a data path."""

    def start(self) -> list[Event]:
        """Attach, bind and forward; return one description per socket.  All or nothing."""

    def watch(self) -> None:
        """Notice what died and bring back what can be; called a few times a second."""

    def sample(self) -> Snapshot:
        """Read all counters.  Callable while forwarding and after ``stop``."""

    def stop(self) -> None:
        """Detach, forward what was received, close.  A second call does nothing."""
