"""Data paths that run in the kernel: this process only attaches, watches and counts."""

import time
from collections.abc import Callable
from contextlib import ExitStack

from l2fwd import bpf, link
from l2fwd.config import ForwardConfig
from l2fwd.datapath import Event, Notify
from l2fwd.datapath.linked import LinkedPath, stop_check
from l2fwd.datapath.side import Side, kernel_sample, missed_samples, with_redirect_mode
from l2fwd.stats import Snapshot


class KernelPath(LinkedPath):
    """Forwards between the links of ``config``, in the kernel.

    A path adds its program: ``_make_program``, ``_refresh`` and ``_describe``.

    Parameters
    ----------
    config : ForwardConfig
    notify : callable
        Gets one dict per event.

    Raises
    ------
    ConfigError
        If a link is unknown or down.
    """

    def __init__(self, config: ForwardConfig, notify: Notify) -> None:
        self.config = with_redirect_mode(config, notify)
        make = self._make_program
        sides = tuple(Side(name, self.config, make) for name in config.links)
        super().__init__(sides, notify)
        self._undo = ExitStack()
        self._final: Snapshot | None = None

    def _make_program(self, found: link.Link) -> bpf.Program:
        """Load the program for a link."""
        raise NotImplementedError

    def _refresh(self) -> None:
        """Tell the programs what the links are now."""
        raise NotImplementedError

    def _describe(self) -> Event:
        """Return what ``ready`` tells of each link, beside its name and mode."""
        return {}

    def start(self, is_stopping: Callable[[], bool] = lambda: False) -> Event:
        """Load, put in force what is to be done, and attach to every link; all or nothing."""
        with ExitStack() as undo:
            self._start(undo, stop_check(is_stopping))
            self._undo = undo.pop_all()
        links = [
            {
                "link": side.name,
                "attach_mode": side.attachment.mode if side.attachment else "none",
                **self._describe(),
            }
            for side in self.sides
        ]
        return {"sockets": [], "links": links}

    def _start(self, undo: ExitStack, check: Callable[[], None]) -> None:
        for side in self.sides:
            undo.callback(side.close)
            side.program = self._make_program(side.link)
            check()
        self._refresh()
        for side in self.sides:
            self._warn(side.attach())
        for side in self.sides:
            self._wait_for_carrier(side, check)

    def _open_again(self) -> None:
        self._refresh()

    def sample(self) -> Snapshot:
        """Read all counters."""
        if self._final is not None:
            return self._final
        ports = [kernel_sample(side) for side in self.sides] + missed_samples(self.sides)
        return Snapshot(time.monotonic(), ports)

    def stop(self) -> None:
        """Detach, and close."""
        for side in self.sides:
            side.detach()
        if self._final is None:
            self._final = self.sample()
        self._undo.close()
