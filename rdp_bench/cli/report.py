"""`rdp-bench report`: the page, the tables and the figures of a results folder."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rdp_bench.cli import common
from rdp_bench.errors import RdpBenchError, UsageError

if TYPE_CHECKING:
    from rdp_bench.cache.files import Location


@click.command()
@common.out
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
@common.cache
def report(
    out: Path,
    only: tuple[str, ...],
    compare: tuple[Path, Path] | None,
    to: Path | None,
    open_: bool,
    cache: "Location | None",
) -> None:
    """Write OUT/report: index.html, tables (CSV, LaTeX, Markdown) and figures (SVG, PNG, PDF).

    With --compare: compare.html and compare.csv instead.
    """
    from rdp_bench.cache.store import Store

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
