"""A run as a list of keyed jobs.

A job is plain data and can be pickled; finished work is found in the store by its key. `schedule` has jobs done.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rdp_bench.budgets import LINF, show_eps
from rdp_bench.keys import Record


@dataclass(frozen=True)
class CraftJob:
    """Make one adversarial set."""

    key: str
    record: Record
    source: str
    attack: str
    eps: float

    def __str__(self) -> str:
        return f"{self.attack} on {self.source}"

    @property
    def records(self) -> list[Record]:
        """The records of everything that the job stores."""
        return [self.record]


@dataclass(frozen=True)
class EvaluateJob:
    """Purify one set with one defense, and classify it by every target."""

    key: str  # of the purified set, which is not stored as a whole
    record: Record
    defense: str
    evals: tuple[tuple[str, Record], ...]  # target label, record of its predictions
    sample: Record  # of the first few purified images, which are kept
    craft: CraftJob | None = None  # makes the adversarial set; None for clean images
    defense_samples: int = 1
    image_quality: Record | None = None  # of the distances to the clean images, if asked for

    @property
    def measurements(self) -> list[Record]:
        """The records of everything that it stores of every image."""
        return [record for _, record in self.evals] + ([self.image_quality] if self.image_quality else [])

    @property
    def records(self) -> list[Record]:
        """The records of everything that the job stores."""
        return [*self.measurements, self.sample]

    def __str__(self) -> str:
        if self.craft is None:
            return f"{self.defense} against clean images"
        eps = show_eps(self.craft.eps, self.craft.record.get("norm", LINF))
        return f"{self.defense} against {self.craft} at eps {eps}"


Job = CraftJob | EvaluateJob


@dataclass(frozen=True)
class JobResult:
    """A finished job."""

    job: Job
    reason: str = ""  # why it failed
    remarks: tuple[str, ...] = ()  # what a reader of the results must know


Work = Callable[[Job], Iterable[str] | None]
"""Does a job and returns its remarks."""
