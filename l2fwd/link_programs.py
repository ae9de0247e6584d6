"""The XDP program of a link, shared by the sockets on it: gone with the last of them."""

import os
import threading
from dataclasses import dataclass
from pathlib import Path

from l2fwd import bpf
from l2fwd.config import AttachMode
from l2fwd.errors import ConfigError
from l2fwd.link import Link


@dataclass(slots=True)
class _Shared:
    program: bpf.Program
    attachment: bpf.Attachment
    wanted: tuple[AttachMode, str]
    users: int = 0


_attached: dict[tuple[int, int], _Shared] = {}  # (network namespace, ifindex)
_lock = threading.Lock()


class LinkProgram:
    """One socket's share of the program on its link.

    Parameters
    ----------
    link : Link
    mode : AttachMode
    path : str
        A BPF object of your own, ``FILE`` or ``FILE:PROGRAM``; empty for the built-in one, which
        sends every packet to the socket of its queue.

    Raises
    ------
    ConfigError
        If another socket of this process has the link with another mode or program.
    KernelError
    """

    def __init__(self, link: Link, mode: AttachMode, path: str = "") -> None:
        self._key = (os.stat("/proc/thread-self/ns/net").st_ino, link.ifindex)
        wanted = (mode, path)
        with _lock:
            shared = _attached.get(self._key)
            if shared is None:
                shared = _attach(link, mode, path)
                _attached[self._key] = shared
            elif shared.wanted != wanted:
                raise ConfigError(
                    f"{link.ifname} has a socket of this process with mode "
                    f"{shared.wanted[0].value} and program {shared.wanted[1] or 'built-in'}; "
                    "open this one alike"
                )
            shared.users += 1
        self._shared: _Shared | None = shared

    @property
    def mode(self) -> str:
        """What was obtained: ``native``, ``skb`` or ``offload``."""
        assert self._shared is not None
        return self._shared.attachment.mode

    @property
    def notes(self) -> list[str]:
        """What the user should know: fall-backs."""
        assert self._shared is not None
        return self._shared.attachment.notes

    @property
    def program(self) -> bpf.Program:
        assert self._shared is not None
        return self._shared.program

    def close(self) -> None:
        """Give the share back; the last one detaches."""
        shared, self._shared = self._shared, None
        if shared is None:
            return
        with _lock:
            shared.users -= 1
            if shared.users:
                return
            del _attached[self._key]
        shared.attachment.detach()
        shared.program.close()


def forget_programs() -> None:
    """In a forked child: close its copies of the descriptors; the programs are the parent's."""
    global _lock
    _lock = threading.Lock()  # another thread may have held it
    for shared in _attached.values():
        shared.attachment.detach()
        shared.program.close()
    _attached.clear()


def _attach(link: Link, mode: AttachMode, path: str) -> _Shared:
    sizes = {"sockets": max(link.rx_queue_count, 1)}
    if path:
        file, _, name = path.partition(":")
        if not Path(file).is_file():
            raise ConfigError(f"program {file}: no such file")
        program = bpf.Program.from_file(file, name)
    else:
        program = bpf.Program("afxdp", sizes)
    try:
        attachment = program.attach(link.ifindex, link.ifname, mode)
    except BaseException:
        program.close()
        raise
    return _Shared(program, attachment, (mode, path))
