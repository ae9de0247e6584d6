from l2fwd._worker import Job

class Drop(Job):
    def __init__(self) -> None: ...
