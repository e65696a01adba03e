"""Doing a run's jobs elsewhere than in this process, or only a share of them."""

import logging
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rdp_bench.errors import StorageError, UsageError

if TYPE_CHECKING:
    from rdp_bench.engine.executors import Array
    from rdp_bench.engine.executors.board import Board
    from rdp_bench.engine.jobs import Job, JobResult
    from rdp_bench.engine.options import Placement, Shard
    from rdp_bench.engine.plan import Plan
    from rdp_bench.engine.run import Run

log = logging.getLogger("rdp_bench")

Report = Callable[["Job", int], None]

Outcomes = Iterator["JobResult"]


class Listener(Protocol):
    """What may follow the work besides the progress bar."""

    remaining: Callable[[], float] | None
    """Gives the estimated seconds that are left, once the jobs begin."""

    def start(self, jobs: "Sequence[Job]") -> None:
        """The jobs begin."""

    def __call__(self, job: "Job", images: int) -> None:
        """So many images more of `job` are done."""

    def close(self) -> None:
        """The jobs are over, or were interrupted."""


@dataclass(frozen=True)
class Where:
    """Where and how a plan is to be done, besides the plan itself."""

    placement: "Placement"
    limit: int | None = None
    batch_size: int | None = None
    models_dir: Path | None = None
    shard: "Shard | None" = None

    @property
    def here(self) -> bool:
        """Whether this process does the jobs."""
        return self.placement.executor == "serial"

    def device(self, asked: str) -> str:
        """The kind of device that the workers have, as `environment.choose_device` says it.

        A driver without a GPU may drive workers that have one: then `cuda` is theirs to check.
        """
        from rdp_bench import environment

        if not self.here and asked.partition(":")[0] == "cuda":
            if asked != "cuda":
                raise UsageError(f"--device {asked}: workers use the GPU that they are given; use --device cuda")
            return "cuda"
        if self.placement.executor == "slurm" and asked == "auto":
            from rdp_bench.engine.executors.on_slurm import wants_gpu

            return "cuda" if wants_gpu(self.placement.slurm) else "cpu"
        return environment.choose_device(asked)


def placement(given: Mapping[str, Any], in_grid: Mapping[str, Any], grid: str) -> "Placement":
    """What a grid's `[run]` says, with `given` in its place.

    Raises:
        UsageError: an unknown executor, or an option that the executor does not have.
    """
    from rdp_bench import schema
    from rdp_bench.engine.executors import refuse_unknown
    from rdp_bench.engine.options import Placement

    if "executor" in given and given["executor"] != in_grid.get("executor", Placement.executor):
        # What the grid says of its own executor goes with it; a number of workers suits all that have some.
        shared = () if given["executor"] == "serial" else ("workers",)
        in_grid = {name: value for name, value in in_grid.items() if name in shared}
    found = schema.read({**in_grid, **given}, Placement, f"[run] of grid {grid}", "key of {}".format)
    refuse_unknown(found.executor)
    for option, executor in (("ray_address", "ray"), ("slurm", "slurm")):
        if getattr(found, option) and found.executor != executor:
            flag = option.replace("_", "-")
            raise UsageError(f"--{flag} belongs to --executor {executor}; the executor is {found.executor}")
    if not found.wait and found.executor in ("serial", "ray"):
        raise UsageError(f"--no-wait belongs to --executor slurm; the executor is {found.executor}")
    if found.executor == "serial" and found.workers not in ("auto", 1):
        raise UsageError("--workers belongs to --executor ray or slurm; the executor is serial, which has one worker")
    return found


def spread(running: "Run", where: Where, report: Report, listener: Listener | None = None) -> str:
    """Let the workers of an executor do what the run lacks, the measurement of clean accuracies included.

    Returns:
        What continues after this returns (`--no-wait`); usually empty.

    Raises:
        RdpBenchError: the workers are gone, or refuse. What they have finished is in the store.
    """
    from rdp_bench.engine import executors
    from rdp_bench.engine.executors import Pool
    from rdp_bench.engine.executors.board import Board
    from rdp_bench.engine.executors.spec import spec_of
    from rdp_bench.engine.progress import Costs
    from rdp_bench.engine.schedule import Schedule
    from rdp_bench.engine.tasks import batch_of, lacking, split, stored

    plan = running.plan
    spec = spec_of(plan, limit=where.limit, batch_size=where.batch_size, models_dir=where.models_dir)
    board = Board(plan.store, spec.plan)
    board.begin(plan, facts(running, where))
    executor = executors.make(spec, where.placement)
    if not isinstance(executor, Pool):
        return _submitted(running, where, executor, board, report, listener)
    if not where.placement.wait:
        executor.close()
        raise UsageError(
            f"--no-wait: executor {where.placement.executor} needs this process until the end; leave out --no-wait"
        )
    numbers = lacking(plan)
    parts = split(plan, numbers, Costs(plan).each, executor.workers, batch_of(plan, where.batch_size))
    schedule = Schedule(parts, landed=lambda part: stored(plan, part.job, part.task.low, part.task.high))
    told = _Ends(plan, numbers, report, listener)
    try:
        running.follow(of_cells(plan, told.of(schedule.run(executor, told))))
    finally:
        executor.close()
        for worker in schedule.workers:
            board.leave(worker)
    return ""


def _submitted(
    running: "Run", where: Where, array: "Array", board: "Board", report: Report, listener: Listener | None
) -> str:
    """Submit workers that need no driver, and follow them if that is wanted."""
    from rdp_bench.engine.executors.follow import follow
    from rdp_bench.engine.tasks import lacking

    plan = running.plan
    what = array.submit()
    if not where.placement.wait:
        running.save()
        return f"{what} does the rest; see: rdp-bench status. The same command, later, follows it or reads its results"
    log.info("%s", what)
    numbers = lacking(plan)
    told = _Ends(plan, numbers, report, listener)
    try:
        running.follow(of_cells(plan, told.of(follow(plan, numbers, board, array, what, told))))
    except KeyboardInterrupt:
        log.warning("%s goes on; see: rdp-bench status", what)
        raise
    return ""


def share_here(running: "Run", where: Where, report: Report, listener: Listener | None = None) -> None:
    """Do one share of the plan in this process.

    A set is crafted and evaluated by one share, so shares need nothing of each other. Which jobs are whose follows
    from the plan, the number of shares and the batch size alone.
    """
    from rdp_bench.engine.schedule import Schedule, SerialExecutor
    from rdp_bench.engine.tasks import batch_of, distinct, nominal_cost, portions, share, stored
    from rdp_bench.engine.worker import Worker

    plan, shard = running.plan, where.shard
    assert shard is not None
    found = portions(plan, distinct(plan), nominal_cost(plan), shard.count, batch_of(plan, where.batch_size))
    mine = share(found, shard.count)[shard.number - 1]
    parts = [part for portion in mine for part in portion if not stored(plan, part.job, part.task.low, part.task.high)]
    jobs = {part.task: part.job for part in parts}
    told = _Ends(plan, sorted({part.task.number for part in parts}), report, listener)
    with tended(running, where) as (count, noted):
        worker = Worker(plan, where.batch_size, _both(count, told))
        executor = SerialExecutor(lambda task: worker(jobs[task], (task.low, task.high)))
        running.follow(of_cells(plan, told.of(noted(Schedule(parts, in_order=True).run(executor)))))


class _Ends:
    """Counts every batch for the bar, and tells a listener, who expects one job after another, of jobs that end."""

    def __init__(self, plan: "Plan", numbers: list[int], report: Report, listener: Listener | None) -> None:
        from rdp_bench.engine.tasks import numbered

        self._report, self._listener = report, listener
        self._images: dict[int, int] = {}
        if listener is not None:
            jobs = numbered(plan)
            listener.start([jobs[number] for number in numbers])

    def __call__(self, job: "Job", images: int) -> None:
        self._report(job, images)
        self._images[id(job)] = self._images.get(id(job), 0) + images

    def of(self, outcomes: "Outcomes") -> "Outcomes":
        """Pass the ends of jobs on."""
        for outcome in outcomes:
            if self._listener is not None and not outcome.reason:
                self._listener(outcome.job, self._images.get(id(outcome.job), 0))
            yield outcome


@contextmanager
def tended(running: "Run", where: Where | None = None) -> "Iterator[tuple[Report, Callable[[Outcomes], Outcomes]]]":
    """Around work in this process: others see what it does (`rdp-bench status`).

    Yields a function to be called after each batch, and one that passes the ends of jobs on and notes those that fail.
    """
    from rdp_bench.engine.executors.board import Board, Heart, digest, worker_name
    from rdp_bench.engine.tasks import Part, Task, numbered

    plan = running.plan
    board = Board(plan.store, digest(plan))
    heart = Heart(board, worker_name())
    numbers = {id(job): number for number, job in enumerate(numbered(plan))}
    current: list[Job] = []

    def task(job: "Job") -> Task:
        return Task(numbers.get(id(job), -1), job.key, 0, plan.n)

    def count(job: "Job", images: int) -> None:
        if current != [job]:
            current[:] = [job]
            heart.doing(job, task(job))
        heart.count(images)

    def noted(outcomes: "Outcomes") -> "Outcomes":
        for outcome in outcomes:
            with suppress(StorageError):
                board.ended(Part(task(outcome.job), outcome.job), heart.worker, outcome.reason, ())
            yield outcome

    with ExitStack() as until_done:
        with suppress(StorageError):  # the first batch will say that nothing can be kept
            board.begin(plan, facts(running, where), alone=where is None or where.shard is None)
            until_done.enter_context(heart.beating())
        yield count, noted


def _both(one: Report, two: Report) -> Report:
    def report(job: "Job", images: int) -> None:
        one(job, images)
        two(job, images)

    return report


def of_cells(plan: "Plan", outcomes: "Outcomes") -> "Outcomes":
    """The ends of the jobs of cells; a check of a model that fails is a warning, for its cells say so too."""
    checks = {id(job) for job in plan.clean_checks}
    for outcome in outcomes:
        if id(outcome.job) not in checks:
            yield outcome
        elif outcome.reason:
            log.warning("%s", outcome.reason)


def remarks_of(running: "Run") -> list[str]:
    """What workers of the same plan remarked, in this run or in one that nobody waited for."""
    from rdp_bench.engine.executors.board import Board, digest

    return Board(running.plan.store, digest(running.plan)).remarks()


def facts(running: "Run", where: "Where | None" = None) -> "dict[str, object]":
    """What `rdp-bench status` says of a run."""
    return {
        "grid": running.plan.grid.name,
        "title": running.plan.grid.title,
        "command": running.command,
        "out": str(running.out.absolute()),
        "executor": where.placement.executor if where else "serial",
        "host": socket.gethostname(),
    }
