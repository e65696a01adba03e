"""From the flags of `run` to a plan, and from a plan to OUT: what one grid and a suite of grids share."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rdp_bench.cache.store import Store
from rdp_bench.data.adversarial import ELSEWHERE, SCHEME
from rdp_bench.errors import UsageError

if TYPE_CHECKING:
    from rdp_bench.engine.grid import Grid
    from rdp_bench.engine.jobs import Job
    from rdp_bench.engine.options import RunOptions
    from rdp_bench.engine.plan import Plan
    from rdp_bench.engine.run import Run

MANY_CELLS, MOST_CELLS = 10_000, 1_000_000

DEFAULT_OUT = "rdp-bench-out"

FLAGS = {"sources": "source", "targets": "target", "attacks": "attack", "defenses": "defense", "eps": "eps"}
"""The flag of each axis."""


def perform(plan: "Plan", options: "RunOptions", made: set[str] | None = None, heading: str = "") -> "Run":
    """Do what a plan still lacks, with a bar, compare its networks with published numbers, and write OUT.

    `made` holds the keys that `--fresh` has computed again so far.
    """
    from rdp_bench.engine.run import Run, summary

    _writable(options.out, "--out")
    running = Run(plan, options.out, _command())
    jobs = running.start(made)
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


def _work(running: "Run", jobs: list["Job"], options: "RunOptions") -> None:
    from rdp_bench.engine.progress import Costs, ProgressBar, measure

    bar = ProgressBar(jobs, Costs(running.plan), show_bar=options.progress)
    try:
        bar.set_description("loading torch and the networks, measuring clean accuracy")
        from rdp_bench.engine.worker import Worker

        worker = Worker(running.plan, options.batch_size)
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


def run_options(flags: Mapping[str, Any]) -> "RunOptions":
    """What the flags of `run` say.

    Raises:
        UsageError: a flag that no run can have.
    """
    from rdp_bench.engine.options import RunOptions

    batch = flags["batch_size"]
    if batch != "auto" and not (batch.isdecimal() and batch.isascii()):
        raise UsageError(f"--batch-size {batch}: expected auto or a number above 0")
    names = ("out", "cache", "models_dir", "profile", "limit", "seed", "device", "fresh", "dry_run", "progress")
    return RunOptions(
        **{name: flags[name] for name in names},
        plugins=tuple(flags["plugins_"]),
        batch_size=None if batch == "auto" else int(batch),
        changes=_changes(flags),
    )


def _changes(flags: Mapping[str, Any]) -> dict[str, Any]:
    """What the flags put in the place of a grid's axes."""
    given: dict[str, Any] = {axis: flags[flag] for axis, flag in FLAGS.items() if flags[flag]}
    if "targets" in given:
        given["baselines"] = ()
    if not flags["source"] and flags["attack"] and all(label.startswith(SCHEME) for label in flags["attack"]):
        given["sources"] = (ELSEWHERE,)
    scalars = ("dataset", "defense_samples", "norm", "success", "image_size")
    return given | {name: flags[name] for name in scalars if flags[name] is not None}


def load_grid(name: str, options: "RunOptions", given: Mapping[str, Any]) -> "Grid":
    """The grid of this name with `given` axes; loads the plugins that the flags and the grid name."""
    from rdp_bench import plugins
    from rdp_bench.engine import grid

    chosen, files = grid.load(name, options.profile, given)
    plugins.load((*options.plugins, *files))
    chosen = grid.settle(chosen, options.models_dir)
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


def plan_of(grid: "Grid", options: "RunOptions") -> "Plan":
    """The plan of a grid under the flags."""
    from rdp_bench import environment
    from rdp_bench.engine.plan import make_plan

    return make_plan(
        grid,
        Store(options.cache, read_only=options.dry_run),
        seed=options.seed,
        device=environment.choose_device(options.device),
        limit=options.limit,
        models_dir=options.models_dir,
    )


def _accuracies_known(plan: "Plan") -> bool:
    return all(plan.done(job) for job in plan.clean_checks)


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
