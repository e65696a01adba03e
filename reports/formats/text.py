"""Tables as plain text for a terminal or notebook: values with their intervals and marks."""

from rdp_bench.reports.tables.table import BOLD, Table, TableCell
from rdp_bench.terminal import columns, left, printable, right


def render(table: Table, *, intervals: bool = True) -> str:
    """The table's title, a row per defense under each source, and the legend of its marks.

    Column heads are never cut. `intervals` adds the 95 % interval behind each value.
    """
    rows = [
        (group.name, line.name, [_cell(each, intervals) for each in line.cells])
        for group in table.groups
        for line in group.rows
    ]
    heads = [_clean(column) for column in table.columns]
    values = [[cells[i] for _, _, cells in rows] for i in range(len(heads))]
    marks = [max((len(mark) for _, mark in column), default=0) for column in values]
    widths = [
        max(columns(head) - mark, *(len(value) for value, _ in column), 0)
        for head, column, mark in zip(heads, values, marks, strict=True)
    ]
    first = max((columns(_clean(name)) for _, name, _ in rows), default=0)
    ends = [width + mark for width, mark in zip(widths, marks, strict=True)]
    lines = [_clean(table.title), _line("", [*map(right, heads, ends)], first)]
    before = ""
    for source, name, cells in rows:
        if source and source != before:
            lines.append(f"crafted on {_clean(source)}")
        before = source
        sizes = zip(cells, widths, marks, strict=True)
        lines.append(
            _line(_clean(name), [f"{value:>{wide}}{mark:<{more}}" for (value, mark), wide, more in sizes], first)
        )
    legend = table.legend.replace(f"{BOLD}:", "*", 1)
    return "\n".join(line.rstrip() for line in [*lines, *([legend] if legend else [])]) + "\n"


def _line(name: str, cells: list[str], first: int) -> str:
    return "  ".join([left(name, first), *cells])


def _cell(entry: TableCell, intervals: bool) -> tuple[str, str]:
    """A cell's value, and its marks."""
    if entry.shown is None:
        return "-" if entry.status == "absent" else entry.status, ""
    within = f" [{entry.low:.1f}, {entry.high:.1f}]" if intervals and entry.low is not None else ""
    return f"{entry.shown}{within}", "*" * entry.bold + entry.symbols


def _clean(text: str) -> str:
    return printable(text, lines=False)
