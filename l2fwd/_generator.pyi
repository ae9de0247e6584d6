from l2fwd._worker import Job
from l2fwd.traffic import Template

class Generator(Job):
    def __init__(
        self,
        template: Template,
        *,
        payload: str = "pattern",
        first_source: int = 0,
        sources: int = 1,
        first_port: int = 0,
        ports: int = 1,
        count: int | None = None,
        first: int = 0,
        step_ns: float = 0.0,
        per_step: int = 1,
    ) -> None: ...
    def use(self, template: Template) -> None: ...
    @property
    def template(self) -> Template: ...
    @property
    def made(self) -> int: ...
    def take_due(self, now_ns: int, most: int) -> int: ...
