"""`rdp-bench run`: its flags, its plan in words, what it prints at the end."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rdp_bench.budgets import NORMS, show_eps
from rdp_bench.cli import cache as cli_cache
from rdp_bench.cli import suite
from rdp_bench.cli.perform import DEFAULT_OUT, load_grid, next_step, perform, plan_of, run_options
from rdp_bench.data.adversarial import ELSEWHERE
from rdp_bench.terminal import printable

if TYPE_CHECKING:
    from rdp_bench.engine.plan import Plan
    from rdp_bench.engine.run import Run

log = logging.getLogger("rdp_bench")


out_option = click.option(
    "--out", type=click.Path(path_type=Path), default=DEFAULT_OUT, show_default=True, help="Results folder."
)
plugin_option = click.option(
    "--plugin", "plugins_", multiple=True, type=click.Path(path_type=Path), help="Python file with entries of your own."
)

_AXIS: dict[str, Any] = {"multiple": True, "metavar": "NAME"}


@click.command()
@click.option("--grid", "grid_name", required=True, metavar="NAME|FILE", help="Built-in grid or a path to a TOML file.")
@click.option("--profile", default="embedded", show_default=True, help="Which profile of the grid: embedded or paper.")
@click.option("--dataset", metavar="NAME|FOLDER|CSV", help="Images to use instead of the grid's.")
@click.option("--limit", type=int, help="Use only the first N images.")
@click.option(
    "--image-size",
    type=int,
    metavar="PIXELS",
    help="Resize images to this as they are read, before any attack.  [default: the data set's, mostly 299]",
)
@click.option("--source", **_AXIS, help="Source model, or a+b for an ensemble; repeatable.")
@click.option("--target", **_AXIS, help="Target model; repeatable.")
@click.option("--attack", **_AXIS, help='Attack, like "ti-dim", "dim(steps=10)" or "MI|DI(p=.5)"; repeatable.')
@click.option("--defense", **_AXIS, help='Defense, like "jpeg(quality=95)" or a chain, "jpeg >> rdp"; repeatable.')
@click.option("--eps", multiple=True, help="L-infinity budget in /255, like 8 or 8/255; repeatable.")
@click.option("--norm", type=click.Choice(NORMS), help="Norm of the budget.  [default: the grid's, or linf]")
@click.option("--defense-samples", type=int, help="Draws judged of a random defense.  [default: the grid's, or 1]")
@click.option(
    "--success", is_flag=True, default=None, help="Also attack success over images that are right when clean."
)
@click.option("--models-dir", type=click.Path(path_type=Path), help="Folder where weight files are looked for first.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:<number>.")
@click.option(
    "--batch-size",
    default="auto",
    show_default=True,
    help="Images at once; auto: 20 on a CPU, 64 on a GPU, a quarter through a defense.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of all randomness.")
@out_option
@cli_cache.option
@plugin_option
@click.option("--dry-run", is_flag=True, help="Print the plan, what is cached and how long the rest would take.")
@click.option(
    "--fresh", is_flag=True, help="Compute the selected cells again; what the cache holds of them is deleted."
)
@click.option("--progress/--no-progress", default=None, help="Force the progress bar on or off.")
def run(grid_name: str, **flags: Any) -> None:
    """Run a grid: craft adversarial sets, judge every defense, write OUT/results.csv.

    A run can be stopped at any moment; the same command goes on from there. Where the grid lists grids (paper), each is
    run in turn, and --source, --target, --attack, --defense and --eps select among what each has.
    """
    from rdp_bench.engine import grid
    from rdp_bench.engine.run import summary

    options = run_options(flags)
    names = grid.expand_suite(grid_name)
    if names != [grid_name]:
        sys.exit(suite.run_all(names, options))
    plan = plan_of(load_grid(grid_name, options, options.changes), options)
    if options.dry_run:
        _dry_run(plan, fresh=options.fresh)
        return
    running = perform(plan, options, set() if options.fresh else None)
    _print_table(running)
    click.echo(f"\n{summary(running)}; {next_step(options.out, options.cache)}")
    for cell, reason in list(running.failed.items())[:5]:
        click.echo(f"failed: {cell}: {reason}", err=True)
    if running.failed:
        sys.exit(1)


def _dry_run(plan: "Plan", *, fresh: bool) -> None:
    from rdp_bench.engine import prefix_reuse
    from rdp_bench.engine.jobs import CraftJob, Job
    from rdp_bench.engine.progress import duration, measure

    to_do: Sequence[Job] = plan.jobs
    if not fresh:
        prefix_reuse.drop_damaged(plan, plan.jobs)
        prefix_reuse.link_shared_shards(plan)
        to_do = plan.to_do(plan.jobs)
    keys = {job.key for job in to_do}
    costs = measure(plan, to_do) if to_do else None
    for job in plan.jobs:
        if isinstance(job, CraftJob):
            state = f"about {duration(costs.of(job))}" if costs and job.key in keys else "cached"
            click.echo(f"{job.key[:8]}  {job!s:44} {plan.n} images  {state}")
            if job.key in keys and log.isEnabledFor(logging.INFO):
                why = plan.store.closest_record_diff("adv", job.record)
                click.echo(f"          nearest cached set differs in {'; '.join(why[:4]) or 'everything'}")
    judges = [job for job in to_do if not isinstance(job, CraftJob)]
    click.echo(f"{sum(1 for _ in plan.grid.cells())} cells; {len(judges)} judgements to make")
    total = sum(costs.of(job) for job in to_do) if costs else 0.0
    click.echo(f"estimated time: {duration(total)}" if to_do else "everything is cached")


def _print_table(running: "Run") -> None:
    """The measured numbers as plain text, a block a source and target, in table order."""
    from rdp_bench.specs import CellKey

    axes, rows = running.plan.grid.axes, running.rows
    clean = axes.clean
    columns = [printable(attack, lines=False) for attack in axes.attacks]
    wide = [max(10, len(column)) for column in columns]  # never cut: two names may begin alike
    width = max(len(label) for label in axes.defenses)

    def number(cell: CellKey, width: int = 10) -> str:
        value = rows[cell]["value"] if cell in rows else ""
        return f"{float(value):{width}.1f}" if value not in ("", None) else f"{rows[cell]['status']:>{width}}"

    for target in axes.targets + axes.baselines:
        guards = [defense for defense in axes.defenses if target in axes.targets_for(defense)]
        for eps in axes.eps if axes.attacks else ():
            for source in axes.sources:
                crafted = source if source == ELSEWHERE else f"on {source}"
                click.echo(f"\nerror % of {target}, crafted {crafted}, eps {show_eps(eps, axes.norm)}")
                heads = [f"{column:>{size}}" for column, size in zip(columns, wide, strict=True)]
                click.echo(f"{'':{width}} {' '.join(heads)}")
                for defense in guards:
                    cells = [CellKey(source, attack, eps, target, defense) for attack in axes.attacks]
                    click.echo(f"{defense:{width}} {' '.join(map(number, cells, wide))}")
        if clean:
            click.echo(f"\naccuracy % of {target} on clean images")
            for defense in guards:
                click.echo(f"{defense:{width}} {number(CellKey.clean(target, defense))}")
