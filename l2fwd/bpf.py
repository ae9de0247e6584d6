"""Programs: load, attach, detach, and find out who is attached.

A program is attached by a bpf_link, so it goes when the process goes, however that ends,
unless the bpf_link is pinned.  ``chain`` attaches through libxdp's dispatcher instead.
"""

import contextlib
import errno
import os
import re
import struct
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Final

from l2fwd import _bpf, ethtool, pins
from l2fwd.abi import (
    DATAPATH_COUNTERS,
    PROGRAM_PREFIX,
    XDP_ATTACHED_NATIVE,
    XDP_ATTACHED_OFFLOAD,
    XDP_ATTACHED_SKB,
    XDP_FLAGS_DRV_MODE,
    XDP_FLAGS_HW_MODE,
    XDP_FLAGS_SKB_MODE,
)
from l2fwd.config import AttachMode
from l2fwd.errors import KernelError, RunError, UnsupportedError

# Addresses of C functions, for a worker.
INSERT_FLOWS: Final = _bpf.INSERT_FLOWS
GIVE_TO_HOST: Final = _bpf.GIVE_TO_HOST

# mode -> flags of bpf_link_create, enum xdp_attach_mode of libxdp
_MODES: Final = {
    AttachMode.NATIVE: (XDP_FLAGS_DRV_MODE, 1),
    AttachMode.SKB: (XDP_FLAGS_SKB_MODE, 2),
    AttachMode.OFFLOAD: (XDP_FLAGS_HW_MODE, 3),
}
_ATTACHED: Final = {
    XDP_ATTACHED_NATIVE: "native",
    XDP_ATTACHED_SKB: "skb",
    XDP_ATTACHED_OFFLOAD: "offload",
}
# What a driver answers when it cannot run this program natively (ndo_bpf of the drivers).
_NO_NATIVE: Final = {
    errno.EOPNOTSUPP,
    errno.EINVAL,
    errno.ENOMEM,
    errno.ERANGE,
    errno.ENOSPC,
}
_LIVE_FRAMES: Final = 1 << 1  # BPF_F_TEST_XDP_LIVE_FRAMES
# How long a bpf_link may be seen after its process: that closes its files one by one.
_EXIT_SECONDS: Final = 0.5
_EXIT_POLL_SECONDS: Final = 0.01

PIN_OUT_OF_SIGHT: Final = (
    "pinned where this user or mount namespace does not see it; unload it from there "
    "(ip netns exec hides BPF file systems, nsenter --net does not)"
)


@dataclass(frozen=True, slots=True)
class Attached:
    """The XDP program on a link.

    Attributes
    ----------
    mode : str
        ``native``, ``skb``, ``offload``, or ``none``.
    program_id : int
        0 if none.
    name : str
        Of the program; empty if the caller may not ask (CAP_SYS_ADMIN).
    link_id : int
        Of the bpf_link that holds it; 0 if it was attached over netlink.
    pids : tuple of int
        Processes that hold the program, or the bpf_link.
    pin : str
        File that holds the bpf_link; empty if none is in sight.
    """

    mode: str
    program_id: int = 0
    name: str = ""
    link_id: int = 0
    pids: tuple[int, ...] = ()
    pin: str = ""

    @property
    def is_ours(self) -> bool:
        return self.name.startswith(PROGRAM_PREFIX)

    @property
    def is_lasting(self) -> bool:
        """Whether it is ours, without a process, by a bpf_link: that must be pinned."""
        return self.is_ours and not self.pids and self.link_id != 0

    def __str__(self) -> str:
        holder = f", held by pid {', '.join(map(str, self.pids))}" if self.pids else ""
        pinned = f", pinned as {self.pin}" if self.pin else ""
        return f"XDP program {self.name or '?'} (id {self.program_id}, {self.mode}{holder}{pinned})"


def wait_for_running_programs() -> None:
    """Return once every program that runs now has ended: what they may read can then go."""
    _bpf.synchronize()


def attached_program_id(ifindex: int) -> int:
    """Return the id of the XDP program on a link, 0 if none.

    Raises
    ------
    KernelError
        ENODEV once the link is gone.
    """
    return _bpf.xdp_attached(ifindex)[1]


def describe_attached(ifindex: int) -> Attached:
    """Find out which program is on a link, and who put it there."""
    mode, program_id = _bpf.xdp_attached(ifindex)
    if not program_id:
        return Attached("none")
    name = ""
    link_id = 0
    with contextlib.suppress(KernelError):  # needs CAP_SYS_ADMIN
        name = _bpf.program_name(program_id)
        # ifindex repeats across network namespaces; the program id does not.
        link_id = next(
            (i for i, on, prog in _bpf.xdp_links() if (on, prog) == (ifindex, program_id)), 0
        )
    pids = _holders(program_id)
    found = Attached(_ATTACHED.get(mode, "multi"), program_id, name, link_id, pids)
    pin = pins.find_pin(link_id) if found.is_lasting else None
    return replace(found, pin=str(pin)) if pin else found


def describe_settled(ifindex: int) -> Attached:
    """Describe what is on a link, once what goes with a process that just ended has gone."""
    deadline = time.monotonic() + _EXIT_SECONDS
    while True:
        found = describe_attached(ifindex)
        if not found.is_lasting or found.pin or time.monotonic() > deadline:
            return found
        time.sleep(_EXIT_POLL_SECONDS)


def attached_items(ifindex: int, ifname: str, map_name: str) -> tuple[bytes, bytes]:
    """Return all keys, and all values, of a map of our program on a link.

    Raises
    ------
    RunError
        If no program of ours is there, or it has no such map.
    KernelError
        EPERM without CAP_SYS_ADMIN.
    """
    program_id = attached_program_id(ifindex)
    if not program_id:
        raise RunError(f"{ifname}: no XDP program is attached; start l2fwd forward first")
    if not _bpf.program_name(program_id).startswith(PROGRAM_PREFIX):
        raise RunError(f"{ifname}: {describe_attached(ifindex)} is not ours")
    try:
        return _bpf.program_map_items(program_id, map_name)
    except KernelError as error:
        if error.errno != errno.ENOENT:
            raise
        raise RunError(
            f"{ifname}: its program learns no {map_name}; only --data-path hybrid does"
        ) from None


def _holders(program_id: int) -> tuple[int, ...]:
    """List the processes with an fd of a program, or of a bpf_link that holds it."""
    wanted = re.compile(rf"^prog_id:\s+{program_id}$", re.MULTILINE)
    pids = []
    for folder in Path("/proc").glob("[0-9]*/fdinfo"):
        with contextlib.suppress(OSError):  # a process may end while we look
            if any(wanted.search(entry.read_text()) for entry in folder.iterdir()):
                pids.append(int(folder.parent.name))
    return tuple(sorted(pids))


def unload(ifindex: int, ifname: str) -> Attached | None:
    """Detach a program of ours from a link, and remove its pin; return what it was, or None.

    Raises
    ------
    RunError
        If the program is foreign, an engine is running on it, or it is pinned out of sight.
    """
    found = describe_settled(ifindex)
    if not found.program_id:
        return None
    if not found.is_ours:
        raise RunError(f"unload {ifname}: {found} is not ours; left as it is")
    if found.pids:
        raise RunError(f"unload {ifname}: {found} is in use; stop that process first")
    if found.is_lasting:
        if not found.pin:
            raise RunError(f"unload {ifname}: {found} is {PIN_OUT_OF_SIGHT}")
        _bpf.detach_link(found.link_id)
        pins.remove_pin(Path(found.pin), ifname)
    else:
        _bpf.xdp_detach(ifindex, _MODES[AttachMode(found.mode)][0], ifname)
    return found


def remove(ifindex: int, ifname: str, found: Attached) -> None:
    """Detach a program that somebody else has put on a link.

    Raises
    ------
    RunError
        If there is one in more than one mode.
    KernelError
    """
    if found.link_id:
        _bpf.detach_link(found.link_id)
    elif found.mode == "multi":
        raise RunError(f"{ifname}: programs in several modes; ip link set {ifname} xdp off")
    else:
        _bpf.xdp_detach(ifindex, _MODES[AttachMode(found.mode)][0], ifname)


@dataclass(slots=True)
class Attachment:
    """A program on a link, until ``detach``.

    ``fd`` is the bpf_link; ``chained`` what libxdp needs to detach, where it attached.
    """

    ifindex: int
    ifname: str
    mode: str = "none"
    program_id: int = 0
    is_dispatched: bool = False
    notes: list[str] = field(default_factory=list)
    fd: int = -1
    chained: "tuple[_bpf.BpfObject, int] | None" = None
    is_pinned: bool = False

    def is_there(self) -> bool:
        """Tell whether the program is still on the link.

        Behind a dispatcher only whether one is: its id changes with every program that joins.

        Raises
        ------
        KernelError
            ENODEV once the link is gone from this namespace.
        """
        current = attached_program_id(self.ifindex)
        return bool(current) if self.is_dispatched else current == self.program_id

    def pin(self, folder: pins.PinFolder) -> None:
        """Let the program, and the link's promiscuity, outlive this process."""
        folder.pin(self.fd, self.ifname)
        self.is_pinned = True

    def detach(self) -> None:
        """Detach, or leave it to its pin; a second call, or a link that is gone, is fine."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self.chained is not None:
            program, mode = self.chained
            self.chained = None
            with contextlib.suppress(KernelError):  # the link went, and the program with it
                program.detach_chained(self.ifindex, mode, self.ifname)


def set_pinned_socket(path: str, queue_id: int, fd: int) -> None:
    """Put a socket into the pinned XSKMAP at ``path``.

    Raises
    ------
    KernelError
        ENOENT, EACCES; E2BIG if it has no slot for the queue.
    ConfigError
        If it is no XSKMAP.
    """
    _bpf.set_pinned_socket(path, queue_id, fd)


class Program:
    """One of our BPF objects, opened for one link.

    Parameters
    ----------
    name : str
        Of the object: ``afxdp`` holds the program ``l2fwd_afxdp``.
    map_sizes : dict[str, int]
        ``max_entries`` by map name.
    shared : Program, optional
        A loaded program of the same object.
    shared_maps : tuple of str
        Maps of ``shared`` that this program uses too.

    Raises
    ------
    KernelError
        If the object is missing or the kernel refuses it.
    """

    def __init__(
        self,
        name: str,
        map_sizes: dict[str, int] | None = None,
        *,
        shared: "Program | None" = None,
        shared_maps: tuple[str, ...] = (),
    ) -> None:
        with as_file(files("l2fwd") / "bpf_objects" / f"{name}.o") as path:
            self._object: _bpf.BpfObject = _bpf.BpfObject(
                str(path),
                PROGRAM_PREFIX + name,
                map_sizes or {},
                shared._object if shared else None,
                shared_maps,
            )
        self.name = name
        self._sockets = "sockets"

    @classmethod
    def from_file(cls, path: str, name: str = "") -> "Program":
        """Open a user's own object: its program ``name``, or its first one."""
        self = cls.__new__(cls)
        self._object = _bpf.BpfObject(path, name, {})
        self.name = self._object.name
        self._sockets = "xsks_map"
        return self

    @property
    def fd(self) -> int:
        return self._object.fd

    def load(self) -> None:
        """Load without attaching."""
        self._object.load()

    def load_bound(self, ifindex: int, constants: bytes = b"") -> None:
        """Load for native mode on one link, whose driver the program may ask about packets.

        ``constants`` are its ``const volatile`` variables, if it has any.
        """
        if constants:
            self._object.set_constants(constants)
        self._object.load(bound_ifindex=ifindex)

    def attach(
        self, ifindex: int, ifname: str, mode: AttachMode, *, chain: bool = False
    ) -> Attachment:
        """Load if need be, and attach; ``notes`` of the result name every fall-back.

        Raises
        ------
        KernelError, UnsupportedError
            If the program cannot be attached as asked.
        """
        if mode is AttachMode.OFFLOAD:
            return self._offload(ifindex, ifname, chain)
        if mode is not AttachMode.AUTO:
            return self._attach(ifindex, ifname, mode, chain)
        try:
            return self._attach(ifindex, ifname, AttachMode.NATIVE, chain)
        except KernelError as error:
            if error.operation != "attach to" or error.errno not in _NO_NATIVE:
                raise
            attachment = self._attach(ifindex, ifname, AttachMode.SKB, chain)
            attachment.notes.append(f"{ifname}: native XDP refused, fell back to skb: {error}")
            return attachment

    def _attach(self, ifindex: int, ifname: str, mode: AttachMode, chain: bool) -> Attachment:
        flags, libxdp_mode = _MODES[mode]
        attachment = Attachment(ifindex, ifname)
        if chain:
            attachment.is_dispatched = self._object.attach_chained(ifindex, libxdp_mode, ifname)
            attachment.chained = (self._object, libxdp_mode)
            if not attachment.is_dispatched:
                attachment.notes.append(
                    f"{ifname}: attached alone, libxdp has no dispatcher here "
                    f"({_bpf.last_warning or 'no reason given'})"
                )
        else:
            self._load_for(ifindex, mode)
            attachment.fd = self._object.attach_link(ifindex, flags, ifname)
        try:
            obtained, attachment.program_id = _bpf.xdp_attached(ifindex)
        except KernelError:
            attachment.detach()
            raise
        attachment.mode = _ATTACHED.get(obtained, "multi")
        return attachment

    def _offload(self, ifindex: int, ifname: str, chain: bool) -> Attachment:
        """Have it tried: the driver's refusal is the answer, and names no remedy of its own."""
        try:
            return self._attach(ifindex, ifname, AttachMode.OFFLOAD, chain)
        except KernelError as error:
            if error.errno in (errno.EPERM, errno.EACCES, errno.ENODEV, errno.EBUSY):
                raise
            name = errno.errorcode.get(error.errno or 0, error.errno)
            raise UnsupportedError(
                f"offload to {ifname}: driver {ethtool.driver(ifname) or 'unknown'} does not run "
                f"this program on the NIC ({name}); only nfp offloads XDP, without sockets and "
                "redirects; use --mode native"
            ) from None

    def _load_for(self, ifindex: int, mode: AttachMode) -> None:
        if not self._object.is_loaded:
            self._object.load(ifindex if mode is AttachMode.OFFLOAD else 0)

    def set_socket(self, queue_id: int, fd: int) -> None:
        """Send the packets of ``queue_id`` to AF_XDP socket ``fd`` from now on."""
        self._object.set_socket(self._sockets, queue_id, fd)

    def clear_socket(self, queue_id: int) -> None:
        """Leave the packets of ``queue_id`` to the host stack from now on."""
        self._object.clear(self._sockets, queue_id)

    def update(self, map_name: str, entries: Mapping[bytes, bytes]) -> None:
        """Set keys of a map; both sides as the map has them."""
        self._object.update(map_name, b"".join(entries), b"".join(entries.values()))

    def delete(self, map_name: str, keys: Iterable[bytes]) -> None:
        """Delete keys of a map; those that are not there are fine."""
        self._object.delete(map_name, b"".join(keys))

    def items(self, map_name: str) -> tuple[bytes, bytes]:
        """Return all keys, and all values, of a hash: one after the other."""
        return self._object.items(map_name)

    def map_fd(self, map_name: str) -> int:
        return self._object.map_fd(map_name)

    def sums(self, map_name: str, key: int, fields: int) -> list[int]:
        """Read a per-CPU value of ``fields`` u64, summed over CPUs."""
        return [sum(each) for each in self.by_field(map_name, key, fields)]

    def by_field(self, map_name: str, key: int, fields: int) -> list[tuple[int, ...]]:
        """Read a per-CPU value of ``fields`` u64; return what each CPU has, field by field."""
        raw = self._object.per_cpu(map_name, key)
        words = struct.unpack(f"={len(raw) // 8}Q", raw)
        return [words[i::fields] for i in range(fields)]

    def pass_to_host(self, packet: bytes | bytearray | memoryview, ifindex: int) -> bool:
        """Let the host receive a packet on a link; False if it, or the driver, refuses.

        The program is ``inject``, which passes all.

        Raises
        ------
        KernelError
            EPERM; ENODEV once the link is gone.
        """
        try:
            _bpf.test_run(self.fd, packet, flags=_LIVE_FRAMES, ingress_ifindex=ifindex)
        except KernelError as error:
            if error.errno in (errno.EPERM, errno.ENODEV):
                raise
            return False
        return True

    def counters(self) -> dict[str, int]:
        """Return the program's counters, summed over CPUs."""
        values = self.sums("counters", 0, len(DATAPATH_COUNTERS))
        return dict(zip(DATAPATH_COUNTERS, values, strict=True))

    def close(self) -> None:
        self._object.close()
