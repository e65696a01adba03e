"""`rdp-bench run`: its flags, its plan in words, what it prints at the end."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rdp_bench.budgets import NORMS
from rdp_bench.cli import common, complete, where
from rdp_bench.cli.perform import load_grid, next_step, perform, plan_of, run_options
from rdp_bench.engine.precision import PRECISIONS
from rdp_bench.errors import UsageError

if TYPE_CHECKING:
    from rdp_bench.cli.again import Again
    from rdp_bench.engine.options import RunOptions
    from rdp_bench.engine.plan import Plan

log = logging.getLogger("rdp_bench")


def _axis(kind: str) -> dict[str, Any]:
    return {"multiple": True, "metavar": "NAME", "shell_complete": complete.of_kind(kind)}


def _keep_grid(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    """Let the argument and the option give one parameter."""
    before = ctx.params.setdefault("grid_name", None)
    if value is not None and before not in (None, value):
        raise click.UsageError(f"two grids are named, {before} and {value}; a run has one", ctx)
    if value is not None:
        ctx.params["grid_name"] = value


_grid: dict[str, Any] = {
    "callback": _keep_grid, "expose_value": False, "required": False, "shell_complete": complete.of_kind("grid"),
}  # fmt: skip


@click.command()
@click.argument("grid_", metavar="GRID", **_grid)
@click.option("--grid", metavar="NAME|FILE", help="Another way to name GRID.", **_grid)
@click.option(
    "--from",
    "record",
    type=click.Path(path_type=Path),
    metavar="RECORD",
    help="Repeat the run of this record, OUT/runs/GRID.json; other options replace its settings.",
)
@click.option("--profile", default="embedded", show_default=True, help="Profile of the grid: embedded or paper.")
@click.option("--dataset", metavar="NAME|FOLDER|CSV", help="Images to use instead of the grid's.")
@click.option("--limit", type=int, help="Use only the first N images, instead of the grid's number.")
@click.option(
    "--image-size",
    type=int,
    metavar="PIXELS",
    help="Resize images when they are read, before any attack.  [default: the data set's size, mostly 299]",
)
@click.option("--source", **_axis("model"), help="Source model, or a+b for an ensemble; repeatable.")
@click.option("--target", **_axis("model"), help="Target model; repeatable.")
@click.option("--attack", **_axis("attack"), help='Attack, like "ti-dim" or "MI|DI(p=.5)"; repeatable.')
@click.option(
    "--defense", **_axis("defense"), help='Defense, like "jpeg(quality=95)" or a chain, "jpeg >> rdp"; repeatable.'
)
@click.option("--eps", multiple=True, help="L-infinity budget in /255, like 8 or 8/255; repeatable.")
@click.option("--norm", type=click.Choice(NORMS), help="Norm of the budget.  [default: the grid's, or linf]")
@click.option("--defense-samples", type=int, help="Evaluations of a random defense.  [default: the grid's, or 1]")
@click.option(
    "--success",
    is_flag=True,
    default=None,
    help="Also report the attack success rate: the share of correctly classified images that an attack flips.",
)
@click.option(
    "--name",
    "names",
    multiple=True,
    metavar="LABEL=NAME",
    help='How reports write a label, like "rdp=Ours".',
)
@click.option("--models-dir", type=click.Path(path_type=Path), help="Folder searched first for weight files.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:<number>.")
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="float32",
    show_default=True,
    help="Precision of networks. tf32: faster on GPUs. bfloat16: gradients and learned defenses; targets stay float32.",
)
@click.option(
    "--batch-size",
    default="auto",
    show_default=True,
    help="Images per batch; auto: 20 on a CPU, 5 when attacking through a defense; on a GPU, what its memory allows.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of all randomness.")
@common.out
@common.cache
@common.plugins
@where.options
@click.option("--dry-run", is_flag=True, help="Print the plan, what is cached, and an estimate of the remaining time.")
@click.option("--measure", is_flag=True, help="With --dry-run: time each part on two images first.")
@click.option("--fresh", is_flag=True, help="Compute the selected cells again; their cached results are deleted.")
@click.option("--progress/--no-progress", default=None, help="Turn the progress bar on or off.")
def run(grid_name: str | None, **flags: Any) -> None:
    """Run a grid: craft adversarial images, evaluate every defense, write OUT/results.csv.

    GRID is a built-in grid (rdp-bench list grids) or a path to a TOML file.

    --source, --target, --attack, --defense and --eps replace an axis of the grid; they take several values, separated
    by commas or given repeatedly. +NAME adds to the axis instead: --defense +mine/net adds a row to the grid's table.

    A run can be stopped at any time; the same command continues it. If the grid lists grids (paper), each is run in
    turn, and these options select from the values of each grid. If it has a table [audit], each defense is audited; see
    rdp-bench audit --help.

    With --from, differences from the record (versions, weights, device) are printed before anything runs; afterwards
    the predictions are compared with the published ones. The exit status is 0 if all cells agree.
    """
    from rdp_bench.audits import grid as audits
    from rdp_bench.cli import audited, suite
    from rdp_bench.cli.again import Again
    from rdp_bench.engine import grid

    record: Path | None = flags.pop("record")
    if record is not None:
        if grid_name is not None:
            raise UsageError(f"--from {record} names the grid already; leave out {grid_name}")
        again = Again(record, run_options(flags), flags, _named_flags(click.get_current_context()))
        _run_one(again.plan, again.options, again)
        return
    if grid_name is None:
        raise UsageError(f"no grid is named; try: rdp-bench run table1. Built-in grids: {', '.join(grid.builtin())}")
    options = run_options(flags)
    names = grid.expand_suite(grid_name)
    if names == [grid_name] and grid.is_audit(grid_name):
        from rdp_bench.audits import grid as audits

        sys.exit(audited.run_all(audits.load(grid_name, options.profile, options.changes), options))
    if names != [grid_name]:
        sys.exit(suite.run_all(names, options))
    _run_one(plan_of(load_grid(grid_name, options, options.changes), options), options)


def _named_flags(ctx: click.Context) -> set[str]:
    """The options that the command line names."""
    source = click.core.ParameterSource.COMMANDLINE
    return {name for name in ctx.params if ctx.get_parameter_source(name) is source}


def _run_one(plan: "Plan", options: "RunOptions", again: "Again | None" = None) -> None:
    """Run one grid, or print its plan; the exit status says whether a cell failed, or differs from a published one."""
    from rdp_bench.api.names import names_of
    from rdp_bench.cli.blocks import Blocks
    from rdp_bench.engine.run import summary

    if options.dry_run:
        names_of(plan.grid, options.names)  # refuses what the run would
        _dry_run(plan, options)
        return
    blocks = Blocks(plan)
    running = perform(plan, options, set() if options.fresh else None, watch=blocks)
    blocks.finish(running)
    click.echo(f"\n{summary(running)}; {next_step(options.out, options.cache)}")
    for cell, reason in list(running.failed.items())[:5]:
        click.echo(f"failed: {cell}: {reason}", err=True)
    agrees = again is None or again.compare(running)
    if running.failed or not agrees:
        sys.exit(1)


def _dry_run(plan: "Plan", options: "RunOptions") -> None:
    from rdp_bench.cli import suite
    from rdp_bench.engine import prefix_reuse
    from rdp_bench.engine.jobs import CraftJob, Job
    from rdp_bench.engine.progress import Costs, duration, measure

    to_do: Sequence[Job] = plan.jobs
    if not options.fresh:
        prefix_reuse.drop_damaged(plan, plan.jobs)
        prefix_reuse.copy_shared_shards(plan)
        to_do = plan.to_do(plan.jobs)
    keys = {job.key for job in to_do}
    costs = measure(plan, to_do) if to_do and options.measure else Costs(plan)
    for job in plan.jobs:
        if isinstance(job, CraftJob):
            state = f"about {duration(costs.of(job))}" if job.key in keys else "cached"
            click.echo(f"{job.key[:8]}  {job!s:44} {plan.n} images  {state}")
            if job.key in keys and log.isEnabledFor(logging.INFO):
                why = plan.store.closest_record_diff("adv", job.record)
                click.echo(f"          nearest cached set differs in {'; '.join(why[:4]) or 'everything'}")
    judges = [job for job in to_do if not isinstance(job, CraftJob)]
    click.echo(f"{sum(1 for _ in plan.grid.cells())} cells; {len(judges)} evaluations to run")
    total = sum(costs.of(job) for job in to_do)
    click.echo(f"estimated time: {duration(total)}" if to_do else "everything is cached")
    if not all(costs.known(job) for job in to_do):
        click.echo(suite.ELSEWHERE_RATES)
