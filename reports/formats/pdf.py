"""Tables as PDF, one page as large as the table: vector text in embedded fonts, made without LaTeX."""

import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from rdp_bench.reports.tables.table import Table

if TYPE_CHECKING:
    from matplotlib.font_manager import FontProperties

_SIZE, _LINE = 9.0, 11.5  # points
_MARGIN, _APART = 6.0, 12.0
_NARROWEST = 300.0  # captions need some room
_USUAL = frozenset(map(chr, (*range(32, 127), *range(161, 256)))) | frozenset("≈†‡εσ–−“”’×±∞…")


@dataclass(frozen=True)
class _Face:
    """A font reduced to the letters of tables: embedding all of it would take ten times as long."""

    font: "FontProperties"
    letters: frozenset[str]

    def clean(self, text: str) -> str:
        """`text` in one line, with a question mark for what the font lacks."""
        return "".join(letter if letter in self.letters else "?" for letter in " ".join(text.split()))

    def width(self, text: str) -> float:
        """In points."""
        from matplotlib.textpath import text_to_path

        return float(text_to_path.get_text_width_height_descent(text, self.font, ismath=False)[0])


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
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    words = [table.caption, table.legend, table.head, *table.columns]
    words += [name for group in table.groups for name in (group.name, *(line.name for line in group.rows))]
    more = frozenset("".join([*words, *(entry.text for entry in table.cells)])) - _USUAL
    face = _face("STIXGeneral", more)
    strong = _face("STIXGeneralBol", more) if any(entry.bold for entry in table.cells) else face
    width, texts, rules, lines = _layout(table, face, strong)
    size = (width + 2 * _MARGIN) / 72, (lines * _LINE + 2 * _MARGIN) / 72
    with mpl.rc_context({"pdf.fonttype": 42, "text.parse_math": False}):
        figure = Figure(size)

        def place(x: float, line: float) -> tuple[float, float]:
            return (x + _MARGIN) / 72 / size[0], 1 - (line * _LINE + _MARGIN) / 72 / size[1]

        for each in texts:
            font = strong.font if each.bold else face.font
            figure.text(
                *place(each.x, each.line + 0.75), each.text, fontproperties=font, ha="right" if each.right else "left"
            )
        for line, thick in rules:
            (left, y), (right, _) = place(0, line), place(width, line)
            figure.add_artist(Line2D([left, right], [y, y], color="black", linewidth=thick))
        file = io.BytesIO()
        figure.savefig(file, format="pdf", metadata={"CreationDate": None})
    return file.getvalue()


def _layout(table: Table, face: _Face, strong: _Face) -> tuple[float, list[_Text], list[tuple[float, float]], float]:
    """Width in points, texts, rules (line, thickness), and height in lines."""
    rows = [line for group in table.groups for line in group.rows]
    shown = [[(face.clean(entry.shown or "–"), entry.symbols, entry.bold) for entry in line.cells] for line in rows]
    heads = [face.clean(column) for column in table.columns]
    first = max((face.width(face.clean(text)) for text in (table.head, *(line.name for line in rows))), default=0)
    values = [
        max([face.width(head), *((strong if line[i][2] else face).width(line[i][0]) for line in shown)])
        for i, head in enumerate(heads)
    ]
    marks = [max([0.0, *(face.width(line[i][1]) for line in shown)]) for i in range(len(heads))]
    natural = first + sum(values) + sum(marks) + _APART * len(heads)
    width = max(natural, _NARROWEST)
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


def _wrapped(text: str, face: _Face, width: float) -> Iterator[str]:
    """Lines of words, each at most `width` points wide where its words allow."""
    line = ""
    for word in face.clean(text).split():
        longer = f"{line} {word}".strip()
        if line and face.width(longer) > width:
            yield line
            longer = word
        line = longer
    if line:
        yield line


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """For reduced fonts; deleted when the process ends."""
    return tempfile.TemporaryDirectory(prefix="rdp-bench-fonts-")


@cache
def _face(name: str, more: frozenset[str]) -> _Face:
    """A font that comes with matplotlib, reduced to the usual letters and `more`."""
    import matplotlib as mpl
    from fontTools.subset import Options, Subsetter
    from fontTools.ttLib import TTFont
    from matplotlib.font_manager import FontProperties

    options = Options(layout_features=[], hinting=False)
    options.drop_tables += ["GSUB", "GPOS", "GDEF", "FFTM"]
    font = TTFont(Path(mpl.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf", lazy=True)
    subsetter = Subsetter(options)
    subsetter.populate(text="".join(sorted(_USUAL | more)))
    subsetter.subset(font)
    path = Path(_folder().name) / f"{len(list(Path(_folder().name).iterdir()))}-{name}.ttf"
    font.save(path)
    return _Face(FontProperties(fname=path, size=_SIZE), frozenset(map(chr, font.getBestCmap())))
