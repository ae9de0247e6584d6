"""Where a run took place: what its figures hold for."""

import ctypes
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from bench.nic_facts import cpus_in, describe_link
from l2fwd.errors import L2fwdError

ROOT: Final = Path(__file__).parents[1]
_CPUS: Final = Path("/sys/devices/system/cpu")
_NODES: Final = Path("/sys/devices/system/node/online")
# Of the kernel's command line: what keeps other work off some CPUs, and what slows all of them.
_WORDS: Final = re.compile(
    r"(?:isolcpus|nohz_full|rcu_nocbs|irqaffinity|mitigations|intel_iommu|amd_iommu|iommu|idle"
    r"|processor\.max_cstate|intel_idle\.max_cstate|intel_pstate|hugepages|default_hugepagesz"
    r"|hugepagesz|nosmt|preempt)(?:=\S*)?"
)
_LIBRARY: Final = re.compile(r"\S*/lib(xdp|bpf)\.so\.([\w.]+)$", re.M)


def describe(links: Sequence[str] = ()) -> dict[str, Any]:
    """Return kernel, CPUs, memory, libraries and our own revision; and of each link, its NIC.

    A link that cannot be looked at is left out: to refuse it is up to others.
    """
    return {
        "kernel": platform.release(),
        "command_line": _command_line(),
        "machine": platform.machine(),
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "nodes": _node_count(),
        "governors": governors(),
        "mitigations": _mitigations(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "python": platform.python_version(),
        "numpy": _version("numpy"),
        "cython": _version("cython"),
        **_libraries(),
        "revision": _revision(),
        "links": _links(links),
    }


def governors(cpus: Path = _CPUS) -> list[str]:
    """Return the frequency governors in use, each once; none in a VM."""
    files = cpus.glob("cpu[0-9]*/cpufreq/scaling_governor")
    return sorted({each.read_text().strip() for each in files})


def _links(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    found = {}
    for name in names:
        with suppress(L2fwdError):
            found[name] = describe_link(name)
    return found


def _command_line() -> list[str]:
    """Return those words that matter here; the others may be nobody's business."""
    words = Path("/proc/cmdline").read_text().split()
    return [word for word in words if _WORDS.fullmatch(word)]


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


def _node_count() -> int:
    with suppress(OSError):
        return len(cpus_in(_NODES.read_text().strip()))
    return 1


def _mitigations(cpus: Path = _CPUS) -> dict[str, str]:
    """Return what is done against each fault that this CPU has."""
    files = sorted((cpus / "vulnerabilities").glob("*"))
    found = {each.name: each.read_text().strip() for each in files}
    return {name: text for name, text in found.items() if text != "Not affected"}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _libraries() -> dict[str, str]:
    """Return which libxdp and libbpf are loaded, by the files they came from."""
    for name in ("libbpf.so.1", "libxdp.so.1"):
        with suppress(OSError):
            ctypes.CDLL(name)
    found = dict(_LIBRARY.findall(Path("/proc/self/maps").read_text()))
    return {f"lib{name}": found.get(name, "not found") for name in ("xdp", "bpf")}


def _revision() -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip() or "unknown"
