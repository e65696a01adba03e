"""From the flags of `run` to a plan, and from a plan to OUT: what one grid and a suite of grids share."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rdp_bench.api.work import lacks_results, work
from rdp_bench.cache.store import Store
from rdp_bench.data.adversarial import ELSEWHERE, SCHEME
from rdp_bench.errors import UsageError

if TYPE_CHECKING:
    from rdp_bench.engine.grid import Grid
    from rdp_bench.engine.plan import Plan
    from rdp_bench.engine.run import Run

MANY_CELLS, MOST_CELLS = 10_000, 1_000_000

DEFAULT_OUT = "rdp-bench-out"

FLAGS = {"sources": "source", "targets": "target", "attacks": "attack", "defenses": "defense", "eps": "eps"}
"""The flag of each axis."""


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
    if lacks_results(running, jobs):
        _writable(plan.store.root, "--cache")
    batch = options["batch_size"]
    work(running, jobs, None if batch == "auto" else int(batch), options["progress"])
    _print_checks(running)
    return running


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
