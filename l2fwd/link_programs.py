"""The XDP program of a link, shared by the sockets on it: gone with the last of them."""

import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from l2fwd import bpf
from l2fwd.config import AttachMode
from l2fwd.errors import ConfigError, UnsupportedError
from l2fwd.link import Link
from l2fwd.netdev import xdp_features
from l2fwd.records import RxHas


@dataclass(slots=True)
class _Shared:
    program: bpf.Program
    attachment: bpf.Attachment
    wanted: tuple[AttachMode, str, bool]
    users: int = 0


_FLAGS: Final = {"timestamp": RxHas.TIMESTAMP, "hash": RxHas.HASH, "vlan-tag": RxHas.VLAN_TAG}
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
    rx_metadata : bool
        Have the built-in program write what the driver knows in front of each packet, or let one of
        your own ask for it: loaded for this link only, in native mode.

    Raises
    ------
    ConfigError
        If another socket of this process has the link with another mode or program.
    UnsupportedError
        If ``rx_metadata`` cannot be had.
    KernelError
    """

    def __init__(
        self, link: Link, mode: AttachMode, path: str = "", *, rx_metadata: bool = False
    ) -> None:
        self._key = (os.stat("/proc/thread-self/ns/net").st_ino, link.ifindex)
        wanted = (mode, path, rx_metadata)
        with _lock:
            shared = _attached.get(self._key)
            if shared is None:
                shared = _attach(link, *wanted)
                _attached[self._key] = shared
            elif shared.wanted != wanted:
                raise ConfigError(
                    f"{link.ifname} has a socket of this process with mode "
                    f"{shared.wanted[0].value}, program {shared.wanted[1] or 'built-in'} and "
                    f"rx_metadata {shared.wanted[2]}; open this one alike"
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


def _attach(link: Link, mode: AttachMode, path: str, rx_metadata: bool) -> _Shared:
    wanted = (mode, path, rx_metadata)
    told = 0
    if rx_metadata:
        told = _told_by_driver(link, mode)
        mode = AttachMode.NATIVE
    program = _open(link, path, rx_metadata)
    try:
        if rx_metadata:
            program.load_bound(link.ifindex, b"" if path else told.to_bytes(4, sys.byteorder))
        attachment = program.attach(link.ifindex, link.ifname, mode)
    except BaseException:
        program.close()
        raise
    return _Shared(program, attachment, wanted)


def _open(link: Link, path: str, rx_metadata: bool) -> bpf.Program:
    if path:
        file, _, name = path.partition(":")
        if not Path(file).is_file():
            raise ConfigError(f"program {file}: no such file")
        return bpf.Program.from_file(file, name)
    sizes = {"sockets": max(link.rx_queue_count, 1)}
    return bpf.Program("metadata" if rx_metadata else "afxdp", sizes)


def _told_by_driver(link: Link, mode: AttachMode) -> int:
    """Return what the driver tells a program about each packet, as enum rx_metadata_flag.

    Raises
    ------
    ConfigError, UnsupportedError
        If it tells nothing, or not in this mode.
    """
    if mode not in (AttachMode.AUTO, AttachMode.NATIVE):
        raise ConfigError(
            f"rx_metadata needs mode native or auto, got {mode.value}: only a native program may "
            "ask the driver"
        )
    features = xdp_features(link.ifindex)
    if features is None:
        raise UnsupportedError("rx_metadata needs Linux 6.3 or newer; leave it out")
    if not features.rx_metadata:
        raise UnsupportedError(
            f"{link.ifname}: driver {link.driver or 'unknown'} tells programs nothing about "
            "packets; leave rx_metadata out"
        )
    return sum(_FLAGS[name] for name in features.rx_metadata)
