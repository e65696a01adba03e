"""Exhibits as Markdown tables (the GitHub dialect)."""

import re

from rdp_bench.reports.tables.table import Table, TableCell


def escape(text: str) -> str:
    r"""Text that neither ends its table cell nor turns into markup.

    >>> print(escape("a|b_<i>"))
    a\|b\_&lt;i&gt;
    """
    plain = re.sub(r"\s+", " ", text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]#|~$!])", r"\\\1", plain)


def render(table: Table) -> str:
    """A heading, the table with a row a source and defense, the caption, and the notes."""
    grouped = any(group.name for group in table.groups)
    head = [*(["Source"] if grouped else []), table.head, *map(escape, table.columns)]
    lines = [
        f"### {escape(table.title)}",
        "",
        _row(head),
        _row([*(":--" for _ in head[: 1 + grouped]), *("--:" for _ in table.columns)]),
    ]
    for group in table.groups:
        for i, line in enumerate(group.rows):
            source = [escape(group.name) if i == 0 else ""] if grouped else []
            lines.append(_row([*source, escape(line.name), *map(_cell, line.cells)]))
    lines += ["", f"{escape(table.caption)} {escape(table.legend)}".rstrip()]
    return "\n".join([*lines, *(f"\n{escape(note)}" for note in table.notes), ""])


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(entry: TableCell) -> str:
    if entry.shown is None:
        return "–" if entry.status == "absent" else entry.status
    value = escape(entry.shown)
    return (f"**{value}**" if entry.bold else value) + entry.symbols
