"""Exhibits as LaTeX tables for two-column pages; they need `booktabs` and nothing else."""

import re
import unicodedata

from rdp_bench.reports.tables.table import Table, TableCell

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # a row that starts with one would be an argument of the row break
    "*": "{*}",  # likewise
    "ε": r"$\varepsilon$",
    "σ": r"$\sigma$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "≈": r"$^{\approx}$",
    "†": r"$^{\dagger}$",
    "‡": r"$^{\ddagger}$",
    "°": r"$^{\circ}$",
    "α": r"$\alpha$",
    "μ": r"$\mu$",
    "–": "--",
    "−": "$-$",
    "“": "``",
    "”": "''",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}

_SPECIAL |= {"ß": r"\ss{}", "æ": r"\ae{}", "Æ": r"\AE{}", "œ": r"\oe{}", "Œ": r"\OE{}"}
_SPECIAL |= {"ø": r"\o{}", "Ø": r"\O{}", "ł": r"\l{}", "Ł": r"\L{}", "ı": r"\i{}"}
_SPECIAL |= {"→": r"$\rightarrow$", "∞": r"$\infty$", "²": "$^2$", "★": r"$\star$"}
_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": ".",
    "\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0327": "c",
}  # fmt: skip
_LIKE_LATIN = frozenset(
    ("Alpha", "Beta", "Epsilon", "Zeta", "Eta", "Iota", "Kappa", "Mu", "Nu", "Omicron", "Rho", "Tau", "Chi", "omicron")
)
"""Greek letters that look like Latin ones, for which LaTeX has no command."""

_COLUMN, _PAGE = 237.0, 496.0
"""Points: the narrowest column, and the narrowest page, of the usual two-column styles."""
_SIZES = {"small": 9, "footnotesize": 8, "scriptsize": 7}
_TALL = 40
"""Rows from which a page holds the table only in smaller type."""


def escape(text: str) -> str:
    r"""Text as LaTeX prints it; of letters that pdflatex's fonts lack it prints the code, see `preamble`.

    >>> print(escape("r&p_100%"))
    r\&p\_100\%
    >>> print(escape("Häß λ"))
    H\"{a}\ss{} $\lambda$
    >>> print(escape("净"))
    \rdpletter{51C0}{净}
    """
    plain = re.sub(r"\s+", " ", text)
    return "".join(map(_letter, unicodedata.normalize("NFC", plain)))


def _letter(letter: str) -> str:
    if letter in _SPECIAL or " " <= letter < "\x7f":
        return _SPECIAL.get(letter, letter)
    if greek := re.fullmatch("GREEK (SMALL|CAPITAL) LETTER (LAMDA|[A-Z]+)", unicodedata.name(letter, "")):
        name = greek[2].replace("LAMDA", "LAMBDA").lower()
        command = name if greek[1] == "SMALL" else name.capitalize()
        return _coded(letter) if command in _LIKE_LATIN else f"$\\{command}$"
    base, *accents = list(unicodedata.normalize("NFD", letter))
    if len(accents) == 1 and accents[0] in _ACCENTS and base.isascii():
        return f"\\{_ACCENTS[accents[0]]}{{{base}}}"
    return _coded(letter)


def _coded(letter: str) -> str:
    return f"\\rdpletter{{{ord(letter):04X}}}{{{letter if letter.isprintable() else '?'}}}"


def preamble(text: str) -> list[str]:
    """The lines before a table: what it needs, and the command for letters that pdflatex lacks, if `text` has it."""
    lines = [r"% \usepackage{booktabs}"]
    if "\\rdpletter" in text:
        lines += [
            "% pdflatex prints some letters of this table as their codes; xelatex and lualatex print them, in a font",
            "% that has them: load ctex or xeCJK, for example. Or name the row in other letters: --name LABEL=NAME",
            r"\providecommand{\rdpletter}[2]{\ifx\Umathchar\undefined{[}U+#1]\else#2\fi}",
        ]
    return lines


def render(table: Table) -> str:
    """One `table` environment, or `table*` if it is wider than a column; for documents that use booktabs."""
    heads = [table.head, *table.columns]
    bodies = [
        (group.name, [(line.name, list(map(_entry, line.cells))) for line in group.rows]) for group in table.groups
    ]
    return _environment(table.slug, table.caption, heads, bodies, table.legend)


def averages(table: Table) -> str:
    """The averages alone, a column a source, narrow enough for one column of a page; empty without averages."""
    if not table.average:
        return ""
    names = dict.fromkeys(line.name for group in table.groups for line in group.rows)
    found = {(group.source, line.name): line.cells[-1] for group in table.groups for line in group.rows}
    heads = [group.name for group in table.groups]
    rows = [(name, [_entry(found.get((group.source, name), TableCell())) for group in table.groups]) for name in names]
    legend = "Columns: sources."
    if _width([table.head, *heads], rows, _SIZES["small"], _NEAR) > _COLUMN:
        legend = f"Sources: {'; '.join(f'{i}: {name}' for i, name in enumerate(heads, 1))}."
        heads = [str(i) for i in range(1, len(heads) + 1)]
    if any(line.cells[-1].bold or line.cells[-1].symbols for group in table.groups for line in group.rows):
        legend = f"{legend} {table.legend}"
    label, caption = f"{table.slug}-averages", f"Average over the attacks. {table.caption}"
    return _environment(label, caption, [table.head, *heads], [("", rows)], legend, narrow=True)


_NEAR, _USUAL = 3.0, 6.0
"""Points of `tabcolsep`: in a crowded table, and LaTeX's own."""
_Entry = tuple[str, str, bool]
"""What a cell shows, its marks, and whether it is bold."""


def _environment(
    label: str,
    caption: str,
    heads: list[str],
    bodies: list[tuple[str, list[tuple[str, list[_Entry]]]]],
    legend: str,
    *,
    narrow: bool = False,
) -> str:
    rows = [row for _, lines in bodies for row in lines]
    few = sum(len(lines) + 1 for _, lines in bodies) <= _TALL
    wide = not narrow and _width(heads, rows, _SIZES["small"], _USUAL) > _COLUMN
    room = _PAGE if wide else _COLUMN
    sizes = [(size, near) for size in list(_SIZES)[not few :] for near in (_USUAL, _NEAR)]
    fitting = (each for each in sizes if _width(heads, rows, _SIZES[each[0]], each[1]) <= room)
    size, near = next(fitting, sizes[-1])
    environment = "table*" if wide else "table"
    lines = [
        f"\\begin{{{environment}}}",
        r"\centering",
        f"\\{size}",
        f"\\caption{{{escape(caption)}}}",
        f"\\label{{tab:{label}}}",
        r"\smallskip",
        *([f"\\setlength{{\\tabcolsep}}{{{near:.0f}pt}}"] if near != _USUAL else []),
        f"\\begin{{tabular}}{{@{{}}l{'r' * (len(heads) - 1)}@{{}}}}",
        r"\toprule",
        " & ".join(map(escape, heads)) + r" \\",
    ]
    for name, body in bodies:
        lines.append(r"\midrule")
        if name:
            lines.append(f"\\multicolumn{{{len(heads)}}}{{l}}{{\\emph{{{escape(name)}}}}} \\\\")
        lines += [" & ".join([escape(first), *map(_cell, entries)]) + r" \\" for first, entries in body]
    note = [r"\par\smallskip", rf"\parbox{{\linewidth}}{{\footnotesize {escape(legend)}}}"] if legend else []
    made = "\n".join([*lines, r"\bottomrule", r"\end{tabular}", *note, f"\\end{{{environment}}}", ""])
    return "\n".join([*preamble(made), made])


def _width(heads: list[str], rows: list[tuple[str, list[_Entry]]], size: float, near: float) -> float:
    """Points that a table takes, generously: a letter of Computer Modern is half as wide as its size."""
    lines = [heads, *([name, *(shown for shown, _, _ in entries)] for name, entries in rows)]
    letters = sum(max(map(len, column)) for column in zip(*lines, strict=True))
    return 0.52 * size * letters + 2 * near * len(heads)


def _entry(entry: TableCell) -> _Entry:
    return ("--", "", False) if entry.shown is None else (entry.shown, entry.symbols, entry.bold)


def _cell(entry: _Entry) -> str:
    shown, symbols, bold = entry
    value = shown if shown == "--" else escape(shown)
    marks = f"\\rlap{{{escape(symbols)}}}" if symbols else ""  # outside the column, so that digits align
    return (f"\\textbf{{{value}}}" if bold else value) + marks
