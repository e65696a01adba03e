"""Tables as plain text for a terminal or notebook: values with their intervals and marks."""

from rdp_bench.reports.tables.table import Table, TableCell
from rdp_bench.terminal import printable


def render(table: Table, *, intervals: bool = True) -> str:
    """The table's title, a row per defense under each source, and the legend of its marks.

    Column heads are never cut. `intervals` adds the 95 % interval behind each value.
    """
    rows = [(group.name, line.name, [_cell(each, intervals) for each in line.cells]) for group in table.groups
            for line in group.rows]  # fmt: skip
    heads = [_clean(column) for column in table.columns]
    widths = [max(len(head), *(len(cells[i]) for _, _, cells in rows)) for i, head in enumerate(heads)]
    first = max((len(_clean(name)) for _, name, _ in rows), default=0)
    lines = [_clean(table.title), _line("", heads, first, widths)]
    before = ""
    for source, name, cells in rows:
        if source and source != before:
            lines.append(f"crafted on {_clean(source)}")
        before = source
        lines.append(_line(_clean(name), cells, first, widths))
    return "\n".join(line.rstrip() for line in [*lines, *([table.legend] if table.legend else [])]) + "\n"


def _line(name: str, cells: list[str], first: int, widths: list[int]) -> str:
    return "  ".join([f"{name:{first}}", *(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))])


def _cell(entry: TableCell, intervals: bool) -> str:
    if entry.value is None:
        return "-" if entry.status == "absent" else entry.status
    bold = "*" if entry.bold else ""
    within = f" [{entry.low:.1f}, {entry.high:.1f}]" if intervals and entry.low is not None else ""
    return f"{entry.value:.1f}{within}{bold}{entry.symbols}"


def _clean(text: str) -> str:
    return printable(text, lines=False)
