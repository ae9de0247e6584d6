"""What this host and its links can do, and the command that mends what is wrong.

Looks only: nothing is attached, bound or changed.
"""

import errno
import platform
import re
import resource
import shlex
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from l2fwd.abi import (
    AF_XDP,
    COPY_MODE_FRAGMENTS,
    ETHERNET_HEADER_BYTES,
    ETHERNET_MTU,
    MIN_TX_SKB_BUDGET,
    SOL_XDP,
    VLAN_TAG_BYTES,
    XDP_MAX_TX_SKB_BUDGET,
    XDP_PACKET_HEADROOM,
)
from l2fwd.bpf import describe_attached
from l2fwd.errors import ConfigError, L2fwdError
from l2fwd.ethtool import features
from l2fwd.link import INITIAL_NETNS, Link, find_link, find_peer, in_netns
from l2fwd.netdev import XdpFeatures, xdp_features
from l2fwd.nics import room_in_zero_copy

Level = Literal["ok", "warning", "error"]

HOST: Final = "host"
DEFAULT_UMEM_BYTES: Final = 16 << 20

_OLDEST_KERNEL: Final = (5, 18)  # xdp.frags, and live frames of BPF_PROG_TEST_RUN
_LOOPBACK_IFINDEX: Final = 1  # in every network namespace

# linux/capability.h
_CAPABILITIES: Final = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_BPF": 39}
_CAP_IPC_LOCK: Final = 14
_CAP_SYS_ADMIN: Final = 21  # bpf_capable: stands for CAP_BPF

# xp_assign_dev wants room for the MTU with header, two VLAN tags and checksum (ETH_PAD_LEN) ...
_ZERO_COPY_PAD_BYTES: Final = 26  # ... in what NICs can be told of a buffer's size


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at.

    Attributes
    ----------
    level : str
        ``ok``; ``warning``: forwarding works, with a loss the text names; ``error``: it does
        not work.
    subject : str
        Name of the link, or ``host``.
    what : str
        What was found, in one line.
    remedy : str
        Shell command that mends it; empty where nothing is wrong or no command helps.
    """

    level: Level
    subject: str
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.subject}: {self.what}" + (f"; {self.remedy}" if self.remedy else "")


def check_host() -> list[Finding]:
    """Look at the kernel and at what this process may do."""
    return [
        _kernel(),
        *_capabilities(),
        _xdp_socket(),
        _netdev_family(),
        _memlock(),
        _bpffs(),
        *_jit(),
        _btf(),
    ]


def check_link(name: str, *, frame_size: int = 2048, headroom: int = 0) -> list[Finding]:
    """Look at one link of the calling thread's network namespace.

    Parameters
    ----------
    frame_size, headroom : int
        Bytes, as they will be forwarded with.
    """
    try:
        link = find_link(name)
        offloads = features(name)
        xdp = xdp_features(link.ifindex)
        peer = _find_peer(link)
    except L2fwdError as error:
        remedy = "ip link show" if isinstance(error, ConfigError) else ""
        subject = name if name.isprintable() else ascii(name)
        return [Finding("error", subject, str(error), remedy)]
    return [
        _state(link, peer),
        *_xdp(link, xdp, peer),
        _queues(link),
        _mtu(link, frame_size - XDP_PACKET_HEADROOM - headroom, xdp),
        *_offloads(link, offloads, xdp),
        _promiscuity(link),
        _program(link),
        *_veth(link, peer),
    ]


def check_packets(name: str, *, redirect: bool = False) -> list[Finding]:
    """Return what would spoil packets on their way: offloads of a link and of its veth peer.

    Parameters
    ----------
    name : str
    redirect : bool
        Packets will be redirected to this link in the kernel: it must have ndo_xdp_xmit.

    Raises
    ------
    ConfigError
        If there is no such link.
    """
    link = find_link(name)
    xdp = xdp_features(link.ifindex)
    peer = _find_peer(link)
    findings = [*_offloads(link, features(name), xdp), *_veth(link, peer)]
    # Other drivers take redirected packets once the link has a program, as it will have.
    if redirect and link.kind == "veth" and xdp is not None and xdp.basic:
        findings.append(_ndo_xmit(link, xdp, peer))
    return [finding for finding in findings if finding.level != "ok"]


# The host


def _kernel() -> Finding:
    release = platform.release()
    version = tuple(int(number) for number in re.findall(r"\d+", release)[:2])
    if version < _OLDEST_KERNEL:
        needed = ".".join(map(str, _OLDEST_KERNEL))
        return Finding("error", HOST, f"kernel {release} is older than {needed}")
    return Finding("ok", HOST, f"kernel {release}")


def _capabilities() -> Iterator[Finding]:
    effective = _effective_capabilities()
    granted = effective | (bool(effective >> _CAP_SYS_ADMIN & 1) << _CAPABILITIES["CAP_BPF"])
    missing = [name for name, bit in _CAPABILITIES.items() if not granted >> bit & 1]
    for name in missing:
        remedy = f"sudo {shlex.quote(sys.executable)} -m l2fwd check"
        yield Finding("error", HOST, f"{name} is missing", remedy)
    if not missing:
        yield Finding("ok", HOST, f"capabilities: {', '.join(_CAPABILITIES)}")


def _effective_capabilities() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def _xdp_socket() -> Finding:
    try:
        with socket.socket(AF_XDP, socket.SOCK_RAW) as sock:
            budget = "with" if _has_tx_budget(sock) else "without"
    except PermissionError:
        remedy = f"sudo {shlex.quote(sys.executable)} -m l2fwd check"
        return Finding("error", HOST, "AF_XDP: socket refused (EPERM)", remedy)
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, str(error.errno))
        reason = "the kernel lacks CONFIG_XDP_SOCKETS or a seccomp filter forbids family 44"
        return Finding("error", HOST, f"AF_XDP: no socket ({name}); {reason}")
    return Finding("ok", HOST, f"AF_XDP: sockets work, {budget} XDP_MAX_TX_SKB_BUDGET")


def _has_tx_budget(sock: socket.socket) -> bool:
    try:
        sock.setsockopt(SOL_XDP, XDP_MAX_TX_SKB_BUDGET, MIN_TX_SKB_BUDGET)
    except OSError as error:
        # xsk_setsockopt: the option is known, but this socket has no TX ring
        return error.errno == errno.EACCES
    return True


def _netdev_family() -> Finding:
    if xdp_features(_LOOPBACK_IFINDEX) is None:
        return Finding("ok", HOST, "netdev family: none before Linux 6.3, features not known")
    return Finding("ok", HOST, "netdev family: the kernel tells the XDP features of drivers")


def _memlock() -> Finding:
    if _effective_capabilities() >> _CAP_IPC_LOCK & 1:
        return Finding("ok", HOST, "memlock: no limit, by CAP_IPC_LOCK")
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY:
        return Finding("ok", HOST, "memlock: no limit")
    figures = f"memlock: {limit >> 10} KiB, a UMEM takes {DEFAULT_UMEM_BYTES >> 10} KiB"
    if limit < DEFAULT_UMEM_BYTES:
        # ENOBUFS of xdp_umem_account_pages, which counts all processes of the user
        return Finding("error", HOST, figures, "sudo prlimit --pid $$ --memlock=unlimited")
    return Finding("ok", HOST, figures)


def _bpffs() -> Finding:
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    if any(mount[1:3] == ["/sys/fs/bpf", "bpf"] for mount in mounts):
        return Finding("ok", HOST, "bpffs is mounted on /sys/fs/bpf")
    remedy = "mount -t bpf bpf /sys/fs/bpf"
    return Finding("warning", HOST, "bpffs is not mounted: --chain cannot work", remedy)


def _jit() -> Iterator[Finding]:
    try:
        # Only the initial network namespace shows the setting.
        setting = int(Path("/proc/sys/net/core/bpf_jit_enable").read_text())
    except (OSError, ValueError):
        return
    if setting:
        yield Finding("ok", HOST, "BPF JIT is on")
    else:
        remedy = "sysctl -w net.core.bpf_jit_enable=1"
        yield Finding("warning", HOST, "BPF JIT is off: programs are interpreted", remedy)


def _btf() -> Finding:
    if Path("/sys/kernel/btf/vmlinux").exists():
        return Finding("ok", HOST, "BTF of the kernel is there")
    return Finding("warning", HOST, "the kernel has no BTF: --chain cannot work")


# A link


@dataclass(frozen=True, slots=True)
class _Peer:
    """Other end of a veth, and how a shell reaches it."""

    link: Link
    offloads: dict[str, bool]
    prefix: str

    def command(self, text: str) -> str:
        return f"{self.prefix}{text}"


def _find_peer(link: Link) -> _Peer | None:
    found = find_peer(link)
    if found is None:
        return None
    netns, peer = found
    with in_netns(netns):
        offloads = features(peer.ifname)
    if netns is None:
        return _Peer(peer, offloads, "")
    if netns == INITIAL_NETNS:
        return _Peer(peer, offloads, f"nsenter --net={INITIAL_NETNS} ")
    return _Peer(peer, offloads, f"ip netns exec {shlex.quote(netns)} ")


def _state(link: Link, peer: _Peer | None) -> Finding:
    driver = f"driver {link.driver}" if link.driver else "driver unknown"
    if not link.is_up:
        remedy = f"ip link set dev {link.ifname} up"
        return Finding("error", link.ifname, f"down; {driver}", remedy)
    if link.has_carrier:
        return Finding("ok", link.ifname, f"up, with carrier; {driver}")
    remedy = ""
    if peer is not None and not peer.link.is_up:
        remedy = peer.command(f"ip link set dev {peer.link.ifname} up")
    return Finding("error", link.ifname, f"up, but without carrier; {driver}", remedy)


def _xdp(link: Link, xdp: XdpFeatures | None, peer: _Peer | None) -> Iterator[Finding]:
    name = link.ifname
    if xdp is None:
        yield Finding("ok", name, "XDP features are not known: the kernel is older than 6.3")
        return
    if not xdp.basic:
        yield Finding("warning", name, "no native XDP: programs run in skb mode, slower")
        return
    yield Finding("ok", name, "native XDP")
    if xdp.redirect:
        yield Finding("ok", name, "redirect out of the program")
    else:
        yield Finding("warning", name, "no redirect: AF_XDP needs --mode skb")
    yield _ndo_xmit(link, xdp, peer)
    yield Finding("ok", name, "zero-copy" if xdp.zero_copy else "no zero-copy: copy mode only")
    if xdp.rx_sg:
        segments = f", up to {xdp.zc_max_segs} frames in zero-copy" if xdp.zero_copy else ""
        yield Finding("ok", name, f"packets may span several frames{segments}")
    else:
        yield Finding("ok", name, "a packet must fit one frame")
    received = ", ".join(sorted(xdp.rx_metadata)) or "none"
    yield Finding("ok", name, f"metadata of received packets: {received}")
    if xdp.zero_copy:
        asked = ", ".join(sorted(xdp.tx_metadata)) or "none"
        yield Finding("ok", name, f"metadata of packets sent in zero-copy: {asked}")


def _ndo_xmit(link: Link, xdp: XdpFeatures, peer: _Peer | None) -> Finding:
    if xdp.ndo_xmit:
        return Finding("ok", link.ifname, "ndo-xmit: other links may redirect into this one")
    lost = "no ndo-xmit: native redirect into this link is dropped"
    if peer is None:
        until = " until its peer has GRO or a program" if link.kind == "veth" else ""
        return Finding("warning", link.ifname, f"{lost}{until or ' until it has a program'}")
    # veth looks at the peer's GRO when this link comes up, and when GRO changes on a peer
    # that is up (veth_open, veth_set_features).
    target = peer.link.ifname
    steps = [] if peer.link.is_up else [f"ip link set dev {target} up"]
    if peer.offloads.get("rx-gro"):
        steps.append(f"ethtool -K {target} gro off")
    steps.append(f"ethtool -K {target} gro on")
    remedy = " && ".join(peer.command(step) for step in steps)
    return Finding("warning", link.ifname, f"{lost}; its peer {target} is not ready", remedy)


def _queues(link: Link) -> Finding:
    rx, tx = link.rx_queue_count, link.tx_queue_count
    figures = f"queues: {rx} rx, {tx} tx"
    if rx > tx:
        # xsk_generic_xmit: a queue id beyond the TX queues sends nothing, without an error
        remedy = f"ethtool -L {link.ifname} rx {tx}"
        lost = f"what arrives above queue {tx - 1} cannot be sent"
        return Finding("warning", link.ifname, f"{figures}; {lost}", remedy)
    return Finding("ok", link.ifname, figures)


def _mtu(link: Link, room: int, xdp: XdpFeatures | None) -> Finding:
    needed = link.mtu + ETHERNET_HEADER_BYTES + VLAN_TAG_BYTES
    figures = f"MTU {link.mtu}: a packet of {needed} bytes, a frame has room for {room}"
    largest = room - ETHERNET_HEADER_BYTES - VLAN_TAG_BYTES
    if needed > room:
        frames = -(-needed // room)
        if link.mtu > ETHERNET_MTU and xdp and xdp.rx_sg and frames <= COPY_MODE_FRAGMENTS:
            return _multi_buffer(link, f"{figures}; it takes {frames}", frames, xdp)
        return Finding("error", link.ifname, figures, _set_mtu(link, largest))
    used = room_in_zero_copy(link.driver, room)
    fitting = room_in_zero_copy("", room) - _ZERO_COPY_PAD_BYTES
    is_zero_copy = xdp is not None and xdp.zero_copy and xdp.zc_max_segs == 1
    if is_zero_copy and needed > used:
        what = f"{figures}, of which {link.driver} uses {used} in zero-copy: use --frame-size 4096"
        default = "as forward and the tools do if no size is given"
        return Finding("warning", link.ifname, f"{what}, {default}, or --bind copy")
    if is_zero_copy and link.mtu > fitting:
        what = f"{figures}; zero-copy needs an MTU of at most {fitting}, else it is copy mode"
        return Finding("warning", link.ifname, what, _set_mtu(link, fitting))
    return Finding("ok", link.ifname, figures)


def _multi_buffer(link: Link, figures: str, frames: int, xdp: XdpFeatures) -> Finding:
    if xdp.zero_copy and frames > xdp.zc_max_segs:
        what = f"{figures}, zero-copy sends {xdp.zc_max_segs} at most, else it is copy mode"
        return Finding("warning", link.ifname, what)
    return Finding("ok", link.ifname, f"{figures} (multi-buffer)")


def _set_mtu(link: Link, mtu: int) -> str:
    return f"ip link set dev {link.ifname} mtu {mtu}" if mtu > 0 else ""


def _offloads(link: Link, offloads: dict[str, bool], xdp: XdpFeatures | None) -> Iterator[Finding]:
    name = link.ifname
    is_native = xdp is None or xdp.basic
    if offloads.get("rx-lro"):
        lost = "LRO is on: packets arrive merged, drivers refuse native XDP"
        yield Finding("warning", name, lost, f"ethtool -K {name} lro off")
    else:
        yield Finding("ok", name, "LRO is off")
    if offloads.get("rx-gro-hw"):
        lost = "the NIC does GRO: packets arrive merged, drivers refuse native XDP"
        yield Finding("warning", name, lost, f"ethtool -K {name} rx-gro-hw off")
    if offloads.get("rx-gro") and not is_native:
        lost = "GRO is on: in skb mode packets arrive merged"
        yield Finding("warning", name, lost, f"ethtool -K {name} gro off")
    elif offloads.get("rx-gro"):
        yield Finding("ok", name, "GRO is on: native XDP comes before it")
    else:
        yield Finding("ok", name, "GRO is off")
    # veth strips nothing: the tag is where the sender's offload left it, see _veth.
    if offloads.get("rx-vlan-hw-parse") and link.kind != "veth":
        lost = "VLAN stripping is on: tags are lost before the program"
        yield Finding("warning", name, lost, f"ethtool -K {name} rxvlan off")
    else:
        yield Finding("ok", name, "VLAN tags stay in the packet")


def _promiscuity(link: Link) -> Finding:
    if link.is_promiscuous:
        return Finding("ok", link.ifname, "promiscuous")
    return Finding("ok", link.ifname, "not promiscuous; forward makes it so while it runs")


def _program(link: Link) -> Finding:
    attached = describe_attached(link.ifindex)
    if not attached.program_id:
        return Finding("ok", link.ifname, "no XDP program attached")
    remedy = f"ip link set dev {link.ifname} xdp off"
    if attached.is_ours:
        remedy = "" if attached.pids else f"python -m l2fwd unload {link.ifname}"
    return Finding("warning", link.ifname, f"{attached} is attached", remedy)


def _veth(link: Link, peer: _Peer | None) -> Iterator[Finding]:
    if link.kind != "veth":
        return
    if peer is None:
        what = "veth peer is in a namespace that cannot be looked into; check it there"
        yield Finding("warning", link.ifname, what)
        return
    name, rx = link.ifname, link.rx_queue_count
    target = peer.link.ifname
    figures = f"veth peer {target}: {peer.link.tx_queue_count} tx queues, {rx} rx queues here"
    if peer.link.tx_queue_count > rx:
        remedy = peer.command(f"ethtool -L {target} tx {rx}")
        # ENOSPC of veth_xdp_set
        yield Finding("warning", name, f"{figures}: native XDP is refused", remedy)
    else:
        yield Finding("ok", name, figures)
    yield _peer_offloads(name, peer)


def _peer_offloads(name: str, peer: _Peer) -> Finding:
    target = peer.link.ifname
    # feature -> its name to ethtool -K, and what a forwarded frame suffers
    harmful = {
        "tx-checksumming": ("tx", "checksums not filled in"),
        "tcp-segmentation-offload": ("tso", "segments larger than the MTU"),
        "tx-vlan-offload": ("txvlan", "VLAN tags outside the packet"),
    }
    active = [harm for feature, harm in harmful.items() if peer.offloads.get(feature)]
    if not active:
        return Finding("ok", name, f"veth peer {target} sends packets as they go on a wire")
    effects = ", ".join(effect for _, effect in active)
    switches = " ".join(f"{switch} off" for switch, _ in active)
    remedy = peer.command(f"ethtool -K {target} {switches}")
    return Finding("warning", name, f"veth peer {target} sends {effects}", remedy)
