"""What a path that routes needs of the kernel: its tables, fresh, and its neighbours, awake."""

import time
from collections.abc import Collection
from typing import Final

from l2fwd.config import ForwardConfig
from l2fwd.datapath import Notify
from l2fwd.routes import Routes, routed_families
from l2fwd.rtnetlink import ask_for_neighbours

_TEND_SECONDS: Final = 5.0


class Following:
    """The kernel's tables for the links of ``config``, and the asking after neighbours.

    Parameters
    ----------
    config : ForwardConfig
    notify : callable
        Gets a ``warning`` for each family that the host does not forward.

    Raises
    ------
    ConfigError
        If it forwards none.
    """

    def __init__(self, config: ForwardConfig, notify: Notify) -> None:
        families, off = routed_families()
        for setting in off:
            message = f"{setting} is off: that family is left to the host; sysctl -w {setting}=1"
            notify({"event": "warning", "message": message})
        self.routes = Routes(config.links, families)
        self._next_tend = 0.0

    def tend(self, unresolved: Collection[tuple[int, bytes]] = ()) -> None:
        """Have the kernel look for gateways, and for neighbours that are stale, now and then.

        Nobody but the kernel asks after them, and it does not see what we send to them.
        """
        now = time.monotonic()
        if now < self._next_tend:
            return
        self._next_tend = now + _TEND_SECONDS
        wanted = [*unresolved, *self.routes.stale_neighbours()]
        if wanted:
            ask_for_neighbours(wanted)
