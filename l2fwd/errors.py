"""Errors a user can act on: operation, target, errno, remedy.

Every exception carries the exit code of the command line (README, "Exit codes").
"""

import errno
import os
from typing import ClassVar, Final

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_PERMISSION: Final = 3
EXIT_UNSUPPORTED: Final = 4


# The kernel never says ENOTSUP, which is the same number to Python.
_NAMES: Final = {**errno.errorcode, errno.EOPNOTSUPP: "EOPNOTSUPP"}


class L2fwdError(Exception):
    """Base of all errors of this package.

    Attributes
    ----------
    exit_code : int
        What ``python -m l2fwd`` exits with.
    """

    exit_code: ClassVar[int] = EXIT_FAILED


class ConfigError(L2fwdError, ValueError):
    """A setting is wrong; nothing was touched."""

    exit_code = EXIT_USAGE


class UnsupportedError(L2fwdError):
    """This kernel, driver or build cannot do what was asked."""

    exit_code = EXIT_UNSUPPORTED


class RunError(L2fwdError):
    """Forwarding failed while running."""


class KernelError(L2fwdError, OSError):
    """A system call failed.

    Attributes
    ----------
    errno : int
    operation, target : str
        What was attempted, and on what.
    remedy : str
        What the operator should do, or an empty string.
    """

    def __init__(self, number: int, operation: str, target: str, remedy: str = "") -> None:
        self.operation = operation
        self.target = target
        self.remedy = remedy
        name = _NAMES.get(number, str(number))
        message = f"{operation} {target}: {name} ({os.strerror(number)})"
        super().__init__(number, f"{message}; {remedy}" if remedy else message)

    def __str__(self) -> str:
        return str(self.args[1])

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        """Follow the errno: not permitted is 3, not supported is 4, wrong input is 2."""
        number = self.errno or 0
        if number in (errno.EPERM, errno.EACCES):
            return EXIT_PERMISSION
        if number in (errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.ENOSYS):
            return EXIT_UNSUPPORTED
        if number in (errno.ENODEV, errno.EINVAL):
            return EXIT_USAGE
        return EXIT_FAILED


_NAMESPACES: Final = "run as root, or grant CAP_SYS_ADMIN and CAP_NET_ADMIN"
_LINK_GONE: Final = "the link is gone; close the socket, open one when the link is back"
_CAPABILITIES: Final = "run as root, or grant CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF"

# (operation, errno) -> what the operator should do.  Source of each pair: the kernel
# function named beside it.
_REMEDIES: Final = {
    ("create AF_XDP socket", errno.EPERM): _CAPABILITIES,  # xsk_create
    ("create AF_XDP socket", errno.EAFNOSUPPORT): "this kernel or its seccomp filter has no "
    "AF_XDP; enable CONFIG_XDP_SOCKETS or allow address family 44",  # __sock_create
    ("register UMEM", errno.EPERM): _CAPABILITIES,  # xsk_create, by way of xsk_umem__create
    ("register UMEM", errno.EAFNOSUPPORT): "this kernel or its seccomp filter has no "
    "AF_XDP; enable CONFIG_XDP_SOCKETS or allow address family 44",  # __sock_create
    ("register UMEM", errno.EINVAL): "frame size and headroom leave no room for a packet; "
    "lower --headroom or raise --frame-size",  # xdp_umem_reg
    ("register UMEM", errno.ENOMEM): "free memory, or lower --frames",  # xdp_umem_pin_pages
    ("map memory for", errno.ENOMEM): "lower --frames or --ring-size",  # mmap_region
    ("map huge pages for", errno.ENOMEM): "the pool of 2 MiB pages is too small; raise it "
    "with sysctl vm.nr_hugepages",  # hugetlb_acct_memory
    ("bind", errno.EBUSY): "another AF_XDP socket owns this queue; stop it or choose "
    "another queue with --queues",  # xp_assign_dev
    ("bind", errno.EOPNOTSUPP): "the driver has no zero-copy support; use --bind copy or "
    "--bind auto",  # xp_assign_dev
    ("bind", errno.EINVAL): "the queue does not exist, the MTU does not fit the frame size, or "
    "a virtio device does without the DMA API (QEMU: iommu_platform=on); see l2fwd check",
    # xsk_bind, xp_assign_dev, virtnet_xsk_pool_enable
    ("bind", errno.ENODEV): "the link is gone",  # xsk_bind
    ("bind", errno.ENETDOWN): "the link is down; ip link set it up",  # xsk_bind
    ("wait for", errno.ENETDOWN): _LINK_GONE,  # xsk_notifier
    ("send on", errno.ENXIO): _LINK_GONE,  # xsk_check_common
    ("load", errno.EPERM): _CAPABILITIES,  # bpf_prog_load
    ("load", errno.EACCES): _CAPABILITIES,  # bpf_prog_load
    ("find map", errno.ENOENT): "a program for sockets has an XSKMAP of that name",
    ("open map", errno.ENOENT): "nothing is pinned there; see bpftool map pin",  # bpf_obj_get
    ("update map", errno.E2BIG): "the map has no slot for this queue; raise its "
    "max_entries",  # xsk_map_update_elem
    ("attach to", errno.EPERM): _CAPABILITIES,  # dev_xdp_attach
    ("attach to", errno.EBUSY): "another XDP program is attached; see ip link show, detach "
    "it first (ip link set LINK xdp off)",  # dev_xdp_attach
    ("attach to", errno.EEXIST): "a program is attached in the other mode; detach it "
    "first",  # dev_xdp_attach
    ("attach to", errno.EOPNOTSUPP): "the driver has no XDP in this mode; use --mode skb or "
    "--mode auto",  # dev_xdp_attach
    ("attach to", errno.EINVAL): "the driver refused; on Intel NICs turn LRO off and lower "
    "the MTU, see l2fwd check",  # ixgbe_xdp_setup
    ("attach to", errno.ENOMEM): "too many CPUs for the driver's XDP rings; lower the "
    "channel count with ethtool -L",  # ixgbe_xdp_setup
    ("attach to", errno.ERANGE): "the MTU is too large for this mode; lower it with ip link "
    "set mtu",  # veth_xdp_set
    ("attach to", errno.ENOSPC): "more TX queues at the peer than RX queues here; equal them "
    "with ethtool -L",  # veth_xdp_set
    ("make pin folder", errno.EACCES): "run as root, or name a folder where this user may "
    "make one",  # may_create
    ("mount", errno.EPERM): _NAMESPACES,  # path_mount
    ("create namespace", errno.EPERM): _NAMESPACES,  # copy_net_ns
    ("create namespace", errno.EEXIST): "remove it with ip netns del, or choose another name",
    ("create veth", errno.EPERM): _CAPABILITIES,  # rtnl_newlink
    ("set promiscuity of", errno.EPERM): _CAPABILITIES,  # packet_create
    ("set up", errno.EPERM): _CAPABILITIES,  # rtnl_setlink
}


def kernel_error(number: int, operation: str, target: str) -> KernelError:
    """Describe errno ``number`` of ``operation`` on ``target``.

    >>> import errno
    >>> print(kernel_error(errno.EBUSY, "bind", "veth0 queue 3"))  # doctest: +ELLIPSIS
    bind veth0 queue 3: EBUSY (Device or resource busy); another AF_XDP socket ...
    """
    return KernelError(number, operation, target, _REMEDIES.get((operation, number), ""))
