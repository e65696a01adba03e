"""Doing what a run still lacks: shared by `evaluate` and the command line."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rdp_bench.engine.jobs import Job
    from rdp_bench.engine.plan import Plan
    from rdp_bench.engine.run import Run


def lacks_results(running: "Run", jobs: "Sequence[Job]") -> bool:
    """Whether something must be computed that the cache will hold."""
    return bool(jobs) or not _accuracies_known(running.plan)


class Listener(Protocol):
    """What may follow the work besides the progress bar."""

    remaining: "Callable[[], float] | None"
    """Gives the estimated seconds that are left, once the jobs begin."""

    def start(self, jobs: "Sequence[Job]") -> None:
        """The jobs begin."""

    def __call__(self, job: "Job", images: int) -> None:
        """So many images more of `job` are done."""

    def close(self) -> None:
        """The jobs are over, or were interrupted."""


def work(
    running: "Run",
    jobs: "Sequence[Job]",
    batch_size: int | None,
    show_bar: bool | None,
    listener: Listener | None = None,
) -> None:
    """Do `jobs`, the measurement of clean accuracies and of costs; the results folder is written.

    Args:
        running: a run that was started; `jobs` is what it returned.
        jobs: what is left to do.
        batch_size: images at once; None: as the device allows.
        show_bar: show a progress bar; None: where stderr is a terminal.
        listener: follows the jobs too.
    """
    if not (lacks_results(running, jobs) or running.lacks_cost):
        running.check_accuracy(None)
        running.save()
        return
    from rdp_bench.engine.progress import Costs, ProgressBar

    bar = ProgressBar(jobs, Costs(running.plan), show_bar=show_bar)
    try:
        bar.set_description("loading torch and the networks, measuring clean accuracy")
        from rdp_bench.engine.worker import Worker

        worker = Worker(running.plan, batch_size)
        running.check_accuracy(worker)
        worker.report = bar
        if listener is not None:
            listener.remaining = bar.remaining
            listener.start(running.plan.to_do(jobs))  # some are done by now
            worker.report = _both(bar, listener)
        bar.start()
        running.execute(jobs, worker)
        if running.lacks_cost:
            bar.set_description("measuring what each defense costs")
            from rdp_bench.engine import defense_cost

            running.keep_cost(defense_cost.measure(worker))
    finally:
        bar.close()
        if listener is not None:
            listener.close()


def _both(one: "Callable[[Job, int], None]", two: "Callable[[Job, int], None]") -> "Callable[[Job, int], None]":
    def report(job: "Job", images: int) -> None:
        one(job, images)
        two(job, images)

    return report


def _accuracies_known(plan: "Plan") -> bool:
    return all(plan.done(job) for job in plan.clean_checks)
