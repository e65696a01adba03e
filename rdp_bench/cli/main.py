"""The command line. Nothing heavy is imported before it is needed: `--help` and `list` answer at once."""

import logging
import os
import sys
from pathlib import Path
from typing import Any

import click

from rdp_bench import __version__
from rdp_bench.cache.store import Location, Store, default_root
from rdp_bench.cli import audit, check, cite, data, purify, results, run, show, status, train, verify, weights
from rdp_bench.cli import cache as cli_cache
from rdp_bench.errors import FetchError, RdpBenchError, UsageError
from rdp_bench.terminal import OneLine, printable, terminal

log = logging.getLogger("rdp_bench")


class _Group(click.Group):
    """Reports errors as one line and an exit status."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        with terminal():
            return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RdpBenchError as error:
            several = isinstance(error, FetchError)  # a line for each place that was tried
            click.echo(f"error: {printable(str(error), lines=several)}", err=True)
            ctx.exit(2 if isinstance(error, UsageError) else 1)
        except KeyboardInterrupt:
            click.echo("stopped; finished work is kept, and the same command continues from there", err=True)
            ctx.exit(130)
        except (click.exceptions.Exit, click.ClickException, click.Abort):
            raise
        except Exception as error:  # a file's trouble, an entry's, or a mistake of ours
            click.echo(f"error: {printable(_line(error), lines=False)}", err=True)
            log.info("where that was", exc_info=True)
            ctx.exit(1)


def _accept_verbose(group: click.Group) -> None:
    """Give every subcommand -v too, so that it may come after it."""

    def set_level(ctx: click.Context, _: click.Parameter, value: bool) -> None:  # noqa: ARG001 - click's
        if value:
            log.setLevel(logging.INFO)

    for command in group.commands.values():
        if isinstance(command, click.Group):
            _accept_verbose(command)
        flag: dict[str, Any] = {"is_flag": True, "expose_value": False, "help": "Print more on stderr."}
        command.params.append(click.Option(["-v", "--verbose"], callback=set_level, **flag))


def _line(error: Exception) -> str:
    """An unexpected error in one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error} (rdp-bench -v says where)"


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "--version", prog_name="rdp-bench")
@click.option("-v", "--verbose", is_flag=True, help="Print more on stderr.")
def main(verbose: bool) -> None:
    """Measure defenses that purify a classifier's input against transfer attacks.

    Start with: rdp-bench run table1, then: rdp-bench report
    """
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine("%(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    log.setLevel(logging.INFO if verbose else logging.WARNING)


@main.command("list")
@click.argument("kind", type=click.Choice(["attacks", "defenses", "models", "datasets", "grids"]))
@run.plugin_option
def list_(kind: str, plugins_: tuple[Path, ...]) -> None:
    """List attacks, defenses, models, datasets or grids."""
    from rdp_bench import plugins, registry

    package_name = {"attacks": ("attacks",), "defenses": ("defenses",), "datasets": ("data",)}.get(kind, ())
    plugins.load(plugins_, package_name)
    if kind == "grids":
        from rdp_bench.engine import grid

        rows = list(grid.builtin().items())
    else:
        reg: registry.Registry[Any] = registry.registries[kind.removesuffix("s")]
        rows = [(name, f"{entry.summary}  [{entry.source}]") for name, entry in sorted(reg.entries.items())]
        rows += [(scheme.example, f"any {scheme.name}") for scheme in reg.label_schemes]
    if kind == "models":
        from rdp_bench.models.card import cards

        rows = [(card.name, f"{card.summary}  [{_where(card)}]") for card in cards().values()] + rows
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
@click.option("--models-dir", type=click.Path(path_type=Path), help="Folder searched first for weight files.")
@cli_cache.option
def doctor(models_dir: Path | None, cache: Location | None) -> None:
    """Print what is installed (device, weights, data), and what each profile lacks and how to get it."""
    from rdp_bench import environment, plugins, registry
    from rdp_bench.data.open import open_dataset
    from rdp_bench.metrics.measurements import MEASUREMENTS
    from rdp_bench.models import zoo
    from rdp_bench.models.card import cards
    from rdp_bench.specs import FileSearch

    plugins.load()
    files = FileSearch(models_dir=models_dir)
    for name, value in environment.versions().items():
        click.echo(f"{name:14} {value}")
    for extra in ("torchattacks", "torchattack", "spandrel"):
        if extra not in environment.versions():
            click.echo(f"{extra:14} absent (optional): pip install 'rdp-bench[{extra}]'")
    click.echo(f"{'processor':14} {environment.processor()}, {os.cpu_count()} threads")
    device = environment.choose_device("auto")
    click.echo(f"{'device':14} {environment.describe(device)['device_name'] if device != 'cpu' else 'cpu (no CUDA)'}")
    root = cache or default_root()
    click.echo(f"{'cache':14} {root}")
    click.echo("\nmodels")
    for name, card in cards().items():
        try:
            member = zoo.find(name, models_dir)
            here = "here" if isinstance(member, zoo.ModelRef) and member.file else "downloaded at first use (network)"
        except RdpBenchError as error:
            here = f"missing: {error}"
        click.echo(f"  {card.name:18} {here}")
    click.echo("\ndefenses")
    for name in registry.defense.entries:
        try:
            registry.defense.resolve(name, files=files).value.resolved()
            click.echo(f"  {name:18} here")
        except RdpBenchError as error:
            click.echo(f"  {name:18} missing: {error}")
    click.echo("\nmeasurements")
    for name, each in MEASUREMENTS.items():
        click.echo(f"  {name:18} {'here' if each.facts() is not None else f'missing (optional): {each.install}'}")
    click.echo("\ndata sets")
    for name in registry.dataset.entries:
        try:
            click.echo(f"  {name:18} here, {len(open_dataset(name).labels)} images")
        except RdpBenchError as error:
            click.echo(f"  {name:18} missing: {error}")
    click.echo("\nprofiles")
    from rdp_bench.cli.profiles import lacking

    for profile in ("embedded", "paper"):
        missing = lacking(profile, models_dir)
        click.echo(f"  {profile:18} {'ready' if not missing else f'lacks {len(missing)}:'}")
        for what, why in missing.items():
            click.echo(f"    {what}: {why}")


@main.command()
@run.out_option
@click.option("--only", multiple=True, metavar="GRID", help="Only these grids; repeatable.")
@click.option(
    "--compare",
    nargs=2,
    type=click.Path(path_type=Path),
    metavar="A B",
    help="Compare two results folders, cell by cell.",
)
@click.option("--to", type=click.Path(path_type=Path), help="Folder to write.  [default: OUT/report]")
@click.option("--open", "open_", is_flag=True, help="Open the page in a browser.")
@cli_cache.option
def report(
    out: Path,
    only: tuple[str, ...],
    compare: tuple[Path, Path] | None,
    to: Path | None,
    open_: bool,
    cache: Location | None,
) -> None:
    """Write OUT/report: index.html, tables (CSV, LaTeX, Markdown) and figures (SVG, PNG, PDF).

    With --compare: compare.html and compare.csv instead.
    """
    if compare:
        from rdp_bench.reports.compare import render

        page, compared = render(compare, Store(cache), out, only, to)
        click.echo(compared, err=True)
        click.echo(page)
        _open(page, open_)
        return
    from rdp_bench.results.cards import FOLDER

    if not any(any((out / folder).glob("*.json")) for folder in ("runs", FOLDER)):
        raise UsageError(f"{out} holds no run; start with: rdp-bench run table1 --out {out}")
    from rdp_bench import reports

    lost: list[str] = []
    page = reports.render(out, Store(cache), list(only) or None, lost.append, to)
    click.echo(page)
    _open(page, open_)
    for line in lost:
        click.echo(line, err=True)
    if lost:
        sys.exit(1)


def _open(page: Path, wanted: bool) -> None:
    import webbrowser

    if wanted and not webbrowser.open(page.resolve().as_uri()):
        raise RdpBenchError(f"no browser could be opened; the page is {page}")


@main.command()
@run.out_option
@click.option("--to", type=click.Path(path_type=Path), help="Folder to write.  [default: OUT/export]")
@click.option("--dataset", metavar="NAME|FOLDER|CSV", help="The run's data set, if it has moved.")
@click.option("--only", multiple=True, metavar="GRID", help="Only the run of this grid; repeatable.")
@click.option("--predictions/--no-predictions", default=True, help="Predictions for every image.  [default: yes]")
@click.option("--images", is_flag=True, help="Also export adversarial images, as PNG; they are in the cache only.")
@click.option("--parquet", is_flag=True, help="Predictions as Parquet instead of CSV (needs pyarrow).")
@run.plugin_option
@cli_cache.option
def export(
    out: Path,
    to: Path | None,
    dataset: str | None,
    only: tuple[str, ...],
    predictions: bool,
    images: bool,
    parquet: bool,
    plugins_: tuple[Path, ...],
    cache: Location | None,
) -> None:
    """Export the predictions for every image, which OUT holds, and adversarial images."""
    from rdp_bench import plugins
    from rdp_bench.results.export import export as write

    plugins.load(plugins_, ("data",))
    to = to or out / "export"
    found = write(out, Store(cache), to, dataset, images=images, parquet=parquet, only=only, predictions=predictions)
    click.echo(f"{to}: {found['predictions']} predictions, {found['images']} images")
    if found["lacking"]:
        click.echo(f"{found['lacking']} adversarial sets are not in the cache; run the grid again", err=True)
        sys.exit(1)


main.add_command(run.run)
main.add_command(cli_cache.cache_)
main.add_command(train.train)
main.add_command(data.data_)
main.add_command(weights.weights_)
main.add_command(check.check)
main.add_command(cite.cite)
main.add_command(purify.purify)
main.add_command(show.show)
main.add_command(verify.verify)
main.add_command(results.results)
main.add_command(status.status)
main.add_command(audit.audit)
_accept_verbose(main)

if __name__ == "__main__":
    main()
