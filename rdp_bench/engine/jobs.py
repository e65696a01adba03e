"""A run as a list of keyed jobs, and the executor that does them.

`SerialExecutor` does one job after another in this process. A job is plain data and can be pickled, so an executor for
many GPUs or machines needs nothing else; finished work is found in the store by its key.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from rdp_bench.budgets import LINF, show_eps
from rdp_bench.errors import RdpBenchError, StorageError
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


class Executor(Protocol):
    """Does jobs, in any order that does a set before what needs it, and reports each as it ends."""

    def run(self, jobs: Iterable[Job], work: Work) -> Iterator[JobResult]: ...


class SerialExecutor:
    """One job after another in this process; a failed job does not stop the others."""

    def run(self, jobs: Iterable[Job], work: Work) -> Iterator[JobResult]:
        failed: dict[str, str] = {}
        for job in jobs:
            if isinstance(job, EvaluateJob) and job.craft and job.craft.key in failed:
                yield JobResult(job, f"its adversarial set failed: {failed[job.craft.key]}")
                continue
            try:
                remarks = tuple(work(job) or ())
            except StorageError:
                raise  # nothing after it could be kept either
            except RdpBenchError as error:
                reason = str(error)
            except Exception as error:  # an entry may raise anything: its cells fail, the others go on
                reason = f"{type(error).__name__}: {error}"
            else:
                yield JobResult(job, remarks=remarks)
                continue
            failed[job.key] = reason
            yield JobResult(job, reason)
