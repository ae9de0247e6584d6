"""What a run may leave behind: in the kernel, and in a process that goes on."""

import ctypes
import os
import re
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from l2fwd import link

_SYS_BPF: Final = 321 if os.uname().machine == "x86_64" else 280
_GET_NEXT_ID: Final = {"programs": 11, "maps": 12, "links": 31}  # enum bpf_cmd
_ATTR_BYTES: Final = 128
_FREEING_SECONDS: Final = 5.0  # the kernel frees programs and sockets in the background
_LOOK_SECONDS: Final = 0.05

Objects = dict[str, set[int | str]]


def bpf_ids(command: int) -> set[int | str]:
    """List all ids that bpf(2) enumerates with ``command`` (*_GET_NEXT_ID)."""
    libc = ctypes.CDLL(None, use_errno=True)
    found: set[int | str] = set()
    last = 0
    while True:
        attr = ctypes.create_string_buffer(struct.pack("III", last, 0, 0), _ATTR_BYTES)
        if libc.syscall(_SYS_BPF, command, attr, _ATTR_BYTES) < 0:
            return found
        last = struct.unpack_from("II", attr.raw)[1]
        found.add(last)


def xdp_sockets() -> int:
    """Count AF_XDP sockets on this machine."""
    table = Path("/proc/net/protocols").read_text()
    row = re.search(r"^XDP\s+\d+\s+(\d+)", table, re.MULTILINE)
    return int(row[1]) if row else 0


def pinned_pages() -> int:
    """Count pages pinned for UMEMs and the like."""
    Path("/proc/sys/vm/stat_refresh").read_bytes()  # per-CPU counts, added up once a second
    counts = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(counts["nr_foll_pin_acquired"]) - int(counts["nr_foll_pin_released"])


def kernel_objects() -> Objects:
    """Return what a run may leave: programs, maps, links, sockets, pages, namespaces."""
    return {
        **{kind: bpf_ids(command) for kind, command in _GET_NEXT_ID.items()},
        "sockets": set(range(xdp_sockets())),
        "pages": set(range(max(0, pinned_pages()))),
        "namespaces": set(link.list_netns()),
    }


def left_over(before: Objects) -> Objects:
    """Return what is there now and was not, by kind; kinds without any are left out."""
    now = kernel_objects()
    return {kind: now[kind] - before[kind] for kind in now if now[kind] - before[kind]}


def left_for_good(before: Objects, seconds: float = _FREEING_SECONDS) -> Objects:
    """Return what is left over once the kernel has had time to free it."""
    deadline = time.monotonic() + seconds
    while left_over(before) and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
    return left_over(before)


def open_files(pid: int) -> int:
    """Count the file descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident_kib(pid: int) -> int:
    """Return the memory that a process holds, in KiB."""
    fields: Mapping[str, str] = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return int(fields["VmRSS"].split()[0])
