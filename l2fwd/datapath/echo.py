"""Jobs that answer: by workers behind the sockets, or by the XDP program alone."""

import struct
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Final

from l2fwd import bpf
from l2fwd._answer import Answer
from l2fwd.abi import ANSWER_KINDS, ECHO_FLAGS
from l2fwd.datapath import DataPath, Event, Notify
from l2fwd.datapath.linked import LinkedPath, stop_check
from l2fwd.datapath.queue_worker import QueueWorker
from l2fwd.datapath.side import Side, kernel_sample, with_redirect_mode
from l2fwd.datapath.tools import ToolPath
from l2fwd.errors import KernelError
from l2fwd.link import Link
from l2fwd.stats import PortSample, Snapshot
from l2fwd.tool_config import EchoConfig

_FIRST: Final = bytes(4)  # key of the one setting
_ONE: Final = struct.pack("=I", 1)


def make_echo_path(config: EchoConfig, notify: Notify) -> DataPath:
    """Return the data path of ``config``; ``notify`` gets one dict per event.

    Raises
    ------
    ConfigError
        If a link, a queue or a CPU does not fit.
    """
    if config.in_kernel:
        return KernelEchoPath(config, notify)

    return SocketEchoPath(config, notify)


class SocketEchoPath(ToolPath):
    """Answers by workers behind the sockets; see ``ToolPath``."""

    def __init__(self, config: EchoConfig, notify: Notify) -> None:
        self._echo = config
        super().__init__(config, notify, "echo", self._answer_job, self._echo_program)

    def _answer_job(self, worker: QueueWorker) -> Answer:
        config = self._echo
        return answer_job(worker, config.packed_addresses, any_address=config.any_address)

    def _echo_program(self, found: Link) -> bpf.Program:
        return echo_program(self._echo, found)

    def _open_again(self) -> None:
        put_settings(self.sides, self._echo)
        super()._open_again()


def answer_job(
    worker: QueueWorker, addresses: tuple[bytes, ...] = (), *, any_address: bool = False
) -> Answer:
    """Return what answers with the MAC address of the worker's link."""
    return Answer(_mac(worker.sides[0].link), b"".join(addresses), any_address=any_address)


def echo_program(config: EchoConfig, found: Link) -> bpf.Program:
    """Load the program that picks what may have an answer."""
    with ExitStack() as undo:
        program = bpf.Program("echo", {"sockets": max(found.rx_queue_count, 1)})
        undo.callback(program.close)
        program.load()
        program.update("addresses", dict.fromkeys(config.packed_addresses, _ONE))
        _put(program, config, found)
        undo.pop_all()
    return program


def put_settings(sides: tuple[Side, ...], config: EchoConfig) -> None:
    """Tell the programs the MAC addresses of their links: one made anew has another."""
    for side in sides:
        if side.program is not None:
            _put(side.program, config, side.link)


def _put(program: bpf.Program, config: EchoConfig, found: Link) -> None:
    is_set = {
        "any_address": config.any_address,
        "in_kernel": config.in_kernel,
        # It flushes what XDP_TX queued only if its peer has a program, too (veth_xdp_flush).
        "redirect": found.driver == "veth",
    }
    flags = sum(flag for name, flag in ECHO_FLAGS.items() if is_set[name])
    program.update("settings", {_FIRST: struct.pack("=6sH", _mac(found), flags)})


def _mac(found: Link) -> bytes:
    return bytes.fromhex(found.address.replace(":", ""))


class KernelEchoPath(LinkedPath):
    """Answers on the links of ``config`` in the kernel; this process only watches and counts.

    Parameters
    ----------
    config : EchoConfig
    notify : callable

    Raises
    ------
    ConfigError
        If a link is unknown or down.
    """

    _needs_all_links = False

    def __init__(self, config: EchoConfig, notify: Notify) -> None:
        self.config = with_redirect_mode(config, notify)
        sides = tuple(Side(name, self.config, self._make_program) for name in config.links)
        super().__init__(sides, notify)
        self._undo = ExitStack()
        self._final: Snapshot | None = None

    def _make_program(self, found: Link) -> bpf.Program:
        return echo_program(self.config, found)

    def start(self, is_stopping: Callable[[], bool] = lambda: False) -> Event:
        """Load, and attach to every link; all or nothing."""
        check = stop_check(is_stopping)
        with ExitStack() as undo:
            for side in self.sides:
                undo.callback(side.close)
                self._warn(side.attach())
                check()
            for side in self.sides:
                self._wait_for_carrier(side, check)
            self._undo = undo.pop_all()
        links = [
            {
                "link": side.name,
                "attach_mode": side.attachment.mode if side.attachment else "none",
                "does": "answers in the kernel",
            }
            for side in self.sides
        ]
        return {"verb": "echo", "sockets": [], "links": links}

    def _open_again(self) -> None:
        put_settings(self.sides, self.config)

    def sample(self) -> Snapshot:
        """Read all counters."""
        if self._final is not None:
            return self._final
        return Snapshot(time.monotonic(), [_sample(side) for side in self.sides])

    def stop(self) -> None:
        """Detach and close."""
        for side in self.sides:
            side.detach()
        if self._final is None:
            self._final = self.sample()
        self._undo.close()


def _sample(side: Side) -> PortSample:
    sample = kernel_sample(side)
    counts = dict.fromkeys(ANSWER_KINDS, 0)
    if side.program is not None:
        with suppress(KernelError):
            counts = {
                kind: side.program.sums("answered", i, 1)[0] for i, kind in enumerate(ANSWER_KINDS)
            }
    sample.counters |= {f"answered_{kind}": count for kind, count in counts.items()}
    return sample
