"""Rules, and a policy, over AF_XDP sockets: the data paths ``afxdp`` with rules, and ``hybrid``.

The program looks the rules up as well, and does by itself what needs no other link: what they
pass to the host or drop.  The worker gets the rest.  ``hybrid`` learns what it decides: later
packets of the flow are forwarded by the program.
"""

import struct
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

from l2fwd import bpf, link
from l2fwd._classify import Classifier
from l2fwd._decide import Decider
from l2fwd.config import ForwardConfig
from l2fwd.datapath import Event, Notify
from l2fwd.datapath.queue_worker import QueueWorker
from l2fwd.datapath.rulebook import Rulebook
from l2fwd.datapath.side import kernel_sample, with_redirect_mode
from l2fwd.datapath.socket_path import SocketPath
from l2fwd.errors import RunError
from l2fwd.flow_table import SHARED_MAPS, FlowTable, Progress, flow_mask
from l2fwd.policy import asker
from l2fwd.rules import Rule, RuleTable
from l2fwd.stats import Snapshot, add
from l2fwd.xsk import Umem

if TYPE_CHECKING:
    from numpy.typing import NDArray

_U32: Final = struct.Struct("=I")
_PER_QUEUE: Final = ("sockets", "progress")
_AGE_SECONDS: Final = (1.0, 30.0)  # between two looks for idle flows, at least and at most


class RuledPath(SocketPath[ForwardConfig]):
    """Forwards between the links of ``config`` and of its rules, by the rules.

    Parameters
    ----------
    config : ForwardConfig
    notify : callable
        Gets one dict per event: ``warning``, ``port_down``, ``port_up``, ``program_lost``,
        ``program_attached``.

    Raises
    ------
    ConfigError
        If a link is unknown or down, a queue or CPU does not exist, the MTU or the rules do not
        fit.
    """

    def __init__(self, config: ForwardConfig, notify: Notify) -> None:
        self._learns = config.data_path == "hybrid"
        if self._learns:
            config = with_redirect_mode(config, notify)
        self._book = Rulebook(
            config,
            "hybrid",
            sizes={"flows": config.flows.table_size if self._learns else 1},
            shared=SHARED_MAPS,
            per_queue=_PER_QUEUE,
        )
        super().__init__(config, notify)
        self._host: bpf.Program | None = None
        self._flows: FlowTable | None = None
        self._classifier: Classifier | None = None
        self._progress: dict[str, Progress] = {}
        self._counted_before: dict[Rule, tuple[int, int]] = {}  # by earlier rules of the same id
        self._lock = threading.RLock()  # apply comes from any thread
        self._forgotten = 0
        self._next_age = 0.0

    def _make_program(self, found: link.Link) -> bpf.Program:
        program = self._book.make_program(found)
        self._progress[found.ifname] = Progress(program, max(found.rx_queue_count, 1))
        return program

    def _prepare(self, undo: ExitStack) -> None:
        undo.callback(self._progress.clear)
        for side in self.sides:
            side.program = self._make_program(side.link)
        first = self._book.programs[0]
        self._host = bpf.Program("inject", shared=first, shared_maps=("injected",))
        undo.callback(self._host.close)
        self._host.load()
        self._flows = FlowTable(first)
        self._put_rules()

    def _put_rules(self) -> None:
        """Put the rules in force for links that are there, or there again."""
        assert self._flows is not None
        self._book.refresh(self.sides)
        self._swap(self._compile())
        self._flows.forget_links(self._book.ifindexes.values())

    def _swap(self, classifier: Classifier) -> None:
        self._classifier = classifier
        for each in self.workers:
            if each.worker is not None:
                each.worker.swap(classifier)

    def _compile(self) -> Classifier:
        assert self._flows is not None
        compiled, miss = self._book.compiled, self.config.miss
        if not self._learns:
            return Classifier(compiled.masks, compiled.entries, miss)
        policy = self.config.policy
        mask = flow_mask(compiled, policy.mask if policy else bytes(64))
        return Classifier(compiled.masks, compiled.entries, miss, mask, self._flows.use_mask(mask))

    def apply(self, rules: RuleTable) -> None:
        """Put other rules in force: every packet sees the old ones, or the new ones.

        Flows that the new rules decide otherwise are forgotten, the others go on.

        Raises
        ------
        ConfigError
            If a rule names a link that is none of the job's, or the rules do not fit; the old
            ones stay.
        """
        with self._lock:
            self._apply(rules)

    def _apply(self, rules: RuleTable) -> None:
        before, ids = self._book.compiled, self._book.ids()
        self._book.apply(rules)
        self._counted_before = {
            rule: self._counted_before.get(rule, (0, 0)) if rule in ids else self._worker_hits(each)
            for rule, each in self._book.ids().items()
        }
        classifier = self._compile()
        self._swap(classifier)
        if self._flows is not None and self._learns:
            # Not earlier: a worker in the old rules would learn from them.
            self._flows.forget_changed(before, self._book.compiled, classifier)

    def hits(self) -> dict[Rule, tuple[int, int]]:
        """Return packets and bytes that each rule has taken."""
        found = {}
        ids = self._book.ids()
        for rule, (packets, size) in self._book.hits().items():
            more = self._worker_hits(ids[rule])
            less = self._counted_before.get(rule, (0, 0))
            found[rule] = (packets + more[0] - less[0], size + more[1] - less[1])
        return found

    def _worker_hits(self, rule_id: int) -> tuple[int, int]:
        counts = [each.rule_hits(rule_id) for each in self.workers]
        return sum(packets for packets, _ in counts), sum(size for _, size in counts)

    def _worker_options(self, of: QueueWorker, umem: Umem) -> dict[str, Any]:
        assert self._host is not None
        self._note_modes()
        maps = [self._progress[side.name] for side in self.sides]
        of.held = tuple(maps)  # mapped for as long as the worker may write there
        progress = [each.address(of.queue_id) for each in maps]
        return {
            "decider": self._make_decider(of, umem),
            "progress": progress if self._learns else (),
            "give_back": bpf.GIVE_TO_HOST,
            "host_fd": self._host.fd,
        }

    def _note_modes(self) -> None:
        """Have programs in skb mode look for packets given back, which generic XDP sees again."""
        for side in self.sides:
            is_generic = side.attachment is not None and side.attachment.mode == "skb"
            if side.program is not None:
                side.program.update("generic", {bytes(4): _U32.pack(is_generic)})

    def _make_decider(self, of: QueueWorker, umem: Umem) -> Decider:
        assert self._flows is not None
        assert self._classifier is not None
        options: dict[str, Any] = {"rules": self._book.max_rules, "queue": of.queue_id}
        if self._learns:
            options |= {
                "insert": bpf.INSERT_FLOWS,
                "flows_fd": self._flows.fd,
                "inserts_per_second": self.config.flows.per_second,
            }
        policy = self.config.policy
        if policy is not None:
            options |= {
                "ask": asker(policy, umem.frames, self._book.ifindexes),
                "for_burst": policy.for_burst,
                "for_packet": policy.for_packet,
            }
        return Decider(self._classifier, list(self._book.ifindexes.values()), **options)

    def start(self, is_stopping: Callable[[], bool] = lambda: False) -> Event:
        """Put the rules in force, attach, bind every queue, let packets in; all or nothing."""
        ready = super().start(is_stopping)
        ready["links"] = [
            {
                "link": side.name,
                "attach_mode": side.attachment.mode if side.attachment else "none",
                **self._describe(),
            }
            for side in self.sides
        ]
        return ready

    def _describe(self) -> Event:
        """Return what ``ready`` tells of each link, beside its name and mode."""
        return {"rules": len(self._book.table)}

    def _open_again(self) -> None:
        self._note_modes()
        self._put_rules()
        super()._open_again()

    def watch(self) -> None:
        """Notice dead sockets, lost programs and vanished links; forget idle flows."""
        with self._lock:
            super().watch()
        now = time.monotonic()
        if self._learns and self._flows is not None and now >= self._next_age:
            timeout = self.config.flows.timeout
            self._next_age = now + min(max(timeout / 10, _AGE_SECONDS[0]), _AGE_SECONDS[1])
            self._forgotten += self._flows.forget_idle(timeout)

    def flows(self) -> "NDArray[Any]":
        """Return what is learned now, as ``records.FLOW``."""
        if self._flows is None:
            raise RunError("flows are learned once the data path has started")
        return self._flows.items()[1]

    def _sample_now(self) -> Snapshot:
        snapshot = super()._sample_now()
        snapshot.ports.extend(kernel_sample(side) for side in self.sides)
        if self._learns:
            counts = {"inserted": 0, "limited": 0, "failed": 0, "forgotten": self._forgotten}
            for each in self.workers:
                add(counts, {key: each.learned.get(key, 0) for key in counts})
            snapshot.flows = counts
        return snapshot
