"""From the flags of `run` to a plan, and from a plan to OUT: what one grid and a suite of grids share."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rdp_bench.cli.common import DEFAULT_OUT
from rdp_bench.cli.where import chosen, where_of
from rdp_bench.errors import UsageError
from rdp_bench.specs import split
from rdp_bench.terminal import counted

if TYPE_CHECKING:
    from rdp_bench.cache.files import Location
    from rdp_bench.engine.grid import Grid
    from rdp_bench.engine.options import RunOptions
    from rdp_bench.engine.plan import Plan
    from rdp_bench.engine.run import Run

MANY_CELLS, MOST_CELLS = 10_000, 1_000_000

FLAGS = {"sources": "source", "targets": "target", "attacks": "attack", "defenses": "defense", "eps": "eps"}
"""The flag of each axis."""


def perform(
    plan: "Plan",
    options: "RunOptions",
    made: set[str] | None = None,
    heading: str = "",
    watch: "Callable[[Run], None] | None" = None,
) -> "Run":
    """Do what a plan still lacks, with a bar, compare its networks with published numbers, and write OUT.

    Args:
        plan: what is to be there at the end.
        options: the flags of the command.
        made: the keys that `--fresh` has computed again so far.
        heading: what stands before the title of the grid.
        watch: called with the run once it is known what is cached, and after each job.
    """
    from rdp_bench.api.names import names_of
    from rdp_bench.api.work import lacks_results, work
    from rdp_bench.cli.lines import JobLines
    from rdp_bench.engine.run import Run, summary

    _writable(options.out, "--out")
    running = Run(plan, options.out, _command())
    # Of several grids, each has some of the labels that are given names.
    given = {f"?{label}": name for label, name in options.names.items()} if heading else options.names
    names = names_of(plan.grid, given)
    jobs = running.start(made)
    running.record["names"] = names
    click.echo(f"{heading}{plan.grid.title}", err=True)
    click.echo(
        f"{counted(plan.n, 'image')} of {plan.dataset.name}, profile {plan.grid.profile}, on {plan.device}: "
        f"{summary(running)}",
        err=True,
    )
    if lacks_results(running, jobs):
        _writable(plan.store.root, "--cache")
    quiet = options.progress is None and not sys.stderr.isatty()
    lines = JobLines(lambda line: click.echo(line, err=True)) if quiet else None

    def seen(run: "Run") -> None:
        if lines is not None:
            lines.close()  # a job's line comes before the numbers that it completes
        if watch:
            watch(run)

    running.watch = seen
    seen(running)
    if said := work(running, jobs, options.batch_size, options.progress, lines, where_of(plan.grid, options)):
        click.echo(said, err=True)
    _print_checks(running)
    return running


def _split_lists(flags: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The labels that the flags of axes give, by flag: "a,b" stands for "a" and "b".

    "+a,b" and "+a,+b" stand for "+a" and "+b". A label with a colon is left whole: a file's name may hold commas.
    """
    given = {}
    for flag in FLAGS.values():
        found: list[str] = []
        for text in flags[flag]:
            plus = "+" if text.startswith("+") else ""
            parts = split(text.removeprefix(plus), ",")
            whole = any(":" in part.removeprefix("timm:") for part in parts)
            if len(parts) > 1 and not all(parts):
                raise UsageError(f"--{flag} {text}: a name is missing beside a comma")
            found += [text] if whole else [plus + part.removeprefix(plus) for part in parts]
        given[flag] = tuple(found)
    return given


def _added(flags: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """What `+NAME` adds to a grid's axes, by axis.

    Raises:
        UsageError: names with and without "+" for one axis.
    """
    found = {}
    for axis, flag in FLAGS.items():
        plus = tuple(text[1:].strip() for text in flags[flag] if text.startswith("+"))
        if plus and len(plus) < len(flags[flag]):
            raise UsageError(f"--{flag}: +NAME adds to the grid's axis, NAME replaces it; use one of the two")
        if not all(plus):
            raise UsageError(f"--{flag} +: name what to add, like --{flag} +NAME")
        if plus:
            found[axis] = plus
    return found


def run_options(flags: Mapping[str, Any]) -> "RunOptions":
    """What the flags of `run` say.

    Raises:
        UsageError: a flag that no run can have.
    """
    from rdp_bench.engine.options import RunOptions

    flags = {**flags, **_split_lists(flags)}
    batch = flags["batch_size"]
    if batch != "auto" and not (batch.isdecimal() and batch.isascii()):
        raise UsageError(f"--batch-size {batch}: expected auto or a number above 0")
    names = (
        "out", "cache", "models_dir", "profile", "limit", "seed", "device", "fresh", "dry_run", "measure", "precision",
        "progress",
    )  # fmt: skip
    return RunOptions(
        **{name: flags[name] for name in names},
        plugins=tuple(flags["plugins_"]),
        batch_size=None if batch == "auto" else int(batch),
        changes=_changes(flags),
        added=_added(flags),
        names=_given_names(flags["names"]),
        **chosen(flags),
    )


def _changes(flags: Mapping[str, Any]) -> dict[str, Any]:
    """What the flags put in the place of a grid's axes."""
    from rdp_bench.data.adversarial import ELSEWHERE, SCHEME

    plus = _added(flags)
    given: dict[str, Any] = {axis: flags[flag] for axis, flag in FLAGS.items() if flags[flag] and axis not in plus}
    if "targets" in given:
        given["baselines"] = ()
    attacks = given.get("attacks", ())
    if not flags["source"] and attacks and all(label.startswith(SCHEME) for label in attacks):
        given["sources"] = (ELSEWHERE,)
    scalars = ("dataset", "defense_samples", "norm", "success", "image_size")
    return given | {name: flags[name] for name in scalars if flags[name] is not None}


def load_grid(name: str, options: "RunOptions", given: Mapping[str, Any], *, one_of_many: bool = False) -> "Grid":
    """The grid of this name with `given` axes and what `+NAME` adds; loads the plugins that it and the flags name.

    As `one_of_many`, a grid without attacks gets no source, attack or eps.
    """
    from rdp_bench.engine import grid

    chosen, files = grid.load(name, options.profile, given)
    return settled(replace(chosen, plugins=(*options.plugins, *files)), options, one_of_many=one_of_many)


def settled(chosen: "Grid", options: "RunOptions", *, one_of_many: bool = False) -> "Grid":
    """A grid with its plugins loaded, its labels resolved and what `+NAME` adds."""
    from rdp_bench import plugins
    from rdp_bench.engine import grid

    plugins.load(chosen.plugins)
    chosen = grid.settle(chosen, options.models_dir)
    more = options.added
    if one_of_many and not chosen.axes.attacks:
        more = {axis: labels for axis, labels in more.items() if axis in ("defenses", "targets")}
    chosen = grid.extend(chosen, more)
    _say_size(chosen)
    return chosen


def _given_names(texts: Sequence[str]) -> dict[str, str]:
    """What --name says, by label."""
    found = {}
    for text in texts:
        label, *rest = split(text, "=")
        if not label or not rest:
            raise UsageError(f'--name {text}: expected LABEL=NAME, like --name "rdp=Ours"')
        found[label] = text.strip()[len(label) :].lstrip().removeprefix("=").strip()
    return found


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
    from rdp_bench.cache.store import Store
    from rdp_bench.engine.plan import make_plan

    return make_plan(
        grid,
        Store(options.cache, read_only=options.dry_run),
        seed=options.seed,
        device=where_of(grid, options).device(options.device),
        limit=options.limit,
        models_dir=options.models_dir,
        precision=options.precision,
    )


def _command() -> str:
    import shlex

    return shlex.join(["rdp-bench", *sys.argv[1:]])


def next_step(out: Path, cache: "Location | None") -> str:
    """Where the results are, and the command that reports them: with the run's own cache, where one was named."""
    return f"{out / 'results.csv'}; next: {report_command(out, cache)}"


def report_command(out: Path, cache: "Location | None") -> str:
    """The command that reports the results in `out`."""
    import shlex

    words = ["rdp-bench", "report"]
    words += ["--out", str(out)] if str(out) != DEFAULT_OUT else []
    words += ["--cache", str(cache)] if cache else []
    return shlex.join(words)


def _writable(folder: "Location", option: str) -> None:
    from rdp_bench.cache.url import UrlPath

    probe = folder / f".probe-{os.getpid()}"
    try:
        if isinstance(probe, UrlPath):
            probe.put(b"")
        else:
            probe.parent.mkdir(parents=True, exist_ok=True)
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
