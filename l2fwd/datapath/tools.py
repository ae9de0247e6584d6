"""Jobs that forward nothing: every queue of every link by itself."""

from collections.abc import Callable
from typing import Any

from l2fwd import bpf
from l2fwd._worker import Job
from l2fwd.config import ToolConfig
from l2fwd.datapath import Event, Notify
from l2fwd.datapath.queue_worker import QueueWorker
from l2fwd.datapath.socket_path import SocketPath, choose_cpus, choose_queues
from l2fwd.link import Link
from l2fwd.stats import Snapshot
from l2fwd.xsk import Umem

MakeJob = Callable[[QueueWorker], Job]
ReadProgram = Callable[[bpf.Program, int], dict[str, int]]


class ToolPath(SocketPath[ToolConfig]):
    """Does one job on every queue of every link of ``config``.

    Parameters
    ----------
    config : ToolConfig
    notify : callable
    verb : str
        Goes into the event ``ready``.
    make_job : callable, optional
        Returns the job of a worker; None: packets are sent back with their MACs swapped.
    make_program : callable, optional
        Opens the program for a link, in place of the one that sends all to the sockets.
    read_program : callable, optional
        Returns what a program has counted for a queue.

    Raises
    ------
    ConfigError
        If a link is unknown or down, a queue or CPU does not exist, or the MTU does not fit.
    """

    _needs_all_links = False

    def __init__(
        self,
        config: ToolConfig,
        notify: Notify,
        verb: str,
        make_job: MakeJob | None = None,
        make_program: Callable[[Link], bpf.Program] | None = None,
        read_program: ReadProgram | None = None,
    ) -> None:
        self._verb = verb
        self._make_job = make_job
        self._make_own_program = make_program
        self._read_program = read_program
        super().__init__(config, notify)

    def _make_workers(self) -> list[QueueWorker]:
        places = [
            (side, queue) for side in self.sides for queue in choose_queues(self.config, (side,))
        ]
        cpus = choose_cpus(self.config, len(places))
        return [
            QueueWorker((side,), queue, cpu, self._worker_options)
            for (side, queue), cpu in zip(places, cpus, strict=True)
        ]

    def _make_program(self, found: Link) -> bpf.Program:
        make = self._make_own_program or super()._make_program
        return make(found)

    def _worker_options(self, of: QueueWorker, umem: Umem) -> dict[str, Any]:
        return {"swap_mac": True} if self._make_job is None else {"job": self._make_job(of)}

    def start(self, is_stopping: Callable[[], bool] = lambda: False) -> Event:
        return {"verb": self._verb, **super().start(is_stopping)}

    def _sample_now(self) -> Snapshot:
        snapshot = super()._sample_now()
        programs = {side.name: side.program for side in self.sides}
        for port in snapshot.ports:
            program = programs[port.link]
            if self._read_program is not None and program is not None:
                port.counters |= self._read_program(program, port.queue)
        return snapshot
