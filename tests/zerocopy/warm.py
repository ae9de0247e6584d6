"""``python -m l2fwd`` without its start: forked from a process that has imported all of it.

Emulated, the imports take many seconds.  Nothing else differs from the real command line, which the
demo in ``test_forward.py`` runs.
"""

import multiprocessing
import os
import signal
import sys
from subprocess import TimeoutExpired

from l2fwd import link
from l2fwd.__main__ import main

IMPORTED = ["l2fwd.cli.forward", "l2fwd.cli.macswap", "l2fwd.cli.output", "l2fwd.engine"]
IMPORTED += ["l2fwd.datapath.choose", "l2fwd.lab", "l2fwd.sockets", "tests.zerocopy.warm"]
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(IMPORTED)


class WarmProcess:
    """What of ``subprocess.Popen`` the tests use; see there.

    Parameters
    ----------
    netns : str or None
        None: where the tests run.
    words : sequence of str
        The command line, from the verb on.
    """

    def __init__(self, netns, words):
        pipes = [context.Pipe(duplex=False) for _ in range(2)]
        self.stdout, self.stderr = (os.fdopen(os.dup(end.fileno())) for end, _ in pipes)
        self._child = context.Process(target=_run, args=(netns, words, *(end for _, end in pipes)))
        self._child.start()
        for ends in pipes:
            for end in ends:
                end.close()
        self.pid = self._child.pid

    @property
    def returncode(self):
        return self._child.exitcode

    def poll(self):
        return self._child.exitcode

    def wait(self, timeout=None):
        self._child.join(timeout)
        if self._child.exitcode is None:
            raise TimeoutExpired("l2fwd", timeout)
        return self._child.exitcode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def _run(netns, words, *ends):
    """Run one command line as the only thing that this process does."""
    for fd, end in enumerate(ends, 1):
        os.dup2(end.fileno(), fd)
        end.close()
    with link.in_netns(netns):
        sys.exit(main(words))
