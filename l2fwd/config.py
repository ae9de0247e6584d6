"""Settings: frozen, validated once, units in the docstring."""

import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, TypeVar

from l2fwd.abi import (
    COPY_MODE_FRAGMENTS,
    ETHERNET_HEADER_BYTES,
    ETHERNET_MTU,
    MAX_RING_SIZE,
    MIN_TX_SKB_BUDGET,
    VLAN_TAG_BYTES,
    XDP_PACKET_HEADROOM,
)
from l2fwd.errors import ConfigError
from l2fwd.nics import room_in_zero_copy
from l2fwd.policy import Policy
from l2fwd.rules import RuleTable
from l2fwd.words import check_ifname

FRAME_SIZES: Final = (2048, 4096)
PAGE_BYTES: Final = 4096
DEFAULT_FRAME_SIZE: Final = 2048
DEFAULT_RING_SIZE: Final = 2048
DEFAULT_BATCH_SIZE: Final = 64
DATA_PATHS: Final = ("afxdp", "redirect", "hybrid")
MISS_POLICIES: Final = ("pass", "drop", "user")
DEFAULT_BUSY_POLL_BUDGET: Final = 64
DEFAULT_COALESCE_US: Final = 100  # to be woken costs as much as forwarding 3 to 8 packets
MAX_COALESCE_US: Final = 1000
MAX_BUSY_POLL_BUDGET: Final = 65535  # sk_busy_poll_budget has 16 bits
MAX_LINKS: Final = 16  # MAX_PORTS in _decide.pxd
MAX_FLOWS: Final = 1 << 24
MAX_FRAME_COUNT: Final = 1 << 24  # 64 GiB of 4096-byte frames

Choice = TypeVar("Choice", bound=Enum)


class AttachMode(Enum):
    """Where the XDP program runs."""

    AUTO = "auto"  # native; skb, said loudly, where the driver has no native XDP
    NATIVE = "native"
    SKB = "skb"
    OFFLOAD = "offload"


class BindMode(Enum):
    """How packets get from the NIC into the UMEM."""

    AUTO = "auto"  # zero-copy where the driver has it
    COPY = "copy"
    ZERO_COPY = "zero-copy"


def choose(kind: type[Choice], value: str, name: str) -> Choice:
    """Return the member of ``kind`` spelled ``value``; ``name`` is for the message."""
    try:
        return kind(value)
    except ValueError:
        allowed = ", ".join(str(member.value) for member in kind)
        raise ConfigError(f"{name} must be one of {allowed}, got {value!r}") from None


def parse_indices(text: str, name: str) -> tuple[int, ...] | None:
    """Return the indices of "all" (None), "0,2" or "1-3".

    >>> parse_indices("0,2-4", "queues")
    (0, 2, 3, 4)
    """
    if text == "all":
        return None
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part.strip())
        if not match:
            raise ConfigError(f"{name} must be 'all' or a list like 0,2-4, got {text!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ConfigError(f"{name} has the empty range {part!r}")
        found.extend(range(first, last + 1))
    if len(set(found)) != len(found):
        raise ConfigError(f"{name} names an index twice: {text!r}")
    return tuple(found)


def is_power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class UmemConfig:
    """Geometry of one UMEM.

    Attributes
    ----------
    frame_count : int
        Frames in the UMEM, at least four.
    frame_size : int
        Bytes per frame (the kernel's "chunk size"): 2048 or 4096, or any between if unaligned.
    headroom : int
        Bytes left free at the start of each frame, on top of the kernel's own
        ``XDP_PACKET_HEADROOM``.
    huge_pages : bool
        Back the UMEM with 2 MiB pages from the system's pool.
    unaligned : bool
        Frames of any size, one right behind the other (XDP_UMEM_UNALIGNED_CHUNK_FLAG).

    Raises
    ------
    ConfigError
        If no packet would fit.
    """

    frame_count: int = 4 * DEFAULT_RING_SIZE
    frame_size: int = DEFAULT_FRAME_SIZE
    headroom: int = 0
    huge_pages: bool = False
    unaligned: bool = False

    def __post_init__(self) -> None:
        if not 4 <= self.frame_count <= MAX_FRAME_COUNT:
            raise ConfigError(f"frames must be in [4, {MAX_FRAME_COUNT}], got {self.frame_count}")
        self._check_frame_size()
        if self.headroom < 0 or self.packet_room < ETHERNET_HEADER_BYTES:
            raise ConfigError(
                f"headroom must be in [0, {self.frame_size - XDP_PACKET_HEADROOM}) bytes, "
                f"got {self.headroom}"
            )

    def _check_frame_size(self) -> None:
        least, most = min(FRAME_SIZES), max(FRAME_SIZES)
        if self.frame_size in FRAME_SIZES:
            return
        if not least < self.frame_size < most:
            raise ConfigError(f"frame-size must be {least} or {most} bytes, got {self.frame_size}")
        if not self.unaligned:
            raise ConfigError(
                f"frame-size must be {least} or {most} bytes, got {self.frame_size}; "
                "sizes between need --unaligned"
            )

    @property
    def crosses_pages(self) -> bool:
        """Whether some frame lies on two pages of the usual size."""
        return PAGE_BYTES % self.frame_size != 0

    @property
    def size(self) -> int:
        """Bytes of the whole UMEM."""
        return self.frame_count * self.frame_size

    @property
    def packet_room(self) -> int:
        """Longest packet, in bytes, that one frame receives."""
        return self._room_of(self.frame_size)

    def _room_of(self, frame_size: int) -> int:
        return frame_size - XDP_PACKET_HEADROOM - self.headroom

    def fragments(self, mtu: int) -> int:
        """Return how many frames the longest packet of a link takes."""
        return -(-_longest_packet(mtu) // self.packet_room)

    def check_mtu(self, ifname: str, mtu: int, max_fragments: int = 1) -> None:
        """Refuse a link whose packets do not fit ``max_fragments`` frames.

        The kernel would drop them (``xsk_rcv_check``).
        """
        if self.fragments(mtu) <= max_fragments:
            return
        need = _longest_packet(mtu)
        rooms = {size: max_fragments * self._room_of(size) for size in FRAME_SIZES}
        wider = [size for size in FRAME_SIZES if need <= rooms[size]]
        largest = max(FRAME_SIZES)
        remedy = (
            f"use --frame-size {wider[0]}"
            if wider
            else f"lower it (ip link set {ifname} mtu {rooms[largest] - (need - mtu)}) "
            f"and use --frame-size {largest}"
        )
        frames = "a frame" if max_fragments == 1 else f"{max_fragments} frames"
        verb = "holds" if max_fragments == 1 else "hold"
        raise ConfigError(
            f"{ifname}: MTU {mtu} needs {need} bytes, {frames} of {self.frame_size} {verb} "
            f"{max_fragments * self.packet_room}; {remedy}"
        )

    def check_zero_copy(self, ifname: str, driver: str, mtu: int) -> None:
        """Refuse a link whose NIC would spoil, in zero-copy, packets that do fit a frame."""
        need = _longest_packet(mtu)
        if need <= room_in_zero_copy(driver, self.packet_room):
            return
        room = {size: room_in_zero_copy(driver, self._room_of(size)) for size in FRAME_SIZES}
        wider = [size for size in FRAME_SIZES if need <= room[size]]
        lower = max(room.values()) - (need - mtu)
        remedy = (
            f"--frame-size {wider[0]}"
            if wider
            else f"--frame-size {max(FRAME_SIZES)} with an MTU of at most {lower}"
        )
        raise ConfigError(
            f"{ifname}: in zero-copy {driver} receives {room[self.frame_size]} bytes into a frame "
            f"of {self.frame_size}, MTU {mtu} needs {need}; use {remedy}, or --bind copy"
        )


def _longest_packet(mtu: int) -> int:
    return mtu + ETHERNET_HEADER_BYTES + VLAN_TAG_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketConfig:
    """How one AF_XDP socket is made.

    Attributes
    ----------
    ring_size : int
        Slots of each of the four rings, a power of two.
    bind_mode : BindMode
    need_wakeup : bool
        Let the driver say when it wants a system call (XDP_USE_NEED_WAKEUP).
    tx_budget : int
        Descriptors one ``sendto`` may send in copy mode (XDP_MAX_TX_SKB_BUDGET); 0 leaves
        the kernel's 32.  Ignored by kernels that have no such option.
    busy_poll_budget : int
        Packets that one system call takes from the NIC, whose interrupts stand back (preferred
        busy polling); 0: interrupts as usual.
    frags : bool or None
        Let a packet take several frames (XDP_USE_SG, "multi-buffer"); None: where an MTU needs it.

    Raises
    ------
    ConfigError
        If the ring size is not a power of two in [1, 2**24], or the budget is out of range.
    """

    ring_size: int = DEFAULT_RING_SIZE
    bind_mode: BindMode = BindMode.AUTO
    need_wakeup: bool = True
    tx_budget: int = 0
    busy_poll_budget: int = 0
    frags: bool | None = None

    def __post_init__(self) -> None:
        if not is_power_of_two(self.ring_size) or self.ring_size > MAX_RING_SIZE:
            raise ConfigError(
                f"ring-size must be a power of two in [1, {MAX_RING_SIZE}], got {self.ring_size}"
            )
        if self.tx_budget and not MIN_TX_SKB_BUDGET <= self.tx_budget <= self.ring_size:
            raise ConfigError(
                f"tx_budget must be 0 or in [{MIN_TX_SKB_BUDGET}, ring-size], got {self.tx_budget}"
            )
        if not 0 <= self.busy_poll_budget <= MAX_BUSY_POLL_BUDGET:
            raise ConfigError(
                f"busy-poll-budget must be in [1, {MAX_BUSY_POLL_BUDGET}], "
                f"got {self.busy_poll_budget}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewrite:
    """What is changed in each packet.

    Attributes
    ----------
    dst_mac : bytes or None
        Six bytes, written to packets sent on the second link.
    swap_mac : bool
        Swap source and destination MAC, in both directions.
    """

    dst_mac: bytes | None = None
    swap_mac: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowConfig:
    """What the data path ``hybrid`` learns.

    Attributes
    ----------
    table_size : int
        Flows that the kernel holds; the one without traffic for longest makes room.
    timeout : float
        Seconds without a packet after which a flow is forgotten, 1 to 1,000,000.
    per_second : int
        Flows that one worker may insert; beyond that it forwards without learning.

    Raises
    ------
    ConfigError
    """

    table_size: int = 65536
    timeout: float = 300.0
    per_second: int = 50_000

    def __post_init__(self) -> None:
        if not 1 <= self.table_size <= MAX_FLOWS:
            raise ConfigError(f"flow-table-size must be in [1, {MAX_FLOWS}], got {self.table_size}")
        if not 1 <= self.timeout <= 1e6:
            raise ConfigError(f"flow-timeout must be in [1, 1000000] seconds, got {self.timeout}")
        if not 1 <= self.per_second <= 10_000_000:
            raise ConfigError(f"flow-rate must be in [1, 10000000], got {self.per_second}")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobConfig:
    """What every job over AF_XDP sockets is told.

    Attributes
    ----------
    queues : tuple of int, or None
        Queue ids, the same on all links; None: all that every link has.
    cpus : tuple of int, or None
        CPU of each worker, in the order of ``queues``; None: the scheduler decides.
    mode : AttachMode
    strict : bool
        Make it an error to obtain less than the driver offers.
    chain : bool
        Attach through libxdp's dispatcher, beside other XDP programs.
    force : bool
        Remove another program from the link, unless an engine of ours runs it.
    batch_size : int
        Packets per burst.
    busy_poll : bool
        Never sleep.
    coalesce_us : int
        While packets come close after each other, workers let them gather for so many us; 0: a
        worker is woken for each.
    umem : UmemConfig
        Of each worker.
    socket : SocketConfig
    may_enlarge_frames : bool
        Take larger frames than ``umem`` says where an MTU, or a NIC in zero-copy, needs them.
    carrier_timeout : float
        Seconds to wait for a carrier that the attaching took down.

    Raises
    ------
    ConfigError
    """

    queues: tuple[int, ...] | None = None
    cpus: tuple[int, ...] | None = None
    mode: AttachMode = AttachMode.AUTO
    strict: bool = False
    chain: bool = False
    force: bool = False
    batch_size: int = DEFAULT_BATCH_SIZE
    busy_poll: bool = False
    coalesce_us: int = DEFAULT_COALESCE_US
    umem: UmemConfig = field(default_factory=UmemConfig)
    socket: SocketConfig = field(default_factory=SocketConfig)
    may_enlarge_frames: bool = False
    carrier_timeout: float = 5.0

    def __post_init__(self) -> None:
        for name in self.links:
            check_ifname(name)
        if self.mode is AttachMode.SKB and self.socket.bind_mode is BindMode.ZERO_COPY:
            raise ConfigError("zero-copy needs a native program: use --mode native or --bind copy")
        if not 1 <= self.batch_size <= self.socket.ring_size:
            raise ConfigError(
                f"batch-size must be in [1, ring-size {self.socket.ring_size}], "
                f"got {self.batch_size}"
            )
        if not 0 <= self.coalesce_us <= MAX_COALESCE_US:
            raise ConfigError(
                f"coalesce must be in [0, {MAX_COALESCE_US}] us, got {self.coalesce_us}"
            )
        self._check_memory()

    def _check_memory(self) -> None:
        umem, socket = self.umem, self.socket
        if socket.frags and not self.takes_fragments:
            raise ConfigError("frags: this job takes packets of one frame only; leave it out")
        if umem.crosses_pages and not umem.huge_pages and socket.bind_mode is not BindMode.COPY:
            # xp_check_unaligned: a NIC cannot write over the end of a page; the frame is lost.
            raise ConfigError(
                f"frame-size {umem.frame_size}: such frames cross pages; "
                "add --huge-pages, or --bind copy"
            )

    @property
    def redirects(self) -> bool:
        """Whether programs send packets to other links by themselves."""
        return False

    @property
    def takes_fragments(self) -> bool:
        """Whether the job can do with packets in several frames."""
        return False

    @property
    def max_fragments(self) -> int:
        """Most frames of one packet; 1: it must fit one."""
        if not self.takes_fragments or self.socket.frags is False:
            return 1
        return min(COPY_MODE_FRAGMENTS, self.socket.ring_size, self.fill_target)

    def check_mtu(self, ifname: str, mtu: int) -> None:
        """Refuse a link whose packets the sockets cannot receive.

        Raises
        ------
        ConfigError
        """
        if not self.uses_sockets:
            return
        # Below, it is the headroom that leaves too little.
        is_jumbo = self.socket.frags or mtu > ETHERNET_MTU
        self.umem.check_mtu(ifname, mtu, self.max_fragments if is_jumbo else 1)

    @property
    def links(self) -> tuple[str, ...]:
        """Every link of the job."""
        raise NotImplementedError

    @property
    def receivers(self) -> int | None:
        """How many ports of a worker receive, the first ones; None: all."""
        return None

    @property
    def uses_sockets(self) -> bool:
        """Whether packets come to user space, so that frames must hold them."""
        return True

    @property
    def keeps_to_copy_mode(self) -> bool:
        """Whether sockets are bound in copy mode though zero-copy was not ruled out.

        Where programs redirect most packets: in zero-copy the kernel copies each of those into a
        page that it allocates for it (``xdp_convert_zc_to_xdp_frame``).
        """
        return self.uses_sockets and self.redirects and self.socket.bind_mode is BindMode.AUTO

    @property
    def takes_all(self) -> bool:
        """Whether the links take in what is addressed to others."""
        return True

    @property
    def fill_target(self) -> int:
        """Frames kept lent for RX on each port; the rest of the UMEM is left for TX."""
        return max(1, min(self.socket.ring_size, self.umem.frame_count // 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolConfig(JobConfig):
    """A job that every queue of every link does by itself, with a UMEM of its own.

    Attributes
    ----------
    link_names : tuple of str
    sends_only : bool
        What arrives goes to the host stack.
    whole_packets : bool
        The job can do with packets in several frames.

    Raises
    ------
    ConfigError
    """

    link_names: tuple[str, ...]
    sends_only: bool = False
    whole_packets: bool = False

    def __post_init__(self) -> None:
        JobConfig.__post_init__(self)
        twice = [name for name in self.link_names if self.link_names.count(name) > 1]
        if twice:
            raise ConfigError(f"{twice[0]} is named twice; name each link once")

    @property
    def links(self) -> tuple[str, ...]:
        return self.link_names

    @property
    def takes_fragments(self) -> bool:
        return self.whole_packets

    @property
    def receivers(self) -> int | None:
        return 0 if self.sends_only else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardConfig(JobConfig):
    """A forwarding job between two links.

    Attributes
    ----------
    in_link, out_link : str
    one_way : bool
        Forward from ``in_link`` to ``out_link`` only; what arrives on ``out_link`` goes to
        the host stack.
    rewrite : Rewrite
    rules : RuleTable
        Empty: every packet goes from each link to the other one, or to the policy where ``miss``
        is ``user``.
    miss : str
        What happens to packets that no rule takes: ``pass`` (host stack), ``drop``, or ``user``:
        the policy decides.
    data_path : str
        ``afxdp``, ``redirect`` or ``hybrid``.
    policy : Policy, optional
        Decides about packets of rules ``-> user``, and what no rule takes with ``miss`` user.
    flows : FlowConfig
        Of ``hybrid``.
    pin : str or None
        Folder to be made on a BPF file system: what is there goes on without the process.
    routed : bool
        Forward between the links by the kernel's routes, not by ``rules``.
    more_links : tuple of str
        Beside those of the pair and of the rules.

    Raises
    ------
    ConfigError
    """

    in_link: str
    out_link: str
    one_way: bool = False
    rewrite: Rewrite = field(default_factory=Rewrite)
    rules: RuleTable = field(default_factory=RuleTable)
    miss: str = "pass"
    data_path: str = "afxdp"
    policy: Policy | None = None
    flows: FlowConfig = field(default_factory=FlowConfig)
    pin: str | None = None
    routed: bool = False
    more_links: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_ifname(self.in_link)
        check_ifname(self.out_link)
        if self.in_link == self.out_link and not self.routed:
            raise ConfigError(f"in and out are the same link, {self.in_link}; name two links")
        if self.routed and (len(self.rules) or self.miss != "pass" or self.one_way or self.pin):
            raise ConfigError("a routed job has no rules, miss policy, one-way or pin of its own")
        self._check_rules()
        if self.pin is not None:
            self._check_pin(self.pin)
        JobConfig.__post_init__(self)
        if self.cpus is not None and self.queues and len(self.cpus) != len(self.queues):
            raise ConfigError(
                f"cpus names {len(self.cpus)} CPUs for {len(self.queues)} queues; name one each"
            )

    def _check_pin(self, pin: str) -> None:
        if self.data_path != "redirect":
            raise ConfigError("pin needs --data-path redirect: sockets end with their process")
        if self.mode is AttachMode.OFFLOAD:
            raise ConfigError("pin needs a program in the kernel: use --mode native or skb")
        if not pin.startswith("/"):
            raise ConfigError(f"pin must be an absolute path like /sys/fs/bpf/l2fwd, got {pin!r}")

    def _check_rules(self) -> None:
        if self.data_path not in DATA_PATHS:
            raise ConfigError(
                f"data-path must be {', '.join(DATA_PATHS[:-1])} or {DATA_PATHS[-1]}, "
                f"got {self.data_path!r}"
            )
        if self.miss not in MISS_POLICIES:
            raise ConfigError(f"miss must be {', '.join(MISS_POLICIES)}, got {self.miss!r}")
        if self.uses_rules and self.chain:
            raise ConfigError("chain forwards all of a pair: it goes with afxdp without rules only")
        if len(self.rules) and self.rewrite != Rewrite():
            raise ConfigError("with rules, rewriting is theirs: use set_dst_mac or swap_mac there")
        if self.miss == "user" and self.rewrite != Rewrite():
            raise ConfigError("with miss user, rewriting is the policy's: see Batch.out")
        if len(self.rules) and self.one_way:
            raise ConfigError(f"one-way is for all of a pair: begin rules with 'in {self.in_link}'")
        if self.data_path != "redirect" and self.umem.frame_count < 2 * len(self.links):
            raise ConfigError(
                f"frames must be at least {2 * len(self.links)} for {len(self.links)} links, "
                f"got {self.umem.frame_count}"
            )
        if len(self.links) > MAX_LINKS:
            raise ConfigError(f"the job has {len(self.links)} links, {MAX_LINKS} are possible")
        self.check_policy(self.rules)

    def check_policy(self, rules: RuleTable) -> None:
        """Refuse ``user`` where nobody would decide.

        Raises
        ------
        ConfigError
        """
        asked = next((f"'{rule}'" for rule in rules if rule.action.kind == "user"), "")
        asked = asked or ("miss user" if self.miss == "user" else "")
        if asked and self.data_path == "redirect":
            raise ConfigError(f"{asked}: user needs a policy to decide; redirect has none")
        if asked and self.policy is None:
            raise ConfigError(f"{asked}: user needs a policy to decide; name one with --policy")

    @property
    def uses_rules(self) -> bool:
        """Whether packets are told apart, or all of a pair are forwarded alike."""
        is_plain = self.data_path == "afxdp" and not self.routed
        return not is_plain or len(self.rules) > 0 or self.miss != "pass"

    @property
    def takes_all(self) -> bool:
        return not self.routed

    @property
    def links(self) -> tuple[str, ...]:
        """Every link of the job, in and out first."""
        named = (self.in_link, self.out_link, *self.more_links, *self.rules.links())
        return tuple(dict.fromkeys(named))

    @property
    def receivers(self) -> int | None:
        return 1 if self.one_way else None

    @property
    def redirects(self) -> bool:
        return self.data_path != "afxdp"

    @property
    def takes_fragments(self) -> bool:
        return True

    @property
    def uses_sockets(self) -> bool:
        return self.data_path != "redirect"

    @property
    def fill_target(self) -> int:
        return max(1, min(self.socket.ring_size, self.umem.frame_count // (2 * len(self.links))))
