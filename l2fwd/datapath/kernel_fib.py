"""Routing in the kernel, by its own FIB: ``l3fwd --data-path redirect``."""

import struct
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

from l2fwd import bpf, link
from l2fwd.config import ForwardConfig
from l2fwd.datapath import Notify
from l2fwd.datapath.following import Following
from l2fwd.datapath.in_kernel import KernelPath
from l2fwd.rtnetlink import LINKS

_U32: Final = struct.Struct("=I")
_OWN_MAC: Final = struct.Struct("=6s2x")  # struct own_mac of kern/l3fwd.bpf.c


class KernelFibPath(KernelPath):
    """Routes between the links of ``config`` as the kernel's FIB says for each packet.

    This process looks after neighbours and MAC addresses, and counts.

    Parameters
    ----------
    config : ForwardConfig
        With ``routed``.
    notify : callable
        Gets one dict per event: ``warning``, ``program_lost``, ``program_attached``.

    Raises
    ------
    ConfigError
        If a link is unknown or down, or the host does not forward.
    """

    def __init__(self, config: ForwardConfig, notify: Notify) -> None:
        super().__init__(config, notify)
        self._following = Following(config, notify)

    def _make_program(self, found: link.Link) -> bpf.Program:
        program = bpf.Program("l3fwd")
        program.load()
        return program

    def _start(self, undo: ExitStack, check: Callable[[], None]) -> None:
        self._following.routes.open()
        undo.callback(self._following.routes.close)
        super()._start(undo, check)

    def _refresh(self) -> None:
        keys = [_U32.pack(side.link.ifindex) for side in self.sides]
        for side in self.sides:
            if side.program is not None:
                side.program.update("links", dict(zip(keys, keys, strict=True)))
        self._tell_macs()

    def _tell_macs(self) -> None:
        """Tell each program what is addressed to its link."""
        links = self._following.routes.links()
        for side in self.sides:
            found = links.get(side.link.ifindex)
            if side.program is not None:
                mac = found.mac if found else bytes(6)  # to which nothing is sent
                side.program.update("own_mac", {bytes(4): _OWN_MAC.pack(mac)})

    def watch(self) -> None:
        """Notice lost programs, vanished links, other MAC addresses, and stale neighbours."""
        super().watch()
        if self._following.routes.have_changed(LINKS):
            self._tell_macs()
        self._following.tend()
