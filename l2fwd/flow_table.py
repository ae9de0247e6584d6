"""The flow table in the kernel: what was learned, which of it a rule change touches, what is old.

A flow is told by a mask: the bits that some rule looks at, so that all its packets get one
verdict.  A change of rules may ask for another mask; flows under the earlier one stay until the
last slot for masks is needed.
"""

import mmap
import struct
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import numpy as np

from l2fwd.abi import VERDICTS
from l2fwd.bpf import Program, wait_for_running_programs
from l2fwd.records import ACTION, BY_POLICY, FLOW, KEY, PROGRESS_BYTES, PROGRESS_DONE
from l2fwd.rule_table import CompiledRules

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from l2fwd._classify import Classifier

SHARED_MAPS: Final = ("flows", "flow_masks", "flow_order", "injected")
MAX_MASKS: Final = 4  # MAX_FLOW_MASKS
_NO_MASK: Final = 0xFF
_NO_RULE: Final = 0xFFFFFFFF
_RANK_BYTES: Final = 4  # at the start of struct rule_action
_MAX_CHANGES: Final = 4096  # entries looked for one by one; beyond, all flows are decided anew
_U32: Final = struct.Struct("=I")
# Always told apart: a flow is of one link.
_LINK_MASK: Final = b"\xff" * 4 + bytes(60)


def flow_mask(compiled: CompiledRules, more: bytes = bytes(64)) -> bytes:
    """Return the bits that decide what becomes of a packet: those of all masks, and ``more``."""
    union = int.from_bytes(_LINK_MASK) | int.from_bytes(more)
    for mask, _ in compiled.masks:
        union |= int.from_bytes(mask)
    return union.to_bytes(64)


class FlowTable:
    """Flows in the maps of ``kern/flows.h``.

    Parameters
    ----------
    program : Program
        A loaded one that has these maps.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._masks: dict[int, bytes] = {}  # slot -> mask, the newest last
        self._put_order()

    @property
    def fd(self) -> int:
        """Of the table, for a worker to insert into."""
        return self._program.map_fd("flows")

    def use_mask(self, mask: bytes) -> int:
        """Have new flows told by ``mask``; return its slot."""
        for slot, known in self._masks.items():
            if known == mask:
                self._masks[slot] = self._masks.pop(slot)
                break
        else:
            slot = self._free_slot()
            self._program.update("flow_masks", {_U32.pack(slot): mask})
            self._masks[slot] = mask
        self._put_order()
        return slot

    def _free_slot(self) -> int:
        free = set(range(MAX_MASKS)) - self._masks.keys()
        if free:
            return min(free)
        oldest = next(iter(self._masks))
        del self._masks[oldest]
        self._put_order()
        wait_for_running_programs()
        hashes, flows = self.items()
        self._delete(hashes[flows["key"]["mask_slot"] == oldest])
        return oldest

    def _put_order(self) -> None:
        slots = [*reversed(self._masks), *[_NO_MASK] * MAX_MASKS][:MAX_MASKS]
        self._program.update("flow_order", {_U32.pack(0): bytes(slots)})

    def items(self) -> "tuple[NDArray[np.uint64], NDArray[np.void]]":
        """Return hashes of the keys, and flows (``records.FLOW``), both of shape (n,)."""
        hashes, flows = self._program.items("flows")
        return np.frombuffer(hashes, np.uint64), np.frombuffer(flows, FLOW)

    def _delete(self, hashes: "NDArray[np.uint64]") -> None:
        if len(hashes):
            self._program.delete("flows", [hashes.tobytes()])

    def forget_idle(self, seconds: float) -> int:
        """Delete the flows without a packet for that long; return how many."""
        hashes, flows = self.items()
        horizon = time.clock_gettime_ns(time.CLOCK_MONOTONIC) - int(seconds * 1e9)
        old = hashes[flows["last_seen"].astype(np.int64) < horizon]
        self._delete(old)
        return len(old)

    def forget_links(self, present: Iterable[int]) -> int:
        """Delete the flows from or to any link but these; return how many."""
        hashes, flows = self.items()
        there = list(present)
        action = flows["action"]
        gone = ~np.isin(flows["key"]["packet"]["in_ifindex"], there)
        gone |= (action["verdict"] == VERDICTS["out"]) & ~np.isin(action["out_ifindex"], there)
        self._delete(hashes[gone])
        return int(gone.sum())

    def forget_changed(
        self, before: CompiledRules, after: CompiledRules, classifier: "Classifier"
    ) -> int:
        """Delete the flows that the new rules decide otherwise; return how many.

        Where a flow's key lacks bits that the new rules look at, it is deleted if it may be one of
        a rule that came or went.
        """
        hashes, flows = self.items()
        keys = flows["key"]
        touched = np.zeros(len(keys), bool)
        needed = int.from_bytes(flow_mask(after))
        for slot, mask in self._masks.items():
            here = np.flatnonzero(keys["mask_slot"] == slot)
            if not len(here):
                continue
            if needed & ~int.from_bytes(mask) == 0:
                touched[here] = _decided_otherwise(keys[here], flows[here], classifier)
            else:
                touched[here] = _may_be_changed(keys[here], flows[here], mask, before, after)
        self._delete(hashes[touched])
        return int(touched.sum())


def _decided_otherwise(
    keys: "NDArray[np.void]", flows: "NDArray[np.void]", classifier: "Classifier"
) -> "NDArray[np.bool_]":
    ranks = np.empty(len(keys), np.uint32)
    packets = np.ascontiguousarray(keys["packet"]).view(np.uint8).reshape(-1, KEY.itemsize)
    classifier.classify(packets, ranks)
    actions = np.frombuffer(classifier.actions(), ACTION)
    by_rank = np.zeros(int(actions["rank"].max(initial=0)) + 2, ACTION)
    by_rank[actions["rank"]] = actions
    by_rank[-1] = np.frombuffer(classifier.miss(), ACTION)[0]
    now = by_rank[np.minimum(ranks, len(by_rank) - 1)]
    was = flows["action"]
    by_policy = was["flags"] & BY_POLICY != 0
    same = was["rule"] == now["rule"]
    same &= np.where(by_policy, now["verdict"] == VERDICTS["user"], True)
    for name in ("out_ifindex", "verdict", "changes", "vlan"):
        same &= by_policy | (was[name] == now[name])
    for name in ("dst_mac", "src_mac"):
        same &= by_policy | (was[name] == now[name]).all(1)
    touched: NDArray[np.bool_] = ~same
    return touched


def _may_be_changed(
    keys: "NDArray[np.void]",
    flows: "NDArray[np.void]",
    mask: bytes,
    before: CompiledRules,
    after: CompiledRules,
) -> "NDArray[np.bool_]":
    """Tell which flows a new rule may take, one that ranks above their own.

    What went does not matter: the key of a flow has all that the rules before looked at, and its
    own rule was the first of them that took it.
    """
    known_before = _by_match(before)
    added = [
        (np.frombuffer(match[0], np.uint64), np.frombuffer(match[1], np.uint64), action)
        for match, action in _by_match(after).items()
        if known_before.get(match, b"")[_RANK_BYTES:] != action[_RANK_BYTES:]
    ]
    if len(added) > _MAX_CHANGES or not _keep_their_order(before, after):
        return np.ones(len(keys), bool)
    own = _ranks(flows, after)
    packets = np.ascontiguousarray(keys["packet"]).view(np.uint64).reshape(-1, 8)
    known = np.frombuffer(mask, np.uint64)
    touched = own < 0
    for asked, wanted, action in added:
        rank = int.from_bytes(action[:_RANK_BYTES], sys.byteorder)
        fits = (((packets ^ wanted) & asked & known) == 0).all(1)
        touched |= fits & (rank < own)
    return touched


def _keep_their_order(before: CompiledRules, after: CompiledRules) -> bool:
    """Tell whether the rules that stay rank as they did; two of one priority may be exchanged."""
    ids_before, ids_after = (
        list(dict.fromkeys(np.frombuffer(b"".join(each.entries.values()), ACTION)["rule"].tolist()))
        for each in (before, after)
    )
    staying = set(ids_before) & set(ids_after)
    return [i for i in ids_before if i in staying] == [i for i in ids_after if i in staying]


def _by_match(compiled: CompiledRules) -> dict[tuple[bytes, bytes], bytes]:
    """Return actions by mask and masked key; any change shifts the ranks they begin with."""
    return {
        (compiled.masks[place][0], key): action for (place, key), action in compiled.entries.items()
    }


def _ranks(flows: "NDArray[np.void]", compiled: CompiledRules) -> "NDArray[np.int64]":
    """Return the rank of each flow's rule; -1 if it is gone; last for the miss policy."""
    actions = np.frombuffer(b"".join(compiled.entries.values()), ACTION)
    ranks = {
        int(rule): int(rank) for rank, rule in zip(actions["rank"], actions["rule"], strict=True)
    }
    ranks[_NO_RULE] = 1 << 32
    return np.array([ranks.get(rule, -1) for rule in flows["action"]["rule"].tolist()], np.int64)


class Progress:
    """Map ``progress`` of one link in our memory: how far each queue's worker has come."""

    def __init__(self, program: Program, queue_count: int) -> None:
        size = -(-queue_count * PROGRESS_BYTES // mmap.PAGESIZE) * mmap.PAGESIZE
        # The map is freed with its last user, and this is one: gone with the last reference.
        self._memory = np.frombuffer(mmap.mmap(program.map_fd("progress"), size), np.uint8)

    def address(self, queue_id: int) -> int:
        """Return where the worker of a queue writes, a uint64."""
        return int(self._memory.ctypes.data) + queue_id * PROGRESS_BYTES + PROGRESS_DONE
