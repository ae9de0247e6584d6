"""Making packets on every queue of every link."""

import os

from l2fwd._generator import Generator
from l2fwd.config import ToolConfig
from l2fwd.datapath import Notify
from l2fwd.datapath.queue_worker import QueueWorker
from l2fwd.datapath.side import Side
from l2fwd.datapath.tools import ToolPath
from l2fwd.traffic import MAX_STREAM, Template, Traffic
from l2fwd.words import parse_any_mac


class GeneratorPath(ToolPath):
    """Sends ``traffic``, its count and rate shared out evenly among the workers.

    A worker whose port died goes on where it was once that is open again.

    Parameters
    ----------
    config : ToolConfig
        With ``sends_only``.
    traffic : Traffic
    notify : callable
    stream : int, optional
        What the first worker's numbers are told by, the others following; by default chosen by
        chance, so that a receiver does not take two runs for one.

    Raises
    ------
    ConfigError
        As ``ToolPath``, or if a link or a frame does not take the packets.
    """

    def __init__(
        self, config: ToolConfig, traffic: Traffic, notify: Notify, stream: int | None = None
    ) -> None:
        super().__init__(config, notify, "txonly", self._job_of)
        self.traffic = traffic
        for side in self.sides:
            self._check_link(side)
        self._stream = int.from_bytes(os.urandom(2), "big") if stream is None else stream
        self._jobs: dict[tuple[str, int], Generator] = {}

    def _job_of(self, worker: QueueWorker) -> Generator:
        place = worker.sides[0].name, worker.queue_id
        job = self._jobs.get(place)
        index = self.workers.index(worker)
        template = self._template(worker, index)
        if job is None:
            job = self._jobs[place] = self._make_generator(template, index)
        else:  # its link was made again, maybe with another MAC and MTU
            self._check_link(worker.sides[0])
            job.use(template)
        return job

    def _check_link(self, side: Side) -> None:
        self.traffic.check_link(side.name, side.link.mtu, self.config.umem.frame_size)

    def _template(self, worker: QueueWorker, index: int) -> Template:
        link_mac = parse_any_mac(worker.sides[0].link.address, "address of the link")
        return self.traffic.template(link_mac, (self._stream + index) & MAX_STREAM)

    def _make_generator(self, template: Template, index: int) -> Generator:
        traffic, workers = self.traffic, len(self.workers)
        per_step, step_ns = 1, 0.0
        if traffic.rate is not None:
            step_ns = workers * 1e9 / traffic.rate
        elif traffic.cycle_us is not None:
            per_step, step_ns = self.config.batch_size, traffic.cycle_us * 1e3
        return Generator(
            template,
            payload=traffic.payload,
            first_source=traffic.first_source,
            sources=traffic.sources,
            first_port=traffic.src_port,
            ports=traffic.ports,
            count=traffic.share(index, workers),
            step_ns=step_ns,
            per_step=per_step,
        )
