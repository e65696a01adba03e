"""Tables as PDF, one page as large as the table: vector text in embedded fonts, made without LaTeX."""

from collections.abc import Iterator
from dataclasses import dataclass

from rdp_bench.reports.formats.pdf_page import Face, Page
from rdp_bench.reports.tables.table import Table

_SIZE, _LINE = 9.0, 11.5  # points
_MARGIN, _APART = 6.0, 12.0
_NARROWEST = 300.0  # captions need some room


@dataclass(frozen=True)
class _Text:
    """Text at a place, in points from the left and in lines from the top."""

    x: float
    line: float
    text: str
    right: bool = False
    bold: bool = False


def render(table: Table) -> bytes:
    """The table under its caption, and the meaning of its marks below it."""
    words = [table.caption, table.legend, table.head, *table.columns]
    words += [name for group in table.groups for name in (group.name, *(line.name for line in group.rows))]
    more = frozenset("".join([*words, *(entry.text for entry in table.cells)]))
    face, strong = Face.of("STIXGeneral", more), Face.of("STIXGeneralBol", more)
    width, texts, rules, lines = _layout(table, face, strong)
    page = Page(width + 2 * _MARGIN, lines * _LINE + 2 * _MARGIN)
    for each in texts:
        font = strong if each.bold else face
        left = each.x - font.width(each.text, _SIZE) * each.right
        page.text(_MARGIN + left, _MARGIN + (each.line + 0.75) * _LINE, each.text, font, _SIZE)
    for line, thick in rules:
        page.rule(_MARGIN, _MARGIN + width, _MARGIN + line * _LINE, thick)
    return page.file()


def _layout(table: Table, face: Face, strong: Face) -> tuple[float, list[_Text], list[tuple[float, float]], float]:
    """Width in points, texts, rules (line, thickness), and height in lines."""
    rows = [line for group in table.groups for line in group.rows]
    shown = [[(face.clean(entry.shown or "–"), entry.symbols, entry.bold) for entry in line.cells] for line in rows]
    heads = [face.clean(column) for column in table.columns]
    first = max(
        (face.width(face.clean(text), _SIZE) for text in (table.head, *(line.name for line in rows))), default=0
    )
    values = [
        max([face.width(head, _SIZE), *((strong if line[i][2] else face).width(line[i][0], _SIZE) for line in shown)])
        for i, head in enumerate(heads)
    ]
    marks = [max([0.0, *(face.width(line[i][1], _SIZE) for line in shown)]) for i in range(len(heads))]
    natural = first + sum(values) + sum(marks) + _APART * len(heads)
    whole = [group.name for group in table.groups] + f"{table.caption} {table.legend}".split()  # what is not broken
    width = max(natural, _NARROWEST, *(face.width(face.clean(text), _SIZE) for text in whole))
    apart = _APART + (width - natural) / max(1, len(heads))
    ends, x = [], first
    for value, mark in zip(values, marks, strict=True):
        ends.append(x + apart + value)
        x = ends[-1] + mark
    at = 0.0
    texts, rules = [], []
    for text in _wrapped(table.caption, face, width):
        texts.append(_Text(0, at, text))
        at += 1
    at += 0.4
    rules.append((at, 0.9))
    texts.append(_Text(0, at + 0.2, face.clean(table.head)))
    texts += [_Text(end, at + 0.2, head, right=True) for end, head in zip(ends, heads, strict=True)]
    at += 1.4
    body = iter(shown)
    for group in table.groups:
        rules.append((at, 0.5))
        at += 0.2
        if group.name:
            texts.append(_Text(0, at, face.clean(group.name)))
            at += 1
        for line in group.rows:
            texts.append(_Text(6 if group.name else 0, at, face.clean(line.name)))
            for end, (number, symbols, bold) in zip(ends, next(body), strict=True):
                texts.append(_Text(end, at, number, right=True, bold=bold))
                if symbols:
                    texts.append(_Text(end, at, symbols))
            at += 1
        at += 0.2
    rules.append((at, 0.9))
    at += 0.3
    for text in _wrapped(table.legend, face, width):
        texts.append(_Text(0, at, text))
        at += 1
    return width, texts, rules, at


def _wrapped(text: str, face: Face, width: float) -> Iterator[str]:
    """Lines of words, each at most `width` points wide where its words allow."""
    line = ""
    for word in face.clean(text).split():
        longer = f"{line} {word}".strip()
        if line and face.width(longer, _SIZE) > width:
            yield line
            longer = word
        line = longer
    if line:
        yield line
