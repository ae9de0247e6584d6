"""Data path ``redirect``: rule look-up, change and XDP_REDIRECT, all in the kernel.

This process only watches, counts, and changes the rules; pinned, the programs need it no more.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack

from l2fwd.config import ForwardConfig
from l2fwd.datapath import Event, Notify
from l2fwd.datapath.linked import LinkedPath, stop_check
from l2fwd.datapath.rulebook import Rulebook
from l2fwd.datapath.side import Side, kernel_sample, with_redirect_mode
from l2fwd.pins import PinFolder
from l2fwd.rules import Rule, RuleTable
from l2fwd.stats import Snapshot


class RedirectPath(LinkedPath):
    """Forwards between the links of ``config`` and of its rules, in the kernel.

    Parameters
    ----------
    config : ForwardConfig
    notify : callable
        Gets one dict per event: ``warning``, ``program_lost``, ``program_attached``,
        ``pinned``.

    Raises
    ------
    ConfigError
        If a link is unknown or down, or the rules do not fit.
    """

    def __init__(self, config: ForwardConfig, notify: Notify) -> None:
        config = with_redirect_mode(config, notify)
        self.config = config
        self._book = Rulebook(config, "redirect")
        make = self._book.make_program
        super().__init__(tuple(Side(name, config, make) for name in config.links), notify)
        self._pins: PinFolder | None = None
        self._undo = ExitStack()
        self._final: Snapshot | None = None

    def start(self, is_stopping: Callable[[], bool] = lambda: False) -> Event:
        """Load, put the rules in force, and attach to every link; all or nothing."""
        check = stop_check(is_stopping)
        with ExitStack() as undo, ExitStack() as unpin:
            pins = self._open_pins(undo, unpin)
            for side in self.sides:
                undo.callback(side.close)
                side.program = self._book.make_program(side.link)
                check()
            self._book.refresh(self.sides)
            for side in self.sides:
                self._warn(side.attach())
            for side in self.sides:
                self._wait_for_carrier(side, check)
            if pins is not None:
                self._hold(pins)
            unpin.pop_all()  # the pins outlive all that is undone from here on
            self._pins = pins
            self._undo = undo.pop_all()
        links = [
            {
                "link": side.name,
                "attach_mode": side.attachment.mode if side.attachment else "none",
                "rules": len(self._book.table),
                "pin": self.config.pin,
            }
            for side in self.sides
        ]
        return {"sockets": [], "links": links}

    def _open_pins(self, undo: ExitStack, unpin: ExitStack) -> PinFolder | None:
        if self.config.pin is None:
            return None
        pins = PinFolder(self.config.pin)
        undo.callback(pins.close)
        unpin.callback(pins.remove)
        return pins

    def _hold(self, pins: PinFolder) -> None:
        """Pin what is not pinned yet."""
        for side in self.sides:
            if side.attachment is not None and not side.attachment.is_pinned:
                side.attachment.pin(pins)

    def apply(self, rules: RuleTable) -> None:
        """Put other rules in force: every packet sees the old ones, or the new ones.

        Raises
        ------
        ConfigError
            If a rule names a link without our program, or the rules do not fit; the old ones
            stay.
        """
        self._book.apply(rules)

    def _is_open(self) -> bool:
        if self._pins is None:
            return True
        return all(side.attachment and side.attachment.is_pinned for side in self.sides)

    def _open_again(self) -> None:
        self._book.refresh(self.sides)
        if self._pins is not None:
            self._hold(self._pins)

    def sample(self) -> Snapshot:
        """Read all counters."""
        if self._final is not None:
            return self._final
        return Snapshot(time.monotonic(), [kernel_sample(side) for side in self.sides])

    def hits(self) -> dict[Rule, tuple[int, int]]:
        """Return packets and bytes that each rule has taken."""
        return self._book.hits()

    def stop(self) -> None:
        """Detach, or leave it to the pins, and close."""
        for side in self.sides:
            side.detach()
        if self._final is None:
            self._final = self.sample()
        self._undo.close()
        if self._pins is not None:
            pins, self._pins = self._pins, None
            names = " ".join(side.name for side in self.sides)
            message = f"forwarding goes on without this process; l2fwd unload {names} ends it"
            self._notify({"event": "pinned", "pin": str(pins.path), "message": message})
