from collections.abc import Sequence

from l2fwd._classify import Classifier
from l2fwd._decide import Decider
from l2fwd._rings import Port

class Job:
    @property
    def is_done(self) -> bool: ...

class Worker:
    def __init__(
        self,
        *ports: Port,
        batch_size: int = 64,
        both_ways: bool = True,
        busy_poll: bool = False,
        dst_mac: bytes | None = None,
        swap_mac: bool = False,
        decider: Decider | None = None,
        progress: Sequence[int] = (),
        give_back: int = 0,
        host_fd: int = -1,
        job: Job | None = None,
    ) -> None: ...
    @property
    def ports(self) -> tuple[Port, ...]: ...
    @property
    def job(self) -> Job | None: ...
    @property
    def decider(self) -> Decider | None: ...
    @property
    def failed(self) -> str | None: ...
    @property
    def turns(self) -> tuple[int, int]: ...
    def run(self) -> None: ...
    def turn(self) -> int: ...
    def swap(self, classifier: Classifier) -> None: ...
    def stop(self) -> None: ...
    def frames(self) -> dict[str, int]: ...
