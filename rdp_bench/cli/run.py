"""`rdp-bench run`: its flags, its plan in words, what it prints at the end."""

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rdp_bench.budgets import NORMS, show_eps
from rdp_bench.cache.store import Store
from rdp_bench.cli import cache as cli_cache
from rdp_bench.data.adversarial import ELSEWHERE, SCHEME
from rdp_bench.errors import UsageError
from rdp_bench.terminal import printable

if TYPE_CHECKING:
    from rdp_bench.engine.grid import Grid
    from rdp_bench.engine.plan import Plan
    from rdp_bench.engine.run import Run

log = logging.getLogger("rdp_bench")

MANY_CELLS, MOST_CELLS = 10_000, 1_000_000

DEFAULT_OUT = "rdp-bench-out"

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
def run(**options: Any) -> None:
    """Run a grid: craft adversarial sets, judge every defense, write OUT/results.csv.

    A run can be stopped at any moment; the same command goes on from there. Where the grid lists grids (paper), each is
    run in turn, and --source, --target, --attack, --defense and --eps select among what each has.
    """
    from rdp_bench.engine import grid
    from rdp_bench.engine.run import summary

    _checked(options)
    options["made"] = set() if options["fresh"] else None
    names = grid.expand_suite(options["grid_name"])
    if names != [options["grid_name"]]:
        from rdp_bench.cli import suite

        sys.exit(suite.run_all(names, options))
    plan = plan_of(load_grid(options["grid_name"], options, changes(options)), options)
    if options["dry_run"]:
        _dry_run(plan, options)
        return
    running = perform(plan, options)
    _print_table(running)
    click.echo(f"\n{summary(running)}; {next_step(options['out'], options['cache'])}")
    for cell, reason in list(running.failed.items())[:5]:
        click.echo(f"failed: {cell}: {reason}", err=True)
    if running.failed:
        sys.exit(1)


def perform(plan: "Plan", options: dict[str, Any], heading: str = "") -> "Run":
    """Do what a plan still lacks, with a bar and what the networks are held against; OUT is written."""
    from rdp_bench.engine.run import Run, summary

    _writable(options["out"], "--out")
    running = Run(plan, options["out"], _command())
    jobs = running.start(options["made"])
    click.echo(f"{heading}{plan.grid.title}", err=True)
    click.echo(
        f"{plan.n} images of {plan.dataset.name}, profile {plan.grid.profile}, on {plan.device}: {summary(running)}",
        err=True,
    )
    lacks_results = jobs or not _accuracies_known(plan)
    if lacks_results:
        _writable(plan.store.root, "--cache")
    if lacks_results or running.lacks_cost:
        _work(running, jobs, options)
    else:
        running.check_accuracy(None)
        running.save()
    _print_checks(running)
    return running


def _work(running: "Run", jobs: list[Any], options: dict[str, Any]) -> None:
    from rdp_bench.engine.progress import Costs, ProgressBar, measure

    bar = ProgressBar(jobs, Costs(running.plan), show_bar=options["progress"])
    try:
        bar.set_description("loading torch and the networks, measuring clean accuracy")
        from rdp_bench.engine.worker import Worker

        batch = options["batch_size"]
        worker = Worker(running.plan, None if batch == "auto" else int(batch))
        running.check_accuracy(worker)
        bar.set_description("timing each part on two images")
        bar.set_costs(measure(running.plan, jobs))
        worker.report = bar
        running.execute(jobs, worker)
        if running.lacks_cost:
            bar.set_description("measuring what each defense costs")
            from rdp_bench.engine import defense_cost

            running.keep_cost(defense_cost.measure(worker))
    finally:
        bar.close()


def _checked(options: dict[str, Any]) -> None:
    if options["limit"] is not None and options["limit"] < 1:
        raise UsageError(f"--limit {options['limit']}: at least one image is needed")
    batch = options["batch_size"]
    if batch != "auto" and not (batch.isdecimal() and batch.isascii() and int(batch) > 0):
        raise UsageError(f"--batch-size {batch}: expected auto or a number above 0")


FLAGS = {"sources": "source", "targets": "target", "attacks": "attack", "defenses": "defense", "eps": "eps"}
"""The flag of each axis."""


def changes(options: dict[str, Any]) -> dict[str, Any]:
    """What the flags put in the place of a grid's axes."""
    given: dict[str, Any] = {axis: options[flag] for axis, flag in FLAGS.items() if options[flag]}
    if "targets" in given:
        given["baselines"] = ()
    if not options["source"] and options["attack"] and all(label.startswith(SCHEME) for label in options["attack"]):
        given["sources"] = (ELSEWHERE,)
    scalars = ("dataset", "defense_samples", "norm", "success", "image_size")
    return given | {name: options[name] for name in scalars if options[name] is not None}


def load_grid(name: str, options: dict[str, Any], given: dict[str, Any]) -> "Grid":
    """The grid of this name with `given` axes, once everything that it may name is registered."""
    from rdp_bench import plugins
    from rdp_bench.engine import grid
    from rdp_bench.weights import files as weight_files

    plugins.load(options["plugins_"])
    weight_files.set_search_dir(options["models_dir"])
    chosen, files = grid.load(name, options["profile"], given)
    if files:
        plugins.load(files)
        chosen, _ = grid.load(name, options["profile"], given)
    _say_size(chosen)
    return chosen


def _say_size(grid: "Grid") -> None:
    """A product of long axes takes minutes to plan before anything else is said."""
    a, count = grid.axes, grid.count
    if count < MANY_CELLS:
        return
    names = ("sources", "attacks", "eps", "defenses", "targets")
    axes = " x ".join(f"{len(getattr(a, name))} {name}" for name in names)
    if count > MOST_CELLS:
        raise UsageError(f"grid {grid.name}: {count:,} cells ({axes}); at most {MOST_CELLS:,} fit in one run, split it")
    click.echo(f"grid {grid.name}: {count:,} cells ({axes})", err=True)


def plan_of(grid: "Grid", options: dict[str, Any]) -> "Plan":
    """The plan of a grid under the flags."""
    from rdp_bench import environment
    from rdp_bench.engine.plan import make_plan

    return make_plan(
        grid,
        Store(options["cache"], read_only=options["dry_run"]),
        seed=options["seed"],
        device=environment.choose_device(options["device"]),
        limit=options["limit"],
        models_dir=options["models_dir"],
    )


def _dry_run(plan: "Plan", options: dict[str, Any]) -> None:
    from rdp_bench.engine import prefix_reuse
    from rdp_bench.engine.jobs import CraftJob
    from rdp_bench.engine.progress import duration, measure

    jobs = plan.jobs()
    if options["fresh"]:
        to_do = jobs
    else:
        prefix_reuse.drop_damaged(plan, jobs)
        prefix_reuse.link_shared_shards(plan)
        to_do = plan.to_do(jobs)
    keys = {job.key for job in to_do}
    costs = measure(plan, to_do) if to_do else None
    for job in jobs:
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


def _accuracies_known(plan: "Plan") -> bool:
    return all(plan.done(job) for job in plan.clean_check())


def _command() -> str:
    import shlex

    return shlex.join(["rdp-bench", *sys.argv[1:]])


def next_step(out: Path, cache: Path | None) -> str:
    """Where the results are, and the command that reports them: with the run's own cache, where one was named."""
    import shlex

    words = ["rdp-bench", "report"]
    words += ["--out", str(out)] if str(out) != DEFAULT_OUT else []
    words += ["--cache", str(cache)] if cache else []
    return f"{out / 'results.csv'}; next: {shlex.join(words)}"


def _writable(folder: Path, option: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UsageError(f"{option} {folder} cannot be written to ({error.strerror}); name another folder") from error


def _print_checks(running: "Run") -> None:
    """Whether the numbers below may be trusted, as far as others' numbers can say."""
    if checks := running.cross_check():
        click.echo("\nnetworks and attacks against others' numbers (data/crosscheck.toml)")
        for check in checks:
            click.echo(str(check))


def _print_table(running: "Run") -> None:
    """The measured numbers as plain text, a block a source and target, in table order."""
    from rdp_bench.specs import Cell

    axes, rows = running.plan.grid.axes, running.rows
    clean = axes.clean
    columns = [printable(attack, lines=False) for attack in axes.attacks]
    wide = [max(10, len(column)) for column in columns]  # never cut: two names may begin alike
    width = max(len(label) for label in axes.defenses)
    name = axes.dataset

    def number(cell: Cell, width: int = 10) -> str:
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
                    cells = [Cell(name, source, attack, eps, target, defense) for attack in axes.attacks]
                    click.echo(f"{defense:{width}} {' '.join(map(number, cells, wide))}")
        if clean:
            click.echo(f"\naccuracy % of {target} on clean images")
            for defense in guards:
                click.echo(f"{defense:{width}} {number(Cell(name, '-', 'clean', 0.0, target, defense))}")
