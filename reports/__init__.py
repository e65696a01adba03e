"""Reports: OUT/runs and the store -> OUT/report (a page, tables in four formats, figures in three)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rdp_bench.errors import unknown

if TYPE_CHECKING:
    from rdp_bench.reports.exhibit import Exhibit
    from rdp_bench.reports.html import Section
    from rdp_bench.store import Store
    from rdp_bench.table import Run

FEW = 3
"""Runs on a page that leave room for all examples of each."""


def render(out: Path, store: "Store", only: Sequence[str] | None = None) -> Path:
    """Write OUT/report from the runs of OUT (those of the grids in `only`, if given); the page's path.

    Raises:
        UsageError: there is no run, a grid of `only` has none, or a record cannot be read.
    """
    from rdp_bench.reports import html, reading
    from rdp_bench.store import write_atomic
    from rdp_bench.table import load

    runs = reading.in_order(load(out, store))
    for name in only or ():
        if name not in (grids := [run.grid for run in runs]):
            raise unknown("run of grid", name, grids)
    folder = out / "report"
    shown = [run for run in runs if not only or run.grid in only]
    sections = [_section(folder, run, store, len(shown) > FEW) for run in shown]
    page = folder / "index.html"
    write_atomic(page, html.page(sections, reading.absent(runs)).encode())
    return page


def _section(folder: Path, run: "Run", store: "Store", crowded: bool) -> "Section":
    """Write a run's tables and figures; what the page needs of it."""
    from rdp_bench.reports import beyond, claims, draws, strip
    from rdp_bench.reports.answers import answers
    from rdp_bench.reports.exhibit import exhibits, slug
    from rdp_bench.reports.html import Section
    from rdp_bench.reports.plates import plates
    from rdp_bench.store import write_atomic

    found = answers(run)
    if found:
        write_atomic(folder / "tables" / f"{slug(run.grid, 'claims')}.csv", claims.sheet(run, found).encode())
    tables = [*exhibits(run), *draws.tables(run), *beyond.tables(run)]
    for table in tables:
        _write_table(folder / "tables", table)
    drawn = plates(run, store, tables)
    for plate in drawn:
        for ending, content in plate.files.items():
            write_atomic(folder / "figures" / f"{slug(run.grid, plate.name)}.{ending}", content)
    return Section(run, slug(run.grid), found, tables, drawn, strip.examples(run, store, crowded))


def _write_table(folder: Path, table: "Exhibit") -> None:
    from rdp_bench.reports import latex, markdown, sheet
    from rdp_bench.store import write_atomic

    for ending, text in {
        ".csv": sheet.shape(table),
        ".tests.csv": sheet.tests(table),
        ".tex": latex.table(table),
        ".md": markdown.table(table),
    }.items():
        write_atomic(folder / f"{table.slug}{ending}", text.encode())
