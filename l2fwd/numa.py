"""Packet memory near the NIC: which NUMA node a link's device is on."""

from contextlib import suppress
from pathlib import Path
from typing import Final

from l2fwd.ethtool import bus_info

_NODES: Final = Path("/sys/devices/system/node/online")
_PCI_DEVICES: Final = Path("/sys/bus/pci/devices")


def node_of(ifname: str, *, nodes: Path = _NODES, devices: Path = _PCI_DEVICES) -> int | None:
    """Return the NUMA node of a link's device; None where all memory is as near.

    Found by its PCI address, not in ``/sys/class/net``: that is of the namespace sysfs was mounted
    in, where another link may have the name.

    Parameters
    ----------
    nodes, devices : Path
        What sysfs has.
    """
    with suppress(OSError, ValueError):
        if nodes.read_text().strip() == "0":
            return None
        address = bus_info(ifname)
        if address:
            node = int((devices / address / "numa_node").read_text())
            return node if node >= 0 else None
    return None
