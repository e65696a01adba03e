"""Where work is done. A run is a list of independent, keyed jobs; an executor decides who does them when.

`SerialExecutor` does them one after another in this process. An executor for many GPUs or machines needs only what
a job carries: everything in it is plain data, and finished work is found again in the store by its key.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

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
    cost: float = 1.0

    def __str__(self) -> str:
        return f"{self.attack} on {self.source}"


@dataclass(frozen=True)
class EvaluateJob:
    """Purify one set (adversarial, or the clean images) with one defense and classify it by every target."""

    key: str
    record: Record
    defense: str
    evals: tuple[tuple[str, Record], ...]  # target label, eval record
    set_key: str | None
    set_name: str
    defense_samples: int = 1
    image_quality: Record | None = None  # where the distance to the clean images is kept, if asked for
    cost: float = 1.0

    @property
    def records(self) -> list[Record]:
        """Of everything it makes."""
        return [record for _, record in self.evals] + ([self.image_quality] if self.image_quality else [])

    def __str__(self) -> str:
        return f"{self.defense} against {self.set_name}"


Job = CraftJob | EvaluateJob


@dataclass(frozen=True)
class JobResult:
    """A finished job; `reason` says why it failed, or is empty."""

    job: Job
    reason: str = ""


class Executor(Protocol):
    """Does jobs, in any order that does a set before what needs it, and reports each as it ends."""

    def run(self, jobs: Iterable[Job], work: Callable[[Job], Any]) -> Iterator[JobResult]: ...


class SerialExecutor:
    """One job after another in this process; a failed job does not stop the others."""

    def run(self, jobs: Iterable[Job], work: Callable[[Job], Any]) -> Iterator[JobResult]:
        failed: dict[str, str] = {}
        for job in jobs:
            if isinstance(job, EvaluateJob) and job.set_key in failed:
                yield JobResult(job, f"its adversarial set failed: {failed[job.set_key]}")
                continue
            try:
                work(job)
            except StorageError:
                raise  # nothing after it could be kept either
            except RdpBenchError as error:
                reason = str(error)
            except Exception as error:  # an entry may raise anything: its cells fail, the others go on
                reason = f"{type(error).__name__}: {error}"
            else:
                yield JobResult(job)
                continue
            failed[job.key] = reason
            yield JobResult(job, reason)
