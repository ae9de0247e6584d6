"""Links and network namespaces, over rtnetlink.

Everything acts in the network namespace of the calling thread, opens what it needs per call
and closes it again: no descriptor, thread or process outlives a call.
"""

import ctypes
import difflib
import errno
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from l2fwd import ethtool
from l2fwd.errors import ConfigError, KernelError, kernel_error
from l2fwd.event_loops import outside_event_loops
from l2fwd.words import check_ifname

NETNS_DIR: Final = Path("/var/run/netns")  # where ip-netns(8) keeps its names
INITIAL_NETNS: Final = "/proc/1/ns/net"

_NETNS_OF_THREAD: Final = "/proc/thread-self/ns/net"

# sched.h, sys/mount.h
_CLONE_NEWNET: Final = 0x40000000
_MS_BIND: Final = 1 << 12
_MS_REC: Final = 1 << 14
_MS_SHARED: Final = 1 << 20
_MNT_DETACH: Final = 2

# linux/if.h
_IFF_UP: Final = 1 << 0
# linux/if_packet.h
_SOL_PACKET: Final = 263
_PACKET_ADD_MEMBERSHIP: Final = 1
_PACKET_MR_PROMISC: Final = 1
# linux/rtnetlink.h
_RT_SCOPE_LINK: Final = 253
_IFF_PROMISC: Final = 1 << 8

_XDP_MODES: Final = {  # pyroute2's names of IFLA_XDP_ATTACHED
    None: "none",
    "xdp": "native",
    "xdpgeneric": "skb",
    "xdpoffload": "offload",
    "xdpmulti": "multi",
}

_CARRIER_POLL_SECONDS: Final = 0.02
_libc: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A network interface, as it was when looked at.

    Attributes
    ----------
    kind : str or None
        What rtnetlink calls it, such as ``veth`` or ``bridge``; None for hardware.
    driver : str
        ethtool's name of the driver, else the kind; empty where neither is known.
    mtu : int
        Bytes above the Ethernet header.
    is_promiscuous : bool
        Also true where the kernel made it so: a bridge port, a capturing socket.
    rx_queue_count, tx_queue_count : int
        Channels in use, not the most the driver could have.
    xdp_mode : str
        ``none``, ``native``, ``skb``, ``offload`` or ``multi``.
    xdp_program_id : int
        0 where no program is attached.
    address : str
        MAC address.
    peer_ifindex : int or None
        Other end of a veth, in namespace ``peer_netns_id``.
    peer_netns_id : int or None
        None where the peer is in the same namespace.
    rx_missed : int
        Packets the NIC had no buffer for, since the driver began to count.
    """

    ifindex: int
    ifname: str
    kind: str | None
    driver: str
    mtu: int
    is_up: bool
    has_carrier: bool
    is_promiscuous: bool
    rx_queue_count: int
    tx_queue_count: int
    xdp_mode: str
    xdp_program_id: int
    address: str
    peer_ifindex: int | None
    peer_netns_id: int | None
    rx_missed: int = 0


@outside_event_loops
def find_link(ifname: str) -> Link:
    """Look at a link by its name.

    Raises
    ------
    ConfigError
        If the name cannot be one, or no link has it.
    """
    check_ifname(ifname)
    try:
        with _rtnetlink("find", f"link {ifname}") as ip:
            return _link_from(ip.link("get", ifname=ifname)[0])
    except KernelError as error:
        if error.errno == errno.ENODEV:
            raise _unknown_link(ifname) from error
        raise


def wait_for_carrier(ifname: str, seconds: float, check: Callable[[], None]) -> bool:
    """Wait until a link has a carrier; False if it has none after so long.

    Attaching a program resets Intel NICs, which takes their carrier away for a while.  ``check``
    is called some times a second, and may raise.
    """
    deadline = time.monotonic() + seconds
    while not find_link(ifname).has_carrier:
        check()
        if time.monotonic() > deadline:
            return False
        time.sleep(_CARRIER_POLL_SECONDS)
    return True


def find_peer(link: Link) -> tuple[str | None, Link] | None:
    """Look at the other end of a veth.

    Returns
    -------
    (netns, Link) or None
        ``netns`` is what :func:`in_netns` takes: None for this thread's own.  None for all of
        it where ``link`` has no peer, or the namespace of the peer cannot be entered.
    """
    if link.peer_ifindex is None:
        return None
    if link.peer_netns_id is None:
        return None, _link_at(link.peer_ifindex)
    for netns in (*list_netns(), INITIAL_NETNS):
        # Not ours to enter, not a namespace at all, or gone by now: the peer is not seen there.
        with suppress(ConfigError, KernelError, OSError):
            if _netns_id(netns) == link.peer_netns_id:
                with in_netns(netns):
                    return netns, _link_at(link.peer_ifindex)
    return None


def _link_at(ifindex: int) -> Link:
    with _rtnetlink("find", f"link {ifindex}") as ip:
        return _link_from(ip.link("get", index=ifindex)[0])


def _link_from(message: Any) -> Link:
    """Join what rtnetlink says with what ethtool says."""
    ifname = message.get_attr("IFLA_IFNAME")
    kind = message.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND")
    is_veth = kind == "veth"
    rx_queue_count, tx_queue_count = ethtool.queue_counts(ifname) or (
        message.get_attr("IFLA_NUM_RX_QUEUES") or 1,
        message.get_attr("IFLA_NUM_TX_QUEUES") or 1,
    )
    xdp_mode, xdp_program_id = _xdp_state(message)
    return Link(
        ifindex=message["index"],
        ifname=ifname,
        kind=kind,
        driver=ethtool.driver(ifname) or kind or "",
        mtu=message.get_attr("IFLA_MTU"),
        is_up=bool(message["flags"] & _IFF_UP),
        has_carrier=bool(message.get_attr("IFLA_CARRIER")),
        # The flag shows only what ip-link(8) asked for; the count, also a bridge or a socket.
        is_promiscuous=bool(message.get_attr("IFLA_PROMISCUITY")),
        rx_queue_count=rx_queue_count,
        tx_queue_count=tx_queue_count,
        xdp_mode=xdp_mode,
        xdp_program_id=xdp_program_id,
        address=message.get_attr("IFLA_ADDRESS") or "",
        peer_ifindex=message.get_attr("IFLA_LINK") if is_veth else None,
        peer_netns_id=message.get_attr("IFLA_LINK_NETNSID") if is_veth else None,
        rx_missed=_rx_missed(message),
    )


def _rx_missed(message: Any) -> int:
    statistics = message.get_attr("IFLA_STATS64") or {}
    # Intel's drivers use the second one for packets that a queue had no buffer for.
    return int(statistics.get("rx_missed_errors", 0) + statistics.get("rx_fifo_errors", 0))


def _xdp_state(message: Any) -> tuple[str, int]:
    xdp = message.get_attr("IFLA_XDP")
    if xdp is None:
        return "none", 0
    mode = _XDP_MODES[xdp.get_attr("IFLA_XDP_ATTACHED")]
    # With programs in several modes there is no IFLA_XDP_PROG_ID; the native one counts.
    names = ("", "DRV_", "HW_", "SKB_")
    ids = (xdp.get_attr(f"IFLA_XDP_{name}PROG_ID") for name in names)
    return mode, next((i for i in ids if i), 0)


def _unknown_link(ifname: str) -> ConfigError:
    with _rtnetlink("list", "links") as ip:
        names = [link.get_attr("IFLA_IFNAME") for link in ip.get_links()]
    close = difflib.get_close_matches(ifname, names, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return ConfigError(f"link {ifname} does not exist; {hint}`ip link show` lists the links")


# Changing links


def set_up(ifname: str) -> None:
    """Bring a link up."""
    _set_link(ifname, "set up", state="up")


def set_down(ifname: str) -> None:
    """Take a link down."""
    _set_link(ifname, "set down", state="down")


def set_promiscuous(ifname: str, promiscuous: bool) -> None:
    """Receive what is addressed to others, or stop doing so."""
    flags = _IFF_PROMISC if promiscuous else 0
    _set_link(ifname, "set promiscuity of", flags=flags, change=_IFF_PROMISC)


def is_set_promiscuous(ifname: str) -> bool:
    """Tell whether the flag is set, as ip-link(8) sets it; a bridge or a socket leave it alone."""
    with _rtnetlink("find", f"link {ifname}") as ip:
        return bool(ip.link("get", index=_ifindex(ifname))[0]["flags"] & _IFF_PROMISC)


def hold_promiscuous(ifindex: int) -> socket.socket:
    """Keep a link promiscuous until the returned socket is closed, or its process ends.

    Raises
    ------
    KernelError
    """
    request = struct.pack("iHH8x", ifindex, _PACKET_MR_PROMISC, 0)
    with ExitStack() as undo:
        try:
            # Protocol 0: the socket itself receives nothing.
            holder = undo.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
            holder.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, request)
        except OSError as error:
            target = f"link {ifindex}"
            raise kernel_error(error.errno or 0, "set promiscuity of", target) from None
        undo.pop_all()
    return holder


def set_mtu(ifname: str, mtu: int) -> None:
    """Set the most bytes above the Ethernet header."""
    _set_link(ifname, "set MTU of", mtu=mtu)


def set_address(ifname: str, address: str) -> None:
    """Set the MAC address."""
    _set_link(ifname, "set address of", address=address)


def add_address(ifname: str, cidr: str) -> None:
    """Add an IP address, such as ``192.0.2.1/24`` or ``2001:db8::1/64``."""
    with _rtnetlink("add address to", ifname) as ip:
        ip.addr("add", index=_ifindex(ifname), address=cidr)


def addresses(ifname: str) -> list[str]:
    """Return the IP addresses of a link, those it gave itself (link-local IPv6) left out."""
    with _rtnetlink("list addresses of", ifname) as ip:
        found = ip.get_addr(index=_ifindex(ifname))
    return [each.get_attr("IFA_ADDRESS") for each in found if each["scope"] != _RT_SCOPE_LINK]


def move(ifname: str, netns: str) -> None:
    """Move a link into a namespace, a name or the path of a file; it arrives down."""
    with _netns_fd(netns) as fd:
        _set_link(ifname, "move", net_ns_fd=fd)


def delete_link(ifname: str) -> None:
    """Remove a link; both ends of a veth."""
    with _rtnetlink("delete", ifname) as ip:
        ip.link("del", index=_ifindex(ifname))


def disable_ipv6(ifname: str) -> None:
    """Keep the kernel from sending IPv6 noise on a link; nothing to do without IPv6."""
    _ifindex(ifname)
    # /proc/sys/net shows the namespace of the thread that opens it.
    setting = Path("/proc/sys/net/ipv6/conf") / ifname / "disable_ipv6"
    try:
        setting.write_text("1")
    except FileNotFoundError:
        return
    except OSError as error:
        raise kernel_error(error.errno or 0, "disable IPv6 on", ifname) from error


def create_veth(
    left: tuple[str | None, str],
    right: tuple[str | None, str],
    *,
    queues: int = 1,
    mtu: int = 1500,
) -> None:
    """Create a veth, each end at once in its namespace; both are left down.

    Parameters
    ----------
    left, right : (netns, ifname)
        A namespace of None is the calling thread's.
    queues : int
        RX and TX queues of each end.
    mtu : int
        Of both ends.
    """
    for _, ifname in (left, right):
        check_ifname(ifname)
    with _netns_fd(left[0]) as left_fd, _netns_fd(right[0]) as right_fd:
        shape = {"mtu": mtu, "num_tx_queues": queues, "num_rx_queues": queues}
        peer = {"ifname": right[1], "net_ns_fd": right_fd, **shape}
        with _rtnetlink("create veth", f"{left[1]} and {right[1]}") as ip:
            ip.link("add", ifname=left[1], kind="veth", net_ns_fd=left_fd, peer=peer, **shape)


def _set_link(ifname: str, operation: str, **change: Any) -> None:
    with _rtnetlink(operation, ifname) as ip:
        ip.link("set", index=_ifindex(ifname), **change)


def _ifindex(ifname: str) -> int:
    check_ifname(ifname)
    try:
        return socket.if_nametoindex(ifname)
    except OSError as error:
        raise _unknown_link(ifname) from error


@contextmanager
def _rtnetlink(operation: str, target: str) -> Iterator[Any]:
    # pyroute2 opens the socket in the thread that makes the object, and runs its event loop
    # there only while a request is under way.
    try:
        with IPRoute() as ip:
            yield ip
    except NetlinkError as error:
        raise kernel_error(error.code, operation, target) from error


# Offloads


# Network namespaces


@contextmanager
def in_netns(netns: str | None) -> Iterator[None]:
    """Move the calling thread, and no other, into a namespace and back.

    Parameters
    ----------
    netns : str or None
        A name of ip-netns(8), or the path of a namespace file; None stays.

    Raises
    ------
    ConfigError
        If there is no such namespace.
    KernelError
        If it may not be entered.
    """
    if netns is None:
        yield
        return
    with _netns_fd(netns) as target, _restored_netns():
        if _libc.setns(target, _CLONE_NEWNET):
            raise kernel_error(ctypes.get_errno(), "enter namespace", netns)
        yield


def list_netns() -> list[str]:
    """Return the names of ip-netns(8), sorted."""
    return sorted(os.listdir(NETNS_DIR)) if NETNS_DIR.is_dir() else []


def netns_exists(name: str) -> bool:
    """Tell whether ip-netns(8) would know the name."""
    return _netns_path(name).exists()


def create_netns(name: str) -> None:
    """Create a namespace as ``ip netns add`` does.

    Raises
    ------
    KernelError
        EEXIST if the name is taken, EPERM without CAP_SYS_ADMIN.
    """
    path = _netns_path(name)
    _share_netns_dir()
    try:
        path.touch(mode=0o444, exist_ok=False)
    except OSError as error:
        raise kernel_error(error.errno or 0, "create namespace", name) from error
    try:
        # No child process: this thread steps out, names the new namespace and steps back.
        with _restored_netns():
            if _libc.unshare(_CLONE_NEWNET):
                raise kernel_error(ctypes.get_errno(), "create namespace", name)
            _mount(_NETNS_OF_THREAD, path, _MS_BIND)
    except BaseException:
        path.unlink()
        raise


def remove_netns(name: str) -> None:
    """Remove a namespace, and with it its links; nothing to do if there is none."""
    path = _netns_path(name)
    # EINVAL: a name left by a killed run, with nothing mounted on it.
    _libc.umount2(os.fsencode(path), _MNT_DETACH)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise kernel_error(error.errno or 0, "remove namespace", name) from error


def _netns_path(name: str) -> Path:
    if not name or "/" in name or "\0" in name or name in (".", ".."):
        raise ConfigError(f"{name!r} cannot name a network namespace")
    return NETNS_DIR / name


@contextmanager
def _netns_fd(netns: str | None) -> Iterator[int]:
    if netns is None:
        path = Path(_NETNS_OF_THREAD)
    else:
        path = Path(netns) if "/" in netns else _netns_path(netns)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        message = f"network namespace {netns} does not exist; `ip netns list` lists them"
        raise ConfigError(message) from error
    except OSError as error:
        raise kernel_error(error.errno or 0, "open namespace", str(netns)) from error
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _restored_netns() -> Iterator[None]:
    with _netns_fd(None) as home:
        try:
            yield
        finally:
            if _libc.setns(home, _CLONE_NEWNET):
                raise kernel_error(ctypes.get_errno(), "return from", "namespace")


def _netns_id(netns: str) -> int | None:
    """Return the id this thread's namespace has for another."""
    with _netns_fd(netns) as fd, _rtnetlink("identify namespace", netns) as ip:
        answer: int | None = ip.get_netnsid(fd=fd)["nsid"]
        return answer


def _share_netns_dir() -> None:
    """Let mounts below the directory reach the other mount namespaces, as ip-netns(8) does."""
    NETNS_DIR.mkdir(mode=0o755, exist_ok=True)
    try:
        _mount("none", NETNS_DIR, _MS_SHARED | _MS_REC)
    except KernelError as error:
        if error.errno != errno.EINVAL:  # do_change_type: not a mount point yet
            raise
        _mount(str(NETNS_DIR), NETNS_DIR, _MS_BIND | _MS_REC)
        _mount("none", NETNS_DIR, _MS_SHARED | _MS_REC)


def _mount(source: str, target: Path, flags: int) -> None:
    if _libc.mount(source.encode(), os.fsencode(target), b"none", ctypes.c_ulong(flags), None):
        raise kernel_error(ctypes.get_errno(), "mount", str(target))
