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


def render(out: Path, store: "Store", only: Sequence[str] | None = None) -> Path:
    """Write OUT/report from the runs of OUT (those of the grids in `only`, if given); the page's path.

    Raises:
        UsageError: there is no run, a grid of `only` has none, or a record cannot be read.
    """
    from rdp_bench.reports import html
    from rdp_bench.store import write_atomic
    from rdp_bench.table import load

    runs = load(out, store)
    for name in only or ():
        if name not in (grids := [run.grid for run in runs]):
            raise unknown("run of grid", name, grids)
    folder = out / "report"
    sections = [_section(folder, run, store) for run in runs if not only or run.grid in only]
    page = folder / "index.html"
    write_atomic(page, html.page(sections).encode())
    return page


def _section(folder: Path, run: "Run", store: "Store") -> "Section":
    """Write a run's tables and figures; what the page needs of it."""
    from rdp_bench.reports import figures, strip, sweep
    from rdp_bench.reports.exhibit import exhibits, slug
    from rdp_bench.reports.html import Section
    from rdp_bench.store import write_atomic

    tables = exhibits(run)
    for table in tables:
        _write_table(folder / "tables", table)
    attacked = [table for table in tables if table.metric == "error" and table.done]
    inline = []
    if attacked:
        printed = any(entry.paper is not None for table in attacked for entry in table.entries)
        dots = "Error with 95 % intervals. Dashed: no defense." + " Diamonds: the paper's number." * printed
        for name, caption, draw in (
            ("heat", "Error of every cell, in percent; darker is worse.", figures.heat_map),
            ("dots", dots, figures.dot_plot),
        ):
            saved = draw(attacked)
            for kind, content in saved.items():
                write_atomic(folder / "figures" / f"{slug(run.grid, name)}.{kind}", content)
            inline.append((caption, figures.inline(saved["svg"])))
    if swept := sweep.sweep(run):
        for kind, content in swept.saved.items():
            write_atomic(folder / "figures" / f"{slug(run.grid, 'sweep')}.{kind}", content)
        write_atomic(folder / "figures" / f"{slug(run.grid, 'sweep')}.csv", swept.sheet.encode())
        inline.append((swept.caption, figures.inline(swept.saved["svg"])))
    return Section(run, slug(run.grid), tables, inline, strip.examples(run, store))


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
