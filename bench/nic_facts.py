"""What a NIC is and how it is set: what decides its figures, besides us."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from l2fwd import ethtool
from l2fwd.link import find_link
from l2fwd.numa import node_of

_PROC: Final = Path("/proc")
_PCI_DEVICES: Final = Path("/sys/bus/pci/devices")
# Those that change what arrives, or how much of it.
_OFFLOADS: Final = (
    "generic-receive-offload",
    "large-receive-offload",
    "rx-gro-hw",
    "rx-vlan-offload",
    "tx-vlan-offload",
    "tx-checksumming",
    "rx-checksumming",
    "tcp-segmentation-offload",
    "ntuple-filters",
    "rx-ntuple-filter",
)


@dataclass(frozen=True, slots=True)
class Interrupt:
    """An interrupt of a NIC.

    Attributes
    ----------
    number : int
    name : str
        As the driver calls it: ``eth2-TxRx-0``.
    cpus : str
        A list of those that take it: ``2`` or ``0-3``.
    """

    number: int
    name: str
    cpus: str


def describe_link(ifname: str) -> dict[str, Any]:
    """Return the facts about one link of the calling thread's network namespace.

    Raises
    ------
    ConfigError
        If there is no such link.
    """
    link = find_link(ifname)
    rx_ring, tx_ring = ethtool.ring_sizes(ifname)
    offloads = ethtool.features(ifname)
    return {
        "driver": link.driver,
        "firmware": ethtool.firmware(ifname),
        "pci_address": ethtool.bus_info(ifname),
        "numa_node": node_of(ifname),
        "speed_mbps": ethtool.speed(ifname),
        "mtu": link.mtu,
        "rx_queues": link.rx_queue_count,
        "tx_queues": link.tx_queue_count,
        "rx_ring": rx_ring,
        "tx_ring": tx_ring,
        "pause_frames": ethtool.pause_frames(ifname),
        "offloads": [name for name in _OFFLOADS if offloads.get(name)],
        "interrupts": [
            {"number": each.number, "name": each.name, "cpus": each.cpus}
            for each in interrupts(ifname)
        ],
    }


def interrupts(ifname: str, *, proc: Path = _PROC, devices: Path = _PCI_DEVICES) -> list[Interrupt]:
    """Return the interrupts of a link's NIC, by number; none for a link without a device.

    Found by its PCI address, as ``node_of`` does.

    Parameters
    ----------
    proc, devices : Path
        What procfs and sysfs have.
    """
    address = ethtool.bus_info(ifname)
    folder = devices / address / "msi_irqs"
    if not address or not folder.is_dir():
        return []
    names = _names_of_interrupts(proc / "interrupts")
    numbers = sorted(int(each.name) for each in folder.iterdir())
    return [Interrupt(each, names[each], _cpus_of(proc, each)) for each in numbers if each in names]


def _names_of_interrupts(table: Path) -> dict[int, str]:
    """Return what those in use are called; the columns are one a CPU, then some of the chip."""
    names = {}
    for line in table.read_text().splitlines()[1:]:
        number, _, rest = line.strip().partition(":")
        if number.isdigit() and rest.split():
            names[int(number)] = rest.split()[-1]
    return names


def _cpus_of(proc: Path, number: int) -> str:
    """Return where an interrupt goes; where the kernel does not say, where it may go."""
    for name in ("effective_affinity_list", "smp_affinity_list"):
        with suppress(OSError):
            text = (proc / "irq" / str(number) / name).read_text().strip()
            if text:
                return text
    return ""


def cpus_in(text: str) -> set[int]:
    """Return the CPUs of a list as the kernel writes it.

    >>> sorted(cpus_in("0-2,5")), cpus_in("")
    ([0, 1, 2, 5], set())
    """
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found
