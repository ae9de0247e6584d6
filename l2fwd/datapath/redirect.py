"""Data path ``redirect``: rule look-up, change and XDP_REDIRECT, all in the kernel.

This process only watches, counts, and changes the rules; pinned, the programs need it no more.
"""

from collections.abc import Callable
from contextlib import ExitStack

from l2fwd import bpf, link
from l2fwd.config import ForwardConfig
from l2fwd.datapath import Event, Notify
from l2fwd.datapath.in_kernel import KernelPath
from l2fwd.datapath.rulebook import Rulebook
from l2fwd.pins import PinFolder
from l2fwd.rules import Rule, RuleTable


class RedirectPath(KernelPath):
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
        super().__init__(config, notify)
        self._book = Rulebook(self.config, "redirect")
        self._pins: PinFolder | None = None

    def _make_program(self, found: link.Link) -> bpf.Program:
        return self._book.make_program(found)

    def _refresh(self) -> None:
        self._book.refresh(self.sides)

    def _describe(self) -> Event:
        return {"rules": len(self._book.table), "pin": self.config.pin}

    def _start(self, undo: ExitStack, check: Callable[[], None]) -> None:
        with ExitStack() as unpin:
            pins = self._open_pins(undo, unpin)
            super()._start(undo, check)
            if pins is not None:
                self._hold(pins)
            unpin.pop_all()  # the pins outlive all that is undone from here on
            self._pins = pins

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
        super()._open_again()
        if self._pins is not None:
            self._hold(self._pins)

    def hits(self) -> dict[Rule, tuple[int, int]]:
        """Return packets and bytes that each rule has taken."""
        return self._book.hits()

    def stop(self) -> None:
        """Detach, or leave it to the pins, and close."""
        super().stop()
        if self._pins is not None:
            pins, self._pins = self._pins, None
            names = " ".join(side.name for side in self.sides)
            message = f"forwarding goes on without this process; l2fwd unload {names} ends it"
            self._notify({"event": "pinned", "pin": str(pins.path), "message": message})
