"""Preferred busy polling: the worker runs the NIC's poll function, interrupts stand back.

The sockets ask for it; the link puts its interrupts off for as long as somebody polls.  Its two
settings are the whole link's, and are put back at the end.
"""

import ctypes
import errno
import os
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Final

from l2fwd.errors import KernelError, kernel_error

# asm-generic/socket.h
SO_BUSY_POLL: Final = 46
SO_PREFER_BUSY_POLL: Final = 69
SO_BUSY_POLL_BUDGET: Final = 70
_POLL_MICROSECONDS: Final = 20

# Rounds without a packet before an interrupt is allowed again, and how long a round is: the
# figures of Documentation/networking/napi.rst.
_DEFERRED: Final = {"napi_defer_hard_irqs": "2", "gro_flush_timeout": "200000"}

# The same numbers on every architecture; linux/mount.h
_SYS_FSOPEN: Final = 430
_SYS_FSCONFIG: Final = 431
_SYS_FSMOUNT: Final = 432
_FSCONFIG_CMD_CREATE: Final = 6
_CLOEXEC: Final = 1
_libc: Final = ctypes.CDLL(None, use_errno=True)


def prefer_busy_poll(set_option: Callable[[int, int, int], None], budget: int) -> None:
    """Ask for it on a socket; a ``budget`` of 0 takes it back.

    Raises
    ------
    KernelError
        ENOPROTOOPT before Linux 5.11, EPERM without CAP_NET_ADMIN.
    """
    set_option(socket.SOL_SOCKET, SO_PREFER_BUSY_POLL, bool(budget))
    set_option(socket.SOL_SOCKET, SO_BUSY_POLL, _POLL_MICROSECONDS if budget else 0)
    if budget:
        set_option(socket.SOL_SOCKET, SO_BUSY_POLL_BUDGET, budget)


class DeferredInterrupts:
    """Puts a link's interrupts off until ``close``.

    Raises
    ------
    KernelError
        If the link's settings cannot be written.
    """

    def __init__(self, ifname: str) -> None:
        self.ifname = ifname
        self._undo = ExitStack()
        with ExitStack() as undo, ExitStack() as opened:
            folder = _open_settings(ifname)
            opened.callback(os.close, folder)
            for name, value in _DEFERRED.items():
                before = _read(folder, name)
                _write(folder, name, value, ifname)
                undo.callback(self._restore, name, before)
            self._undo = undo.pop_all()

    def _restore(self, name: str, value: str) -> None:
        with suppress(KernelError):  # the link is gone, and its settings with it
            folder = _open_settings(self.ifname)
            try:
                _write(folder, name, value, self.ifname)
            finally:
                os.close(folder)

    def close(self) -> None:
        """Put back what was there before."""
        self._undo.close()


def _open_settings(ifname: str) -> int:
    """Open the link's folder in sysfs, of this thread's namespace whatever /sys shows."""
    path = f"class/net/{ifname}"
    sysfs = _mount_sysfs()
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=sysfs)
    except OSError as error:
        raise kernel_error(error.errno or 0, "open settings of", ifname) from None
    finally:
        os.close(sysfs)


def _mount_sysfs() -> int:
    """Return the root of a sysfs of its own, mounted nowhere; /sys where that is not allowed."""
    context = _libc.syscall(_SYS_FSOPEN, b"sysfs", _CLOEXEC)
    if context < 0:
        return os.open("/sys", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _libc.syscall(_SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        root = _libc.syscall(_SYS_FSMOUNT, context, _CLOEXEC, 0)
    finally:
        os.close(context)
    if root < 0:
        raise kernel_error(ctypes.get_errno() or errno.EIO, "mount", "sysfs")
    return int(root)


def _read(folder: int, name: str) -> str:
    with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)) as file:
        return file.read().strip()


def _write(folder: int, name: str, value: str, ifname: str) -> None:
    try:
        with open(os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder), "w") as file:
            file.write(value)
    except OSError as error:
        raise kernel_error(error.errno or 0, f"set {name} of", ifname) from None
