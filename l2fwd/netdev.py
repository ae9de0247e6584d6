"""What a driver can do with XDP, as the generic netlink family ``netdev`` tells it.

Source of every number: linux/netdev.h, which distributions do not ship yet.
"""

import errno
from dataclasses import dataclass
from typing import Final

from pyroute2.netlink import NLM_F_REQUEST, genlmsg
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import GenericNetlinkSocket

from l2fwd.errors import kernel_error
from l2fwd.event_loops import outside_event_loops

_DEV_GET: Final = 1  # NETDEV_CMD_DEV_GET
_FAMILY_VERSION: Final = 1

# enum netdev_xdp_act
_BASIC: Final = 1 << 0
_REDIRECT: Final = 1 << 1
_NDO_XMIT: Final = 1 << 2
_XSK_ZEROCOPY: Final = 1 << 3
_HW_OFFLOAD: Final = 1 << 4
_RX_SG: Final = 1 << 5
_NDO_XMIT_SG: Final = 1 << 6

# enum netdev_xdp_rx_metadata, and netdev_xsk_flags
_RX_METADATA: Final = {"timestamp": 1 << 0, "hash": 1 << 1, "vlan-tag": 1 << 2}
_TX_METADATA: Final = {"timestamp": 1 << 0, "checksum": 1 << 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class XdpFeatures:
    """What the driver of a link does for XDP programs, at this moment.

    Attributes
    ----------
    basic : bool
        Programs run in native mode, with the verdicts ABORTED, DROP, PASS and TX.
    redirect : bool
        Native programs may redirect away from the link.
    ndo_xmit : bool
        Other links may redirect into this one.  Some drivers say so only while a program
        is attached; veth, while its peer has a program or GRO.
    zero_copy : bool
        AF_XDP sockets bind in zero-copy mode.
    hw_offload : bool
        Programs run on the NIC.
    rx_sg, ndo_xmit_sg : bool
        A packet may span several buffers: received, and redirected into the link.
    zc_max_segs : int
        Most frames per packet in zero-copy mode; 1 where a packet must fit one frame.
    rx_metadata : frozenset of str
        What it tells a native program about a packet: ``timestamp``, ``hash``, ``vlan-tag``.
    tx_metadata : frozenset of str
        What sockets may ask of it in zero-copy mode: ``timestamp``, ``checksum``.
    """

    basic: bool
    redirect: bool
    ndo_xmit: bool
    zero_copy: bool
    hw_offload: bool
    rx_sg: bool
    ndo_xmit_sg: bool
    zc_max_segs: int
    rx_metadata: frozenset[str] = frozenset()
    tx_metadata: frozenset[str] = frozenset()


class _DeviceMessage(genlmsg):  # type: ignore[misc]  # pyroute2 has no types
    prefix = "NETDEV_A_DEV_"
    nla_map = (
        (1, "NETDEV_A_DEV_IFINDEX", "uint32"),
        (2, "NETDEV_A_DEV_PAD", "none"),
        (3, "NETDEV_A_DEV_XDP_FEATURES", "uint64"),
        (4, "NETDEV_A_DEV_XDP_ZC_MAX_SEGS", "uint32"),
        (5, "NETDEV_A_DEV_XDP_RX_METADATA_FEATURES", "uint64"),
        (6, "NETDEV_A_DEV_XSK_FEATURES", "uint64"),
    )


@outside_event_loops
def xdp_features(ifindex: int) -> XdpFeatures | None:
    """Ask the kernel about link ``ifindex`` of the calling thread's namespace.

    Returns
    -------
    XdpFeatures or None
        None where the kernel cannot tell: older than Linux 6.3.

    Raises
    ------
    KernelError
        If there is no such link (ENODEV).
    """
    try:
        with GenericNetlinkSocket() as sock:
            # A missing family is an answer, not something to log as an error.
            sock.asyncore.module_err_level = "debug"
            sock.bind("netdev", _DeviceMessage)
            request = _DeviceMessage()
            request["cmd"] = _DEV_GET
            request["version"] = _FAMILY_VERSION
            request["attrs"] = [("NETDEV_A_DEV_IFINDEX", ifindex)]
            (reply,) = sock.nlm_request(request, msg_type=sock.prid, msg_flags=NLM_F_REQUEST)
    except NetlinkError as error:
        if error.code == errno.ENOENT:  # ctrl_getfamily
            return None
        raise kernel_error(error.code, "query XDP features of", f"link {ifindex}") from error
    flags = reply.get_attr("NETDEV_A_DEV_XDP_FEATURES") or 0
    return XdpFeatures(
        basic=bool(flags & _BASIC),
        redirect=bool(flags & _REDIRECT),
        ndo_xmit=bool(flags & _NDO_XMIT),
        zero_copy=bool(flags & _XSK_ZEROCOPY),
        hw_offload=bool(flags & _HW_OFFLOAD),
        rx_sg=bool(flags & _RX_SG),
        ndo_xmit_sg=bool(flags & _NDO_XMIT_SG),
        zc_max_segs=reply.get_attr("NETDEV_A_DEV_XDP_ZC_MAX_SEGS") or 1,
        rx_metadata=_named(_RX_METADATA, reply.get_attr("NETDEV_A_DEV_XDP_RX_METADATA_FEATURES")),
        tx_metadata=_named(_TX_METADATA, reply.get_attr("NETDEV_A_DEV_XSK_FEATURES")),
    )


def _named(bits: dict[str, int], flags: int | None) -> frozenset[str]:
    """Return the names whose bits are set; none where an older kernel tells nothing."""
    return frozenset(name for name, bit in bits.items() if (flags or 0) & bit)
