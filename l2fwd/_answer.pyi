from l2fwd._worker import Job

class Answer(Job):
    def __init__(
        self, mac: bytes, addresses: bytes = b"", *, any_address: bool = False
    ) -> None: ...
    def answer(self, buffer: bytearray | memoryview, length: int) -> int: ...
