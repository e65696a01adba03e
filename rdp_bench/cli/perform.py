"""From the flags of `run` to a plan, and from a plan to OUT: what one grid and a suite of grids share."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rdp_bench.api.names import names_of
from rdp_bench.api.work import lacks_results, work
from rdp_bench.cache.store import Store
from rdp_bench.cli.lines import JobLines
from rdp_bench.data.adversarial import ELSEWHERE, SCHEME
from rdp_bench.errors import UsageError
from rdp_bench.specs import split

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
    names = names_of(plan.grid, _given_names(options, strict=not heading))
    jobs = running.start(options["made"])
    running.record["names"] = names
    click.echo(f"{heading}{plan.grid.title}", err=True)
    click.echo(
        f"{plan.n} images of {plan.dataset.name}, profile {plan.grid.profile}, on {plan.device}: {summary(running)}",
        err=True,
    )
    if lacks_results(running, jobs):
        _writable(plan.store.root, "--cache")
    batch = options["batch_size"]
    quiet = options["progress"] is None and not sys.stderr.isatty()
    lines = JobLines(lambda line: click.echo(line, err=True)) if quiet else None
    work(running, jobs, None if batch == "auto" else int(batch), options["progress"], lines)
    _print_checks(running)
    return running


def split_lists(options: dict[str, Any]) -> None:
    """Replace "a,b" in the flags of axes by "a" and "b", in place.

    A label with a colon is left whole: a file's name may hold commas.
    """
    for flag in FLAGS.values():
        found: list[str] = []
        for text in options[flag]:
            plus = "+" if text.startswith("+") else ""
            parts = split(text.removeprefix(plus), ",")
            whole = any(":" in part.removeprefix("timm:") for part in parts)
            if len(parts) > 1 and not all(parts):
                raise UsageError(f"--{flag} {text}: a name is missing beside a comma")
            found += [text] if whole else [plus + part for part in parts]
        options[flag] = tuple(found)


def added(options: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """What `+NAME` adds to a grid's axes, by axis.

    Raises:
        UsageError: names with and without "+" for one axis.
    """
    found = {}
    for axis, flag in FLAGS.items():
        plus = tuple(text[1:].strip() for text in options[flag] if text.startswith("+"))
        if plus and len(plus) < len(options[flag]):
            raise UsageError(f"--{flag}: +NAME adds to the grid's axis, NAME replaces it; use one of the two")
        if not all(plus):
            raise UsageError(f"--{flag} +: name what to add, like --{flag} +NAME")
        if plus:
            found[axis] = plus
    return found


def changes(options: dict[str, Any]) -> dict[str, Any]:
    """What the flags put in the place of a grid's axes."""
    plus = added(options)
    given: dict[str, Any] = {axis: options[flag] for axis, flag in FLAGS.items() if options[flag] and axis not in plus}
    if "targets" in given:
        given["baselines"] = ()
    attacks = given.get("attacks", ())
    if not options["source"] and attacks and all(label.startswith(SCHEME) for label in attacks):
        given["sources"] = (ELSEWHERE,)
    scalars = ("dataset", "defense_samples", "norm", "success", "image_size")
    return given | {name: options[name] for name in scalars if options[name] is not None}


def load_grid(name: str, options: dict[str, Any], given: dict[str, Any], *, one_of_many: bool = False) -> "Grid":
    """The grid of this name with `given` axes and what `+NAME` adds, once everything it may name is registered.

    As `one_of_many`, a grid without attacks is left without them.
    """
    from rdp_bench import plugins
    from rdp_bench.engine import grid
    from rdp_bench.weights import files as weight_files

    plugins.load(options["plugins_"])
    weight_files.set_search_dir(options["models_dir"])
    chosen, files = grid.load(name, options["profile"], given)
    if files:
        plugins.load(files)
        chosen, _ = grid.load(name, options["profile"], given)
    more = added(options)
    if one_of_many and not chosen.axes.attacks:
        more = {axis: labels for axis, labels in more.items() if axis in ("defenses", "targets")}
    chosen = grid.extend(chosen, more)
    _say_size(chosen)
    return chosen


def _given_names(options: dict[str, Any], *, strict: bool) -> dict[str, str]:
    """What --name says, by label; `strict`: what it names must be part of the run."""
    found = {}
    for text in options["names"]:
        label, *rest = split(text, "=")
        if not label or not rest:
            raise UsageError(f'--name {text}: expected LABEL=NAME, like --name "rdp=Ours"')
        found[label] = text.strip()[len(label) :].lstrip().removeprefix("=").strip()
    return found if strict else {f"?{label}": name for label, name in found.items()}


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
