"""The program of ``hybrid``, run on one frame: before its flow is learned, and after."""

import struct

from l2fwd._bpf import run_packet
from l2fwd._classify import Classifier
from l2fwd.bpf import Program
from l2fwd.flow_table import FlowTable, flow_mask
from l2fwd.records import FLOW_KEY
from l2fwd.rule_layout import flow_place
from l2fwd.rule_maps import RuleMaps, map_sizes

SETTLED = b"\xff" * 8  # FLOW_SETTLED
VERDICTS = {1: "drop", 2: "pass", 4: "out"}  # enum xdp_action


class Learned:
    """A loaded program without sockets: what goes up to a worker is passed instead.

    Parameters
    ----------
    ifindexes : dict of str to int
        Of the links that rules name.
    """

    def __init__(self, ifindexes):
        self._ifindexes = ifindexes
        self._program = Program("hybrid", map_sizes(64) | {"flows": 1 << 14})
        self._program.load()
        links = [ifindex.to_bytes(4, "little") for ifindex in ifindexes.values()]
        self._program.update("links", dict(zip(links, links, strict=True)))
        self._maps = RuleMaps(self._program, 1024)
        self._flows = FlowTable(self._program)
        self._known = set()

    def close(self):
        self._program.close()

    def apply(self, rules, miss):
        """Put rules in force, and forget what was learned."""
        compiled = self._maps.apply(rules, self._ifindexes, miss)
        self._program.delete("flows", map(flow_place, self._known))
        self._known.clear()
        mask = flow_mask(compiled)
        self._mask, self._slot = int.from_bytes(mask), self._flows.use_mask(mask)
        self._classifier = Classifier(compiled.masks, compiled.entries, miss)
        self._miss = self._classifier.miss()
        self._actions = {action[:4]: action for action in compiled.entries.values()}

    def before(self, frame, ifindex):
        """Return verdict and frame where its flow is not learned; None if it is."""
        if self._key(frame, ifindex) in self._known:
            return None
        verdict, became = run_packet(self._program.fd, frame, ifindex)
        return VERDICTS[verdict], became[-len(frame) :]  # it may have a number in front

    def after(self, frame, ifindex):
        """Return verdict and frame once the first packet of its flow is learned."""
        key = self._key(frame, ifindex)
        if key not in self._known:
            *_, rank = self._classifier.decide(frame, ifindex)
            action = self._miss if rank is None else self._actions[struct.pack("=I", rank)]
            self._program.update("flows", {flow_place(key): key + action + bytes(24) + SETTLED})
            self._known.add(key)
        verdict, became = run_packet(self._program.fd, frame, ifindex)
        return VERDICTS[verdict], became

    def _key(self, frame, ifindex):
        masked = int.from_bytes(self._classifier.key(frame, ifindex)) & self._mask
        key = struct.pack("=HHI", 0, self._slot, 0) + masked.to_bytes(64)
        assert len(key) == FLOW_KEY.itemsize
        return key
