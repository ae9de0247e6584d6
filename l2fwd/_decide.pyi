from collections.abc import Callable, Sequence
from typing import Final

from l2fwd._classify import Classifier

DEFAULT_INSERTS_PER_SECOND: Final[int]

class Decider:
    classifier: Classifier
    def __init__(
        self,
        classifier: Classifier,
        ifindexes: Sequence[int],
        *,
        rules: int = 0,
        ask: Callable[[memoryview, memoryview], None] | None = None,
        for_burst: int = 0,
        for_packet: int = 0,
        queue: int = 0,
        insert: int = 0,
        flows_fd: int = -1,
        inserts_per_second: int = ...,
    ) -> None: ...
    @property
    def rules(self) -> int: ...
    def hits(self, rule: int) -> tuple[int, int]: ...
    def counters(self) -> dict[str, int]: ...
