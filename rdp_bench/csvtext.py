"""Writing and reading CSV that spreadsheets do not interpret as formulas; used for every CSV of this package.

A cell that begins with = + - @, a tab or a carriage return gets an apostrophe in front (OWASP's advice), unless it is a
number or a lone "-"; one that begins with apostrophes before such a letter gets one more. `read` takes it away again.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

_RISKY = re.compile(r"'*[=+\-@\t\r]", re.DOTALL)
_MARK = re.compile('[",\r\n]')
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


def safe(cell: object) -> str:
    """A cell as written.

    >>> safe("=SUM(A1)"), safe("-1.5"), safe("-"), safe("jpeg"), safe("'=1")
    ("'=SUM(A1)", '-1.5', '-', 'jpeg', "''=1")
    """
    text = "" if cell is None else str(cell)
    return "'" + text if _RISKY.match(text) and text != "-" and not _NUMBER.fullmatch(text) else text


def unsafe(cell: str) -> str:
    """The inverse of `safe`."""
    return cell[1:] if cell.startswith("'") and _RISKY.match(cell) else cell


def rows(head: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """The text of a table."""
    return "".join(_line([safe(cell) for cell in line]) for line in (head, *lines))


def chunks(columns: Sequence[str], lines: Iterable[Mapping[str, Any]], count: int = 10_000) -> Iterator[str]:
    """The text that `records` gives, in parts of `count` lines."""
    yield rows(columns, ())
    left = iter(lines)
    while some := list(islice(left, count)):
        yield "".join(_line([safe(line.get(name, "")) for name in columns]) for line in some)


def _line(cells: Sequence[str]) -> str:
    # Not csv.writer: it leaves a carriage return without quotes, where its own reader ends the line.
    quoted = ['"' + cell.replace('"', '""') + '"' if _MARK.search(cell) else cell for cell in cells]
    return ",".join(quoted if quoted != [""] else ['""']) + "\n"


def records(columns: Sequence[str], lines: Iterable[Mapping[str, Any]]) -> str:
    """The text of a table whose lines are mappings; keys not in `columns` are left out, missing ones are empty."""
    return rows(columns, ([line.get(name, "") for name in columns] for line in lines))


def read(text: str) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """Columns and lines of a text that `records` wrote.

    Raises:
        csv.Error: not CSV.
    """
    reader = csv.DictReader(io.StringIO(text, newline=""))
    columns = tuple(map(unsafe, reader.fieldnames or ()))
    values = []
    for line in reader:
        if None in line:
            raise csv.Error(f"line {reader.line_num} has more cells than there are columns")
        values.append([unsafe(cell or "") for cell in line.values()])
    return columns, [dict(zip(columns, line, strict=False)) for line in values]
