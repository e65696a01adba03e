"""Doing what a run still lacks: shared by `evaluate` and the command line."""

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rdp_bench.api.place import Listener, Where
    from rdp_bench.engine.jobs import Job
    from rdp_bench.engine.plan import Plan
    from rdp_bench.engine.run import Run

log = logging.getLogger("rdp_bench")


def lacks_results(running: "Run", jobs: "Sequence[Job]") -> bool:
    """Whether something must be computed that the cache will hold."""
    return bool(jobs) or not _accuracies_known(running.plan)


def work(
    running: "Run",
    jobs: "Sequence[Job]",
    batch_size: int | None,
    show_bar: bool | None,
    listener: "Listener | None" = None,
    where: "Where | None" = None,
) -> str:
    """Do `jobs`, the measurement of clean accuracies and of costs; the results folder is written.

    Args:
        running: a run that was started; `jobs` is what it returned.
        jobs: what is left to do.
        batch_size: images at once; None: as the device allows.
        show_bar: show a progress bar; None: where stderr is a terminal.
        listener: follows the jobs too.
        where: an executor, or a share of the plan; None: this process does everything.

    Returns:
        What continues elsewhere after this returns; usually empty.
    """
    missing = lacks_results(running, jobs)
    away = where is not None and (where.shard is not None or not where.here)
    if missing and away:
        assert where is not None
        return _elsewhere(running, jobs, show_bar, listener, where)
    if away or not (missing or running.lacks_cost):
        _read_results(running)
        return ""
    from rdp_bench.api.place import tended
    from rdp_bench.engine.progress import Costs, ProgressBar
    from rdp_bench.engine.schedule import run_here

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
        bar.start()
        with tended(running) as (count, noted):
            worker.report = _all(bar, count, listener)
            running.follow(noted(run_here(jobs, worker)))
        if running.lacks_cost:
            bar.set_description("measuring what each defense costs")
            from rdp_bench.engine import defense_cost

            running.keep_cost(defense_cost.measure(worker))
    finally:
        bar.close()
        if listener is not None:
            listener.close()
    return ""


def _elsewhere(
    running: "Run", jobs: "Sequence[Job]", show_bar: bool | None, listener: "Listener | None", where: "Where"
) -> str:
    from rdp_bench.api.place import share_here, spread
    from rdp_bench.engine.progress import Costs, ProgressBar

    bar = ProgressBar(jobs, Costs(running.plan), show_bar=show_bar)
    try:
        bar.set_description("starting the workers" if where.shard is None else f"share {where.shard}")
        said = ""
        if where.shard:
            share_here(running, where, bar, listener)
        else:
            said = spread(running, where, bar, listener)
    finally:
        bar.close()
        if listener is not None:
            listener.close()
    _read_results(running)
    if running.lacks_cost and not said:
        log.warning(
            "workers do not measure what each defense costs; the same command with --executor serial measures it on "
            "this machine"
        )
    return said


def _read_results(running: "Run") -> None:
    """Bring what the store holds into the record: clean accuracies, and what workers elsewhere remarked."""
    from rdp_bench.api.place import remarks_of

    for remark in remarks_of(running):
        running.warn(remark)
    running.check_accuracy(None)
    running.save()


def _all(*reports: "Callable[[Job, int], None] | None") -> "Callable[[Job, int], None]":
    def report(job: "Job", images: int) -> None:
        for each in reports:
            if each is not None:
                each(job, images)

    return report


def _accuracies_known(plan: "Plan") -> bool:
    return all(plan.done(job) for job in plan.clean_checks)
