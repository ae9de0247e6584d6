"""``redirect`` in this process, its rules swapped all the time, to no visible effect."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final

from bench.bed import BenchBed, Running
from l2fwd import link
from l2fwd.config import ForwardConfig
from l2fwd.datapath.redirect import RedirectPath
from l2fwd.engine import summarize
from l2fwd.rules import RuleTable, parse_rules

_PAUSE_SECONDS: Final = 0.2
_PAIR: Final = "in {entry} -> out {exit}\nin {exit} -> out {entry}"
_MORE: Final = "in {entry} proto udp dport 77 -> drop"  # nobody sends that


@dataclass(slots=True)
class _Swapper:
    """Puts two versions of rules in force by turns, in a thread."""

    path: RedirectPath
    netns: str
    tables: tuple[RuleTable, RuleTable]
    swaps: int = 0
    error: Exception | None = None
    is_over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        try:
            with link.in_netns(self.netns):
                while not self.is_over.wait(_PAUSE_SECONDS):
                    self.path.apply(self.tables[self.swaps % 2])
                    self.path.watch()
                    self.swaps += 1
        except Exception as error:
            self.error = error


@contextmanager
def swapping_redirect(bed: BenchBed) -> Iterator[Running]:
    """Forward in the kernel; ``swaps`` of the summary tells how often rules were swapped."""
    names = {"entry": bed.entry.ifname, "exit": bed.exit.ifname}
    pair, more = (parse_rules(text.format(**names)) for text in (_PAIR, f"{_PAIR}\n{_MORE}"))
    config = ForwardConfig(
        in_link=bed.entry.ifname, out_link=bed.exit.ifname, data_path="redirect", rules=more
    )
    running = Running()
    with link.in_netns(bed.entry.netns):
        path = RedirectPath(config, lambda event: None)
        path.start()
    first = path.sample()
    swapper = _Swapper(path, bed.entry.netns, (pair, more))
    thread = threading.Thread(target=swapper.run)
    thread.start()
    try:
        yield running
    finally:
        swapper.is_over.set()
        thread.join()
        path.stop()
    last = replace(path.sample(), time=time.monotonic())
    running.summary.update(summarize(first, last), swaps=swapper.swaps)
    if swapper.error:
        raise swapper.error
