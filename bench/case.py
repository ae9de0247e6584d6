"""One question to a micro-bench: contenders that do the same work, and the figures of it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.figures import Figure, ratio
from bench.rounds import Rounds, Work, ns_each


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Contenders for one question.

    Attributes
    ----------
    name : str
        What its figures' names begin with.
    contenders : mapping of str to callable
        Each makes the work anew for every round, so that luck of placement shows in the spread.
    reference : str
        The contender that the others are compared with.
    goals : mapping of str to float
        Of the ratios to it, at most, by contender.
    of : str
        What a contender does once: ``frame``, ``flow``.
    values : dict
        What it is measured at.
    """

    name: str
    contenders: Mapping[str, Callable[[], Work]]
    reference: str
    goals: Mapping[str, float]
    of: str = "frame"
    values: Mapping[str, Any] = field(default_factory=dict)

    def measure(self, rounds: Rounds) -> Iterator[Figure]:
        """Yield ns of each contender, and the ratios to the reference; lower is better."""
        samples = rounds.measure(
            {name: _sampler(make, rounds.seconds) for name, make in self.contenders.items()}
        )
        for name, taken in samples.items():
            yield Figure(
                name=f"{self.name}, {name}", unit=f"ns/{self.of}", samples=tuple(taken),
                better="lower", case=self.values,
            )  # fmt: skip
        for name, taken in samples.items():
            if name != self.reference:
                yield ratio(
                    f"{self.name}, {name} to {self.reference}", taken, samples[self.reference],
                    against=self.reference, goal=self.goals.get(name), better="lower",
                    case=self.values,
                )  # fmt: skip


def _sampler(make: Callable[[], Work], seconds: float) -> Callable[[], float]:
    def sample() -> float:
        work = make()
        work()  # warms up
        return ns_each(work, seconds)

    return sample
