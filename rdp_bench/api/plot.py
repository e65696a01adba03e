"""The figure of `Result.plot`."""

import io
from collections.abc import Iterable, Mapping

from matplotlib import rc_context
from matplotlib.figure import Figure

from rdp_bench.errors import UsageError
from rdp_bench.reports.tables.table import Table
from rdp_bench.results.rows import UNDEFENDED, shown_names


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
    tall = max(len(group.rows) for _, _, group in panels)
    figure = Plot((3.4 * len(panels) + 0.8, 0.28 * tall + 1.3), layout="constrained")
    for ax, (names, table, group) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
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
        with shown_names(names):
            ax.set_yticks(range(len(group.rows)), [line.name for line in group.rows])
            where = group.name
        ax.invert_yaxis()
        ax.set_xlim(0, 100)
        ax.set_xlabel(f"error, % ({table.columns[-1]})")
        ax.set_title("\n".join(filter(None, (table.title.rpartition(": ")[2], where))), fontsize="small")
    return figure
