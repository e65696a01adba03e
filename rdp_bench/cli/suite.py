"""A suite of grids: each is run in turn with the same options; what two of them share is computed once."""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from rdp_bench.api.names import refuse_unknown
from rdp_bench.budgets import parse_eps
from rdp_bench.cli.perform import FLAGS, load_grid, next_step, perform, plan_of
from rdp_bench.engine import prefix_reuse
from rdp_bench.engine.executors.kept import keeping
from rdp_bench.engine.jobs import CraftJob, Job
from rdp_bench.engine.progress import Costs, duration, measure
from rdp_bench.engine.run import summary
from rdp_bench.errors import RdpBenchError, StorageError, UsageError, unknown_name
from rdp_bench.keys import key_of
from rdp_bench.specs import plain, show

if TYPE_CHECKING:
    from rdp_bench.engine.grid import Grid
    from rdp_bench.engine.options import RunOptions

log = logging.getLogger("rdp_bench")


ELSEWHERE_RATES = (
    "(this machine has not yet measured all of it: the rest is estimated from another machine's rates; "
    "--measure times each part on two images)"
)
"""What stands below an estimate that is not this machine's own."""


def run_all(names: list[str], options: "RunOptions") -> int:
    """Run these grids, or estimate their time; returns the worst exit status. A failing grid does not stop the next."""
    grids = _chosen(names, options)
    width = max(len(grid.name) for grid in grids)
    if options.dry_run:
        return dry_run(grids, options)
    begun, statuses = time.perf_counter(), []
    made: set[str] | None = set() if options.fresh else None
    with keeping():
        for number, grid in enumerate(grids, 1):
            since = time.perf_counter()
            status, text = _one(grid, _limited(options, grid), made, f"[{number}/{len(grids)}] ")
            statuses.append(status)
            click.echo(f"{grid.name:{width}}  {text}; {duration(time.perf_counter() - since)}")
    took = duration(time.perf_counter() - begun)
    good = f"{statuses.count(0)} of {len(grids)} grids finished without failures"
    click.echo(f"\n{good}, {took}; {next_step(options.out, options.cache)}")
    return max(statuses)


def _limited(options: "RunOptions", grid: "Grid") -> "RunOptions":
    """The options for one grid of many: as flags select from its values there, its smaller number of images stands."""
    counts = [n for n in (options.limit, grid.axes.limit) if n is not None]
    return replace(options, limit=min(counts, default=None))


def _one(grid: "Grid", options: "RunOptions", made: set[str] | None, heading: str) -> tuple[int, str]:
    """Exit status of a grid, and how it went."""
    try:
        running = perform(plan_of(grid, options), options, made, heading)
    except (StorageError, BrokenPipeError):
        raise  # nothing after it could be kept, or read
    except RdpBenchError as error:
        return 2 if isinstance(error, UsageError) else 1, f"not run: {error}"
    except Exception as error:  # a plugin may raise anything, and the next grid may do without it
        log.info("%s", grid.name, exc_info=True)
        return 1, f"not run: {type(error).__name__}: {error}"
    (reason, _), *others = Counter(running.failed.values()).most_common() or [("", 0)]
    more = f" (and {len(others)} other reasons)" if others else ""
    return int(bool(running.failed)), summary(running) + (f": {reason}{more}" if reason else "")


def _chosen(names: list[str], options: "RunOptions") -> list["Grid"]:
    """The grids, filtered by the options; grids without a match are skipped.

    Raises:
        UsageError: a filter matches no grid, or no grid matches all.
    """
    from rdp_bench.engine.grid import narrow

    given = options.changes
    if "norm" in given:
        raise UsageError("--norm applies to a single grid; each grid of a suite has its own")
    wanted = {axis: given[axis] for axis in FLAGS if axis in given}  # what +NAME adds is no filter
    every = {key: value for key, value in given.items() if key not in (*FLAGS, "baselines")}
    grids = [load_grid(name, options, every, one_of_many=True) for name in names]
    for axis, labels in wanted.items():
        known = {show(label) for grid in grids for label in getattr(grid.axes, axis)}
        known |= {label for grid in grids for label in grid.axes.baselines if axis == "targets"}
        if axis == "eps":
            labels = [parse_eps(label, grids[0].axes.norm) for label in labels]
        known_plain = {plain(label) for label in known}
        for label in labels:
            if plain(label) not in known_plain:
                raise unknown_name(
                    FLAGS[axis],
                    show(label),
                    known,
                    "With a suite, options select from the values of its grids",
                )
    kept = [narrow(grid, wanted) for grid in grids]
    if left_out := [grid.name for grid, one in zip(grids, kept, strict=True) if one is None]:
        click.echo(f"skipped (nothing matches the filters): {', '.join(left_out)}", err=True)
    if not any(kept):
        raise UsageError("no grid of the suite matches all filters together; remove some of them")
    chosen = [one for one in kept if one is not None]
    refuse_unknown(chosen, options.names)
    return chosen


def dry_run(grids: Sequence["Grid"], options: "RunOptions") -> int:
    """Print what each grid lacks, and the time of all; returns the worst exit status."""
    width = max(len(grid.name) for grid in grids)
    seen: set[str] = set()
    total, worst, foreign = 0.0, 0, False
    for grid in grids:
        try:
            plan = plan_of(grid, _limited(options, grid))
            jobs: Sequence[Job] = plan.jobs
            if not options.fresh:
                prefix_reuse.drop_damaged(plan, jobs)
                prefix_reuse.copy_shared_shards(plan)
                jobs = plan.to_do(jobs)
            jobs = [job for job in jobs if not _makes(job) <= seen]
        except RdpBenchError as error:
            worst = max(worst, 2 if isinstance(error, UsageError) else 1)
            click.echo(f"{grid.name:{width}}  cannot be run: {error}")
            continue
        seen |= {key for job in jobs for key in _makes(job)}
        sets = sum(isinstance(job, CraftJob) for job in jobs)
        costs = measure(plan, jobs) if jobs and options.measure else Costs(plan)
        seconds = sum(costs.of(job) for job in jobs)
        foreign |= not all(costs.known(job) for job in jobs)
        total += seconds
        click.echo(
            f"{grid.name:{width}}  {sum(1 for _ in grid.cells())} cells on {plan.n} images; {sets} sets and "
            f"{len(jobs) - sets} evaluations to run, about {duration(seconds)}"
        )
    click.echo(f"estimated time: {duration(total)}; what two grids share is counted once")
    if foreign:
        click.echo(ELSEWHERE_RATES)
    return worst


def _makes(job: Job) -> set[str]:
    """Keys of what a job puts into the store."""
    return {job.key} if isinstance(job, CraftJob) else {key_of(record) for _, record in job.evals}
