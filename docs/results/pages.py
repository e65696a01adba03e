"""Writes the tables of this book from the published runs: each table of a report that a page asks for.

python docs/results/pages.py

A page asks with a comment, `<!-- TABLE of RUN -->`: the table whose file names in a report begin with TABLE, made from
the folder runs/RUN. What stands between it and `<!-- end of the table -->` is replaced.
"""

import re
from functools import cache
from pathlib import Path

from rdp_bench.cache.store import write_atomic
from rdp_bench.errors import UsageError
from rdp_bench.reports.formats import markdown
from rdp_bench.reports.tables.registry import all_tables
from rdp_bench.results.rows import load_run, shown_names

HERE = Path(__file__).parent
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


if __name__ == "__main__":
    for page, text in pages().items():
        write_atomic(page, text.encode())
