"""Exhibits as LaTeX tables; they need `booktabs` and nothing else."""

import re

from rdp_bench.reports.tables.table import Table, TableCell

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # a row that starts with one would be an argument of the row break
    "ε": r"$\varepsilon$",
    "σ": r"$\sigma$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "≈": r"$^{\approx}$",
    "†": r"$^{\dagger}$",
    "‡": r"$^{\ddagger}$",
    "°": r"$^{\circ}$",
    "–": "--",
    "−": "$-$",
    "“": "``",
    "”": "''",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


_TALL = 40
"""Rows from which a page holds the table only in smaller type."""


def escape(text: str) -> str:
    r"""Text that pdflatex prints as it stands; what its fonts lack becomes a question mark.

    >>> print(escape("r&p_100%"))
    r\&p\_100\%
    """
    plain = re.sub(r"\s+", " ", text)
    return "".join(_SPECIAL.get(letter, letter if " " <= letter < "\x7f" else "?") for letter in plain)


def render(table: Table) -> str:
    """One `table` environment, to be input into a document that uses booktabs."""
    columns = len(table.columns) + 1
    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        r"\footnotesize" if sum(len(group.rows) + 1 for group in table.groups) > _TALL else r"\small",
        f"\\caption{{{escape(f'{table.caption} {table.legend}'.rstrip())}}}",
        f"\\label{{tab:{table.slug}}}",
        r"\smallskip",
        f"\\begin{{tabular}}{{l{'r' * (columns - 1)}}}",
        r"\toprule",
        " & ".join(["Defense", *map(escape, table.columns)]) + r" \\",
    ]
    for group in table.groups:
        lines.append(r"\midrule")
        if group.name:
            lines.append(f"\\multicolumn{{{columns}}}{{l}}{{\\emph{{{escape(group.name)}}}}} \\\\")
        lines += [" & ".join([escape(line.name), *map(_cell, line.cells)]) + r" \\" for line in group.rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _cell(entry: TableCell) -> str:
    if entry.value is None:
        return "--"
    value = f"{entry.value:.1f}"
    marks = f"\\rlap{{{escape(entry.symbols)}}}" if entry.symbols else ""  # outside the column, so that digits align
    return (f"\\textbf{{{value}}}" if entry.bold else value) + marks
