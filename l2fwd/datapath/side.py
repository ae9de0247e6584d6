"""One link of a job: its program, how that is attached, and what it needs to receive."""

import contextlib
import errno
import socket
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from typing import Final, TypeVar

from l2fwd import bpf, link
from l2fwd.abi import ETHERNET_MTU
from l2fwd.config import FRAME_SIZES, AttachMode, BindMode, JobConfig
from l2fwd.datapath import Notify
from l2fwd.errors import ConfigError, KernelError, RunError
from l2fwd.netdev import xdp_features
from l2fwd.nics import DROPS_REDIRECTED_IN_ZERO_COPY
from l2fwd.stats import KERNEL_QUEUE, PortSample

_NO_JUMBO: Final = (errno.EINVAL, errno.EOPNOTSUPP, errno.ERANGE)

Config = TypeVar("Config", bound=JobConfig)
MakeProgram = Callable[[link.Link], bpf.Program]

# Counter of kern/l2fwd.h -> drop reason.
_DROPS: Final = {
    "rule_drops": "rx_rule_drops",
    "change_drops": "rx_change_drops",
    "no_link_drops": "tx_no_link_drops",
    "mtu_drops": "tx_mtu_drops",
}


class Side:
    """A link and our program on it.

    Parameters
    ----------
    name : str
    config : JobConfig
    make_program : callable
        Opens the program for a link.

    Raises
    ------
    ConfigError
        If there is no such link, it is down, or its MTU does not fit a frame.
    """

    def __init__(self, name: str, config: JobConfig, make_program: MakeProgram) -> None:
        self.name = name
        self._make_program = make_program
        self.config = config
        self.attachment: bpf.Attachment | None = None
        self.program: bpf.Program | None = None
        self._promiscuous: socket.socket | None = None
        self._missed = 0
        self.find()

    def find(self) -> None:
        """Look the link up; it has a new ifindex when it was created again."""
        self.link = link.find_link(self.name)
        if not self.link.is_up:
            raise ConfigError(f"{self.name} is down; bring it up: ip link set {self.name} up")
        config = self.config
        is_zero_copy = config.uses_sockets and config.socket.bind_mode is BindMode.ZERO_COPY
        if is_zero_copy and config.redirects and self.link.driver in DROPS_REDIRECTED_IN_ZERO_COPY:
            raise ConfigError(
                f"{self.name}: in zero-copy {self.link.driver} drops what a program redirects "
                "into it; use --bind copy, or --data-path afxdp"
            )
        _check_frames(self.config, self.link)

    def attach(self) -> list[str]:
        """Put our program on the link, or nothing; return what the user should know."""
        config = self.config
        notes = self._clear_the_way()
        if self.program is None:
            self.program = self._make_program(self.link)
        with ExitStack() as undo:
            attachment = self._attach(self.program)
            undo.callback(attachment.detach)
            if config.strict and attachment.notes:
                raise RunError(f"--strict: {attachment.notes[0]}")
            if config.takes_all:  # the hold ends with the process
                self._promiscuous = link.hold_promiscuous(self.link.ifindex)
            undo.pop_all()
        self.attachment = attachment
        return notes + attachment.notes + self._jumbo_notes(attachment.mode)

    def _jumbo_notes(self, mode: str) -> list[str]:
        """Say if the driver drops packets in several buffers that are redirected to it."""
        if mode != "native" or self.link.mtu <= ETHERNET_MTU or not self.config.redirects:
            return []
        features = xdp_features(self.link.ifindex)
        if features is None or features.ndo_xmit_sg:
            return []
        return [
            f"{self.name}: its driver takes no redirected packet in several buffers (no "
            f"NDO_XMIT_SG): jumbo frames may be lost; use --data-path afxdp or --mode skb"
        ]

    def _attach(self, program: bpf.Program) -> bpf.Attachment:
        config = self.config
        try:
            return program.attach(self.link.ifindex, self.name, config.mode, chain=config.chain)
        except KernelError as error:
            self._refuse_jumbo(error)
            if not config.chain or error.errno != errno.EBUSY:
                raise
            found = bpf.describe_attached(self.link.ifindex)
            remedy = f"{found} was not attached through libxdp; detach it first"
            raise KernelError(errno.EBUSY, error.operation, self.name, remedy) from None

    def _refuse_jumbo(self, error: KernelError) -> None:
        """Say it in other words where the driver has no XDP for packets in several buffers."""
        number = error.errno or 0
        if self.link.mtu <= ETHERNET_MTU or number not in _NO_JUMBO:
            return
        features = xdp_features(self.link.ifindex)
        if features is None or not features.rx_sg:
            remedy = (
                f"the driver's XDP may not take MTU {self.link.mtu} (no RX_SG); lower it "
                f"(ip link set {self.name} mtu {ETHERNET_MTU}), or use --mode skb"
            )
            raise KernelError(number, error.operation, self.name, remedy) from None

    def _clear_the_way(self) -> list[str]:
        """Remove a stale program of ours; refuse to touch any other."""
        found = bpf.describe_settled(self.link.ifindex)
        if not found.program_id:
            return []
        if found.is_lasting:
            remedy = f"l2fwd unload {self.name} ends it" if found.pin else bpf.PIN_OUT_OF_SIGHT
            raise KernelError(errno.EBUSY, "attach to", self.name, f"{found} is there; {remedy}")
        if found.is_ours and not found.pids:
            bpf.unload(self.link.ifindex, self.name)
            return [f"{self.name}: removed {found}, left by an engine that was killed"]
        if self.config.force and not found.is_ours:
            bpf.remove(self.link.ifindex, self.name, found)
            return [f"{self.name}: removed {found}, as --force says"]
        if self.config.chain and not found.is_ours:
            return []
        remedy = (
            "stop that engine first"
            if found.is_ours
            else f"detach it (ip link set {self.name} xdp off), remove it by --force, or share the "
            "link by forward --chain"
        )
        raise KernelError(errno.EBUSY, "attach to", self.name, f"{found} is there; {remedy}")

    def detach(self) -> None:
        if self.attachment is not None:
            self.attachment.detach()
            self.attachment = None
        if self._promiscuous is not None:
            self._promiscuous.close()
            self._promiscuous = None

    def missed(self) -> int:
        """Return how many packets the NIC had no buffer for since the link was looked up."""
        with contextlib.suppress(ConfigError, KernelError):
            now = link.find_link(self.name)
            if now.ifindex == self.link.ifindex:
                self._missed = max(0, now.rx_missed - self.link.rx_missed)
        return self._missed

    def close(self) -> None:
        self.detach()
        if self.program is not None:
            self.program.close()
            self.program = None


def _check_frames(config: JobConfig, found: link.Link) -> None:
    """Refuse frames that do not hold the packets of a link."""
    config.check_mtu(found.ifname, found.mtu)
    if config.uses_sockets and _may_be_zero_copy(config, found):
        config.umem.check_zero_copy(found.ifname, found.driver, found.mtu)


def _may_be_zero_copy(config: JobConfig, found: link.Link) -> bool:
    """Tell whether sockets on a link may come to have packets of one frame in zero-copy mode."""
    bind_mode = config.socket.bind_mode
    if bind_mode is BindMode.COPY or config.mode is AttachMode.SKB:
        return False
    if config.keeps_to_copy_mode:
        return False
    features = xdp_features(found.ifindex)
    if features is not None and not features.zero_copy:
        return False
    fragments = config.umem.fragments(found.mtu)
    if fragments == 1 or config.max_fragments == 1:
        return True
    # XDP_USE_SG: xp_assign_dev refuses zero-copy to a driver that takes packets of one frame.
    most = 1 if features is None else features.zc_max_segs
    return bind_mode is BindMode.ZERO_COPY and fragments > most


def with_fitting_frames(config: Config) -> Config:
    """Choose the smallest frames that do for all links, where the choice is ours.

    Such as zero-copy needs, if there are; if none do, those asked for are left to be refused.
    """
    if not config.may_enlarge_frames or not config.uses_sockets:
        return config
    links = [link.find_link(name) for name in config.links]
    bind_mode = config.socket.bind_mode
    for wanted in (BindMode.ZERO_COPY if bind_mode is BindMode.AUTO else bind_mode, bind_mode):
        for size in FRAME_SIZES:
            with contextlib.suppress(ConfigError):
                umem = replace(config.umem, frame_size=size)
                wish = replace(config, umem=umem, socket=replace(config.socket, bind_mode=wanted))
                for found in links:
                    _check_frames(wish, found)
                return replace(config, umem=umem)
    return config


def with_redirect_mode(config: Config, notify: Notify) -> Config:
    """Choose skb mode, said loudly, where a veth would drop what a program sends by it natively.

    Only veth tells beforehand: other drivers announce it once a program is attached.

    Raises
    ------
    RunError
        With ``strict``.
    """
    if config.mode is not AttachMode.AUTO:
        return config
    for name in config.links:
        found = link.find_link(name)
        features = xdp_features(found.ifindex)
        if found.driver != "veth" or features is None or features.ndo_xmit:
            continue
        note = (
            f"{name}: the veth's peer takes no packets redirected natively (GRO on there would), "
            "fell back to skb"
        )
        if config.strict:
            raise RunError(f"--strict: {note}")
        notify({"event": "warning", "message": note})
        return replace(config, mode=AttachMode.SKB)
    return config


def missed_samples(sides: Iterable[Side]) -> list[PortSample]:
    """Return a sample for each link whose NIC missed packets."""
    counts = [(side.name, side.missed()) for side in sides]
    return [
        PortSample(name, KERNEL_QUEUE, {}, {"rx_missed_drops": count}, {})
        for name, count in counts
        if count
    ]


def kernel_sample(side: Side) -> PortSample:
    """Read what the program of a link that forwards by itself has counted."""
    counters = dict.fromkeys(
        ("rx_packets", "rx_bytes", "tx_packets", "tx_completed", "tx_bytes", "passed_packets"), 0
    )
    drops: dict[str, int] = {}
    if side.program is not None:
        with contextlib.suppress(KernelError):
            found = side.program.counters()
            drops = {reason: found[name] for name, reason in _DROPS.items()}
            sent = found["redirected_packets"]
            counters |= {
                "rx_packets": sent + sum(drops.values()),
                "rx_bytes": found["redirected_bytes"],
                "tx_packets": sent,
                "tx_completed": sent,
                "tx_bytes": found["redirected_bytes"],
                "passed_packets": found["passed_packets"],
            }
    return PortSample(side.name, KERNEL_QUEUE, counters, drops, {})
