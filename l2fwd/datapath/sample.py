"""The job ``sample``: every n-th packet of a queue to the host stack, the others to its socket."""

import struct
from contextlib import ExitStack
from pathlib import Path

from l2fwd import bpf
from l2fwd._jobs import Drop
from l2fwd._worker import Job
from l2fwd.abi import SAMPLE_COUNTERS
from l2fwd.datapath import Notify
from l2fwd.datapath.echo import answer_job
from l2fwd.datapath.queue_worker import QueueWorker
from l2fwd.datapath.tools import ToolPath
from l2fwd.errors import ConfigError
from l2fwd.link import Link
from l2fwd.tool_config import SampleConfig


def make_sample_path(config: SampleConfig, notify: Notify) -> ToolPath:
    """Return the data path of ``config``; ``notify`` gets one dict per event.

    Raises
    ------
    ConfigError
        If a link, a queue or a CPU does not fit, or there is no such program.
    """

    def make_job(worker: QueueWorker) -> Job:
        return answer_job(worker, any_address=True) if config.answer else Drop()

    def make_program(found: Link) -> bpf.Program:
        return sample_program(config, found)

    if config.program:
        open_program(config.program).close()
        return ToolPath(
            config, notify, "sample", make_job, lambda found: open_program(config.program)
        )
    return ToolPath(config, notify, "sample", make_job, make_program, read_counters)


def open_program(where: str) -> bpf.Program:
    """Open a user's own object, ``FILE`` or ``FILE:PROGRAM``.

    Raises
    ------
    ConfigError
    KernelError
    """
    file, _, name = where.partition(":")
    if not Path(file).is_file():
        raise ConfigError(f"program {file}: no such file")
    return bpf.Program.from_file(file, name)


def sample_program(config: SampleConfig, found: Link) -> bpf.Program:
    """Load the built-in program for a link."""
    queues = max(found.rx_queue_count, 1)
    with ExitStack() as undo:
        sizes = dict.fromkeys(("sockets", "queue_counters", "seen"), queues)
        program = bpf.Program("sample", sizes)
        undo.callback(program.close)
        program.load()
        program.update("every", {bytes(4): struct.pack("=I", config.every)})
        undo.pop_all()
    return program


def read_counters(program: bpf.Program, queue: int) -> dict[str, int]:
    """Return what the program has done with the packets of a queue, over all CPUs."""
    values = program.sums("queue_counters", queue, len(SAMPLE_COUNTERS))
    return dict(zip(SAMPLE_COUNTERS, values, strict=True))
