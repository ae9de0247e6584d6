"""Receiving on every queue of every link, and checking packets of generators."""

from l2fwd._verifier import Verifier
from l2fwd.config import ToolConfig
from l2fwd.datapath import Notify
from l2fwd.datapath.queue_worker import QueueWorker
from l2fwd.datapath.tools import ToolPath
from l2fwd.stats import Snapshot
from l2fwd.verification import Seen, judge


class VerifierPath(ToolPath):
    """Receives packets, recycles their frames, and says what became of the numbered ones.

    Parameters
    ----------
    config : ToolConfig
    notify : callable

    Raises
    ------
    ConfigError
        As ``ToolPath``.
    """

    def __init__(self, config: ToolConfig, notify: Notify) -> None:
        super().__init__(config, notify, "rxdrop", self._job_of)
        self._jobs: dict[tuple[str, int], Verifier] = {}

    def _job_of(self, worker: QueueWorker) -> Verifier:
        return self._jobs.setdefault((worker.sides[0].name, worker.queue_id), Verifier())

    def _sample_now(self) -> Snapshot:
        snapshot = super()._sample_now()
        snapshot.verify = judge(Seen(**job.findings()) for job in self._jobs.values())
        return snapshot
