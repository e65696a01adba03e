"""Writes the tables and figures of this book from the published runs: those of a report that a page asks for.

python docs/results/pages.py

A page asks for a table with a comment, `<!-- TABLE of RUN -->`: the table whose file names in a report begin with
TABLE, made from the folder runs/RUN. What stands between it and `<!-- end of the table -->` is replaced. It asks for a
figure with an image, `![text](RUN-FIGURE.svg)`: the figure of this name (`rdp_bench.reports.figures.registry`), beside
which its numbers are written as RUN-FIGURE.csv.
"""

import re
from functools import cache
from pathlib import Path

from rdp_bench.cache.store import Store, write_atomic
from rdp_bench.errors import UsageError
from rdp_bench.reports.figures.drawing import ReportFigure
from rdp_bench.reports.figures.registry import FIGURES, FigureInput, FigureKind
from rdp_bench.reports.formats import markdown
from rdp_bench.reports.tables.registry import all_tables
from rdp_bench.reports.tables.table import error_tables
from rdp_bench.results.rows import load_run, shown_names

HERE = Path(__file__).parent
SHOWN = re.compile(r"!\[[^]]*\]\(([\w-]+)\.svg\)")
ASKED = re.compile(r"(<!-- (\S+) of (\S+) -->\n).*?(<!-- end of the table -->)", re.DOTALL)


def pages() -> dict[Path, str]:
    """Every page that asks for a table, as it should be.

    Raises:
        UsageError: no published run has the table.
    """
    found = {}
    for page in sorted(HERE.glob("*.md")):
        before = page.read_text("utf-8")
        after = ASKED.sub(lambda asked: f"{asked[1]}\n{table(asked[2], asked[3])}\n{asked[4]}", before)
        if before.count("<!-- end of the table -->"):
            found[page] = after
    return found


def table(name: str, run: str) -> str:
    """Rows, caption and notes of a table as Markdown."""
    made = tables(run)
    if name not in made:
        raise UsageError(f"{run} has no table {name}: its tables are {', '.join(made) or 'none'}")
    return made[name]


@cache
def tables(run: str) -> dict[str, str]:
    """Every table of a published run, without its heading. Numbers are from OUT/predictions alone."""
    made: dict[str, str] = {}
    for path in sorted((HERE / "runs" / run / "runs").glob("*.json")):
        loaded = load_run(path, None)
        with shown_names(loaded.names):
            made |= {each.slug: markdown.render(each).partition("\n\n")[2] for each in all_tables(loaded)}
    return made


def figures() -> dict[str, ReportFigure]:
    """The figures that pages show, by the name of their files.

    Raises:
        UsageError: a published run has nothing to show in such a figure.
    """
    found = {}
    for name in {name for page in HERE.glob("*.md") for name in SHOWN.findall(page.read_text("utf-8"))}:
        for folder in (HERE / "runs").iterdir():
            kind = FIGURES.get(name.removeprefix(f"{folder.name}-"))
            if kind is not None:
                found[name] = _figure(folder, kind)
    return found


def _figure(folder: Path, kind: FigureKind) -> ReportFigure:
    for path in sorted((folder / "runs").glob("*.json")):
        run = load_run(path, None)
        with shown_names(run.names):
            if drawn := kind.draw(FigureInput(run, Store(folder), error_tables(run))):
                return drawn
    raise UsageError(f"{folder.name} has nothing to show in a figure of {kind.function}")


if __name__ == "__main__":
    for name, figure in figures().items():
        for kind in ("svg", "csv"):
            write_atomic(HERE / f"{name}.{kind}", figure.files[kind])
    for page, text in pages().items():
        write_atomic(page, text.encode())
