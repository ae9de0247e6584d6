"""Data path ``redirect``: rule look-up, change and XDP_REDIRECT, all in the kernel.

This process only watches, counts, and changes the rules.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack

from l2fwd.config import ForwardConfig
from l2fwd.datapath import Event, Notify
from l2fwd.datapath.linked import LinkedPath, stop_check
from l2fwd.datapath.rulebook import Rulebook
from l2fwd.datapath.side import Side, kernel_sample
from l2fwd.rules import Rule, RuleTable
from l2fwd.stats import Snapshot


class RedirectPath(LinkedPath):
    """Forwards between the links of ``config`` and of its rules, in the kernel.

    Parameters
    ----------
    config : ForwardConfig
    notify : callable
        Gets one dict per event: ``warning``, ``program_lost``, ``program_attached``.

    Raises
    ------
    ConfigError
        If a link is unknown or down, or the rules do not fit.
    """

    def __init__(self, config: ForwardConfig, notify: Notify) -> None:
        self.config = config
        self._book = Rulebook(config, "redirect")
        make = self._book.make_program
        super().__init__(tuple(Side(name, config, make) for name in config.links), notify)
        self._undo = ExitStack()
        self._final: Snapshot | None = None

    def start(self, is_stopping: Callable[[], bool] = lambda: False) -> Event:
        """Load, put the rules in force, and attach to every link; all or nothing."""
        check = stop_check(is_stopping)
        with ExitStack() as undo:
            for side in self.sides:
                undo.callback(side.close)
                side.program = self._book.make_program(side.link)
                check()
            self._book.refresh(self.sides)
            for side in self.sides:
                self._warn(side.attach())
            for side in self.sides:
                self._wait_for_carrier(side, check)
            self._undo = undo.pop_all()
        links = [
            {
                "link": side.name,
                "attach_mode": side.attachment.mode if side.attachment else "none",
                "rules": len(self._book.table),
            }
            for side in self.sides
        ]
        return {"sockets": [], "links": links}

    def apply(self, rules: RuleTable) -> None:
        """Put other rules in force: every packet sees the old ones, or the new ones.

        Raises
        ------
        ConfigError
            If a rule names a link without our program, or the rules do not fit; the old ones
            stay.
        """
        self._book.apply(rules)

    def _open_again(self) -> None:
        self._book.refresh(self.sides)

    def sample(self) -> Snapshot:
        """Read all counters."""
        if self._final is not None:
            return self._final
        return Snapshot(time.monotonic(), [kernel_sample(side) for side in self.sides])

    def hits(self) -> dict[Rule, tuple[int, int]]:
        """Return packets and bytes that each rule has taken."""
        return self._book.hits()

    def stop(self) -> None:
        """Detach and close."""
        for side in self.sides:
            side.detach()
        if self._final is None:
            self._final = self.sample()
        self._undo.close()
