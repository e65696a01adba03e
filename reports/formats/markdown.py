"""Exhibits as Markdown tables (the GitHub dialect)."""

import re

from rdp_bench.reports.tables.table import Entry, Exhibit


def escape(text: str) -> str:
    r"""Text that neither ends its table cell nor turns into markup.

    >>> print(escape("a|b_<i>"))
    a\|b\_&lt;i&gt;
    """
    plain = re.sub(r"\s+", " ", text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]#|~$!])", r"\\\1", plain)


def table(exhibit: Exhibit) -> str:
    """A heading, the table with a row a source and defense, the caption, and the notes."""
    grouped = any(group.name for group in exhibit.groups)
    head = [*(["Source"] if grouped else []), "Defense", *map(escape, exhibit.columns)]
    lines = [
        f"### {escape(exhibit.title)}",
        "",
        _line(head),
        _line([*(":--" for _ in head[: 1 + grouped]), *("--:" for _ in exhibit.columns)]),
    ]
    for group in exhibit.groups:
        for i, line in enumerate(group.lines):
            source = [escape(group.name) if i == 0 else ""] if grouped else []
            lines.append(_line([*source, escape(line.name), *map(_entry, line.entries)]))
    lines += ["", f"{escape(exhibit.caption)} {exhibit.legend}".rstrip()]
    return "\n".join([*lines, *(f"\n{escape(note)}" for note in exhibit.notes), ""])


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _entry(entry: Entry) -> str:
    if entry.value is None:
        return "–" if entry.status == "absent" else entry.status
    value = f"{entry.value:.1f}"
    return (f"**{value}**" if entry.strong else value) + entry.marks
