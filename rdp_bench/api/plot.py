"""The figure of `Result.plot`."""

import io
from collections.abc import Iterable, Mapping
from itertools import zip_longest
from textwrap import wrap
from typing import TYPE_CHECKING

from matplotlib import rc_context
from matplotlib.figure import Figure

from rdp_bench.errors import UsageError
from rdp_bench.reports.figures import fonts
from rdp_bench.reports.figures.drawing import shorten, span
from rdp_bench.reports.tables.table import Group, Table
from rdp_bench.results.rows import UNDEFENDED, shown_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ACROSS = 3
"""Most panels side by side."""
_NAME, _TITLE = 30, 36
"""Letters of a row's name, and of a line of a panel's title."""


class Plot(Figure):
    """A figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=110)
        return file.getvalue()


@rc_context({"text.parse_math": False})  # a name with $ in it is a name
def dots(tables: Iterable[tuple[Mapping[str, str], Table]]) -> Figure:
    """The last column of each table (the average, where there is one) with its intervals, a panel per source.

    Args:
        tables: each with the names that its run gives labels.

    Raises:
        UsageError: there is no table.
    """
    panels = [(names, table, group) for names, table in tables for group in table.groups]
    if not panels:
        raise UsageError("nothing to plot: no cell under attack is done")
    written = []
    for names, table, group in panels:
        with shown_names(names):
            where = [*wrap(table.title.partition(": ")[2], _TITLE), *wrap(group.name, _TITLE)]
            written.append(([line.name for line in group.rows], "\n".join(where)))
    short = shorten((name for rows, _ in written for name in rows), _NAME)
    across = min(len(panels), _ACROSS)
    down = -(-len(panels) // across)
    wide = 2.6 + 0.085 * max(map(span, short.values()))
    tall = 0.28 * max(len(group.rows) for _, _, group in panels) + 0.8
    tall += 0.16 * max(title.count("\n") + 1 for _, title in written)
    figure = Plot((wide * across, tall * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).flat
    for ax, panel, about in zip_longest(axes, panels, written):
        if panel is None:
            ax.remove()
            continue
        _, table, group = panel
        rows, title = about
        _panel(ax, group)
        ax.set_yticks(range(len(rows)), [short[name] for name in rows])
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_xlim(-2, 102)
        ax.set_xticks(range(0, 101, 25))
        ax.set_xlabel(f"error, % ({table.columns[-1]})")
        ax.set_title(title, fontsize="small")
    fonts.number(figure)
    return figure


def _panel(ax: "Axes", group: Group) -> None:
    """A dot with its interval per defense, and a dashed line at no defense."""
    for y, line in enumerate(group.rows):
        cell = line.cells[-1]
        if cell.value is None:
            continue
        low, high = (cell.value if end is None else end for end in (cell.low, cell.high))
        undefended = line.defense == UNDEFENDED
        sides = [[cell.value - low], [high - cell.value]]
        ax.errorbar(cell.value, y, xerr=sides, fmt="o", color="0.35" if undefended else "C0", capsize=2)
        if undefended:
            ax.axvline(cell.value, linestyle="--", linewidth=0.8, color="0.6")
