"""The flows that a running engine has learned, as rules that a user can read."""

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from l2fwd.abi import CHANGES, VERDICTS
from l2fwd.bpf import attached_items
from l2fwd.explain import shown
from l2fwd.records import BY_POLICY, FLOW
from l2fwd.rule_words import mac_word

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SETTLED: Final = 2**64 - 1  # FLOW_SETTLED
_VERDICTS: Final = {number: name for name, number in VERDICTS.items()}
# Word of a rule -> where its bits are in a key.
_BITS: Final = {
    "src_mac": (10, 16),
    "dst_mac": (4, 10),
    "ethertype": (16, 18),
    "vlan": (18, 22),
    "proto": (22, 23),
    "src": (32, 48),
    "dst": (48, 64),
    "sport": (24, 26),
    "dport": (26, 28),
}


@dataclass(frozen=True, slots=True)
class FlowLine:
    """One learned flow.

    Attributes
    ----------
    queue : int
        RX queue of its packets.
    match, action : str
        In the words of a rule.
    by : str
        ``rule`` or ``policy``: who decided.
    packets, bytes : int
        Forwarded, dropped or passed by the kernel.
    age : float
        Seconds since the last packet.
    is_settled : bool
        Whether the kernel has taken over; until then its packets go through user space.
    """

    queue: int
    match: str
    action: str
    by: str
    packets: int
    bytes: int
    age: float
    is_settled: bool


def list_flows(ifindex: int, ifname: str) -> Iterator[FlowLine]:
    """Yield the flows from one link, those with most packets first.

    Raises
    ------
    RunError
        If no engine with the data path ``hybrid`` runs on the link.
    """
    _, values = attached_items(ifindex, ifname, "flows")
    _, masks = attached_items(ifindex, ifname, "flow_masks")
    flows = np.frombuffer(values, FLOW)
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    for i in np.argsort(-flows["packets"].astype(np.int64), kind="stable"):
        flow = flows[i]
        key = flow["key"]
        if key["packet"]["in_ifindex"] != ifindex:
            continue
        slot = int(key["mask_slot"])
        yield FlowLine(
            queue=int(key["queue"]),
            match=_match(ifname, key["packet"].tobytes(), masks[slot * 64 : slot * 64 + 64]),
            action=_action(flow["action"]),
            by="policy" if flow["action"]["flags"] & BY_POLICY else "rule",
            packets=int(flow["packets"]),
            bytes=int(flow["bytes"]),
            age=max(0, now - int(flow["last_seen"])) / 1e9,
            is_settled=int(flow["wait_for"]) == _SETTLED,
        )


def _match(ifname: str, key: bytes, mask: bytes) -> str:
    words = ["in", ifname]
    for field, word in shown(key).items():
        first, end = _BITS[field]
        known = int.from_bytes(mask[first:end]).bit_count()
        if not known:
            continue
        if field in ("src", "dst") and known < (32 if "." in word else 128):
            word = f"{word}/{known}"
        elif field in ("sport", "dport") and known < 16:
            word = f"{word}-{int(word) | 0xFFFF >> known}"
        words += [field, word]
    return " ".join(words)


def _action(action: "NDArray[Any]") -> str:
    kind = _VERDICTS.get(int(action["verdict"]), "?")
    if kind != "out":
        return kind
    # Not a rule's Action: what a policy answers need not be one that a rule may ask for.
    words = ["out", _ifname(int(action["out_ifindex"]))]
    for name, bit in CHANGES.items():
        if int(action["changes"]) & bit:
            words.append(name)
            if name in ("set_src_mac", "set_dst_mac"):
                words.append(mac_word(action[name.removeprefix("set_")].tobytes()))
            elif name == "push_vlan":
                words.append(str(int(action["vlan"])))
    return " ".join(words)


def _ifname(ifindex: int) -> str:
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return f"link-{ifindex}"
