"""What is done when and by whom: above all executors, and the only place that knows what waits for what.

An executor has workers and carries tasks to them (`Executor`). The schedule decides which task a worker gets: an
adversarial set before its evaluations, networks that the worker has loaded before others, long tasks before short ones.
A task whose worker is lost goes to another worker. A job ends when all its tasks have ended, or when its adversarial
set has failed.
"""

import heapq
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rdp_bench.engine.jobs import CraftJob, Job, JobResult, Work
from rdp_bench.engine.tasks import Part, Task, family, needs, whole
from rdp_bench.errors import RdpBenchError, StorageError

log = logging.getLogger(__name__)

KEPT = "Finished batches are kept; the same command computes the rest"
"""Ends the errors that end a run."""

MOST_TRIES = 3
"""A task that so many workers in a row were lost with, without storing a batch, has failed."""

PATIENCE = (0.0, 0.1, 0.5, 1.0, 3.0, 10.0, 30.0)
"""Seconds between two looks for a result that a worker has reported: a network's file system shows it late."""


# --- what an executor tells the schedule ---------------------------------------------------------------------


@dataclass(frozen=True)
class Ready:
    """A worker has started and can be sent a task."""

    worker: str
    host: str = ""


@dataclass(frozen=True)
class Progress:
    """A worker has stored so many more images of its task."""

    worker: str
    task: Task
    images: int


@dataclass(frozen=True)
class Said:
    """A worker logged a warning or an error."""

    worker: str
    text: str
    level: int = logging.WARNING


@dataclass(frozen=True)
class Answer:
    """A worker has ended its task, and can be sent the next."""

    worker: str
    task: Task
    reason: str = ""  # why it failed
    remarks: tuple[str, ...] = ()  # what a reader of the results must know


@dataclass(frozen=True)
class Lost:
    """A worker is gone, with the task that it had, if any."""

    worker: str
    why: str


@dataclass(frozen=True)
class Refused:
    """A worker cannot do any task of this run, and is not asked again; `why` names its host."""

    worker: str
    why: str


Event = Ready | Progress | Said | Answer | Lost | Refused


class Executor(Protocol):
    """Carries tasks to workers. It knows nothing of what depends on what."""

    def send(self, worker: str, task: Task) -> None:
        """Give a task to a worker that is ready; returns at once."""

    def wait(self) -> Event | None:
        """Wait for the next event; None if no worker is there or will come.

        Raises:
            RdpBenchError: the workers' cluster is gone.
        """

    def close(self) -> None:
        """Stop the workers, whatever they do."""


# --- the schedule ----------------------------------------------------------------------------------------------


Report = Callable[[Job, int], None]


@dataclass
class _Open:
    """A job that has not ended."""

    job: Job
    left: set[Task] = field(default_factory=set)
    reasons: dict[int, str] = field(default_factory=dict)  # by first row
    remarks: dict[str, None] = field(default_factory=dict)


class Schedule:
    """Tasks that are to be done.

    Args:
        parts: the tasks; those of one set before those that need it.
        in_order: do them in this order instead of the longest first; for a single worker.
        landed: whether the results of a task are in the store, as this process sees it; asked after each that is
            reported as done.
    """

    def __init__(
        self, parts: Sequence[Part], *, in_order: bool = False, landed: Callable[[Part], bool] | None = None
    ) -> None:
        self._landed = landed
        self._in_order = in_order
        self._parts = {part.task: part for part in parts}
        self._place = {part.task: place for place, part in enumerate(parts)}
        self._open: dict[int, _Open] = {}
        crafts: dict[str, list[Part]] = {}
        self._blocked: dict[Task, set[Task]] = {}  # what a task waits for
        self._unblocks: dict[Task, list[Part]] = {}
        self._readers: dict[str, list[int]] = {}  # by the key of a set, the numbers of the jobs that read it
        self._heaps: dict[str, list[tuple[float, int, Part]]] = {}
        self._seconds: Counter[str] = Counter()  # left to hand out, by family
        self._tries: Counter[Task] = Counter()
        self._busy: dict[str, Part] = {}
        self._last: dict[str, str] = {}  # by worker, the family of its last task
        self.refused: list[str] = []
        self.workers: dict[str, str] = {}
        """Host of every worker that was ready."""
        for part in parts:
            self._open.setdefault(part.task.number, _Open(part.job)).left.add(part.task)
            if isinstance(part.job, CraftJob):
                crafts.setdefault(part.job.key, []).append(part)
        for part in parts:
            key = needs(part.job)
            if key in crafts:
                readers = self._readers.setdefault(str(key), [])
                if part.task.number not in readers:
                    readers.append(part.task.number)
                before = {
                    c.task for c in crafts[str(key)] if c.task.low < part.task.high and part.task.low < c.task.high
                }
                self._blocked[part.task] = before
                for task in before:
                    self._unblocks.setdefault(task, []).append(part)
            if not self._blocked.get(part.task):
                self._queue(part)

    def run(self, executor: Executor, report: Report | None = None) -> Iterator[JobResult]:
        """Do all tasks; yields each job as it ends.

        Raises:
            RdpBenchError: no worker is left. Finished batches are in the store.
            StorageError: results that a worker reports are not in this process's store.
        """
        idle: dict[str, None] = {}
        while self._open:
            for worker in list(idle):
                part = self._next(worker)
                if part is None:
                    break
                del idle[worker]
                self._busy[worker] = part
                executor.send(worker, part.task)
            match self._event(executor):
                case None:
                    raise RdpBenchError(self._stranded())
                case Ready(worker, host):
                    self.workers[worker] = host
                    idle[worker] = None
                case Progress(_, task, images):
                    self._tries.pop(task, None)  # it gets on, a batch at a time
                    if report:
                        report(self._parts[task].job, images)
                case Said(worker, text, level):
                    log.log(level, "host %s: %s", self.workers.get(worker) or worker, text)
                case Answer(worker, task, reason, remarks):
                    idle[worker] = None
                    del self._busy[worker]
                    yield from self._answered(self._parts[task], reason, remarks)
                case Lost(worker, why):
                    idle.pop(worker, None)
                    if part := self._busy.pop(worker, None):
                        yield from self._lost(part, why)
                case Refused(worker, why):
                    idle.pop(worker, None)
                    self.refused.append(why)
                    log.error("%s", why)
                    if part := self._busy.pop(worker, None):
                        self._queue(part)
                case other:
                    raise RdpBenchError(f"the executor gave {other!r}, which is no event. {KEPT}")

    def _event(self, executor: Executor) -> Event | None:
        try:
            return executor.wait()
        except RdpBenchError:
            raise
        except Exception as error:
            raise RdpBenchError(f"the executor failed: {type(error).__name__}: {error}. {KEPT}") from error

    def _stranded(self) -> str:
        left = f"{len(self._open)} jobs are not done, and no worker is left"
        reasons = "; ".join(dict.fromkeys(self.refused))
        return f"{left}{f': {reasons}' if reasons else ''}. {KEPT}"

    def _queue(self, part: Part) -> None:
        kind = "" if self._in_order else family(part.job)
        place = self._place[part.task]
        order = 0.0 if self._in_order else -part.cost
        heapq.heappush(self._heaps.setdefault(kind, []), (order, place, part))
        self._seconds[kind] += part.cost  # type: ignore[assignment]

    def _next(self, worker: str) -> Part | None:
        """The task that this worker had best do now."""
        while kinds := [kind for kind, heap in self._heaps.items() if heap]:
            there = Counter(self._last[one] for one in self._busy if one in self._last)
            last = self._last.get(worker)

            def score(kind: str, there: Counter[str] = there, last: str | None = last) -> tuple[bool, bool, float]:
                crafts = isinstance(self._heaps[kind][0][2].job, CraftJob)  # others wait for it
                return crafts, kind == last, self._seconds[kind] / (1 + there[kind])

            kind = max(kinds, key=score)
            part = heapq.heappop(self._heaps[kind])[2]
            self._seconds[kind] -= part.cost  # type: ignore[assignment]
            if part.task.number in self._open:  # else its job has failed meanwhile
                self._last[worker] = kind
                return part
        return None

    def _answered(self, part: Part, reason: str, remarks: Iterable[str]) -> Iterator[JobResult]:
        if not reason:
            self._check_landed(part)
        about = self._open.get(part.task.number)
        if about is None:
            return  # another part of its set has failed
        about.left.discard(part.task)
        about.remarks.update(dict.fromkeys(remarks))
        if reason:
            about.reasons[part.task.low] = reason
        if reason and isinstance(part.job, CraftJob):
            about.left.clear()
        if not reason:
            for waiting in self._unblocks.pop(part.task, []):
                before = self._blocked[waiting.task]
                before.discard(part.task)
                if not before and waiting.task.number in self._open:
                    self._queue(waiting)
        if not about.left:
            yield from self._end(part.task.number)

    def _end(self, number: int) -> Iterator[JobResult]:
        about = self._open.pop(number)
        reason = about.reasons[min(about.reasons)] if about.reasons else ""
        yield JobResult(about.job, reason, tuple(about.remarks))
        if reason and isinstance(about.job, CraftJob):
            for reader in self._readers.get(about.job.key, []):
                if failed := self._open.pop(reader, None):
                    yield JobResult(failed.job, f"its adversarial set failed: {reason}")

    def _lost(self, part: Part, why: str) -> Iterator[JobResult]:
        self._tries[part.task] += 1
        if part.task.number not in self._open:
            return
        if self._tries[part.task] < MOST_TRIES:
            log.warning("%s; %s goes to another worker, its finished batches are kept", why, part.job)
            self._queue(part)
            return
        yield from self._answered(
            part, f"{self._tries[part.task]} workers were lost while they did it, the last: {why}", ()
        )

    def _check_landed(self, part: Part) -> None:
        if self._landed is None:
            return
        for seconds in PATIENCE:
            time.sleep(seconds)
            if self._landed(part):
                return
        raise StorageError(
            f"{part.job}: a worker has stored it, and the cache of this process lacks it; name a --cache that is the "
            "same folder on all machines"
        )


# --- this process ---------------------------------------------------------------------------------------------


class SerialExecutor:
    """One worker: this process. `wait` does the task that was sent."""

    NAME = "this process"

    def __init__(self, do: Callable[[Task], Iterable[str] | None]) -> None:
        self._do = do
        self._begun = False
        self._task: Task | None = None

    def send(self, worker: str, task: Task) -> None:  # noqa: ARG002 - there is one
        self._task = task

    def wait(self) -> Event | None:
        if not self._begun:
            self._begun = True
            return Ready(self.NAME)
        task, self._task = self._task, None
        return None if task is None else answer(self.NAME, task, self._do)

    def close(self) -> None:
        """Nothing is left running."""


def answer(worker: str, task: Task, do: Callable[[Task], Iterable[str] | None]) -> Answer:
    """Do a task; an exception of an entry becomes the reason why the task failed.

    Raises:
        StorageError: nothing can be kept.
    """
    try:
        return Answer(worker, task, remarks=tuple(do(task) or ()))
    except StorageError:
        raise  # nothing after it could be kept either
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # an entry may raise anything, or exit: its cells fail, the others go on
        if gpu_failed(error):
            raise  # so would every task after it
        return Answer(
            worker, task, str(error) if isinstance(error, RdpBenchError) else f"{type(error).__name__}: {error}"
        )


def gpu_failed(error: BaseException) -> bool:
    """Whether an error means that this process cannot use its GPU any more."""
    if "torch" not in sys.modules:
        return False
    from rdp_bench.models.entry_calls import device_failed

    return device_failed(error)


def run_here(jobs: Iterable[Job], work: Work) -> Iterator[JobResult]:
    """Do whole jobs in their order in this process; a failed job does not stop the others."""
    parts = whole(jobs)
    by_task = {part.task: part.job for part in parts}
    yield from Schedule(parts, in_order=True).run(SerialExecutor(lambda task: work(by_task[task])))
