"""The figure of `Result.plot`."""

import io
from collections.abc import Sequence

from matplotlib.figure import Figure

from rdp_bench.errors import UsageError
from rdp_bench.reports.tables.table import Table
from rdp_bench.results.rows import UNDEFENDED


class Plot(Figure):
    """A figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=110)
        return file.getvalue()


def dots(tables: Sequence[Table]) -> Figure:
    """The last column of each table (the average, where there is one) with its intervals, a panel per source.

    Raises:
        UsageError: there is no table.
    """
    panels = [(table, group) for table in tables for group in table.groups]
    if not panels:
        raise UsageError("nothing to plot: no cell under attack is done")
    tall = max(len(group.rows) for _, group in panels)
    figure = Plot((3.4 * len(panels) + 0.8, 0.28 * tall + 1.3), layout="constrained")
    for ax, (table, group) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
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
        ax.set_yticks(range(len(group.rows)), [line.name for line in group.rows])
        ax.invert_yaxis()
        ax.set_xlim(0, 100)
        ax.set_xlabel(f"error, % ({table.columns[-1]})")
        ax.set_title("\n".join(filter(None, (table.title.rpartition(": ")[2], group.name))), fontsize="small")
    return figure
