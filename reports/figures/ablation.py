"""RDP without one of its parts, per attack: the paper's Figure 8."""

import re
from typing import TYPE_CHECKING

from rdp_bench.reports.figures import drawing
from rdp_bench.reports.figures.drawing import ACCENT, INK, LETTER, PAGE, SMALL, ReportFigure, short, tidy
from rdp_bench.reports.tables.table import AVERAGE, Row, Table
from rdp_bench.results.rows import display_name
from rdp_bench.specs import UNDEFENDED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PARTS = {
    "recon": "reconstructor",
    "lat": "latent loss",
    "pix": "pixel loss",
    "adv": "adversarial loss",
    "feat": "feature loss",
}
_LINE = 0.19  # inches

COLUMNS = ("source", "variant", "defense", "attack", "error", "ci_low", "ci_high", "status", "reason")


def ablation(tables: list[Table]) -> ReportFigure | None:
    """The error of every variant (rows) under every attack and on average (panels); None without attacked cells.

    The dashed line is the whole RDP, where it is one of the rows.
    """
    from matplotlib.figure import Figure

    if not tables:
        return None
    table = tables[0]
    group = table.groups[0]
    rows = [
        {
            "source": group.source, "variant": variant(line.defense), "defense": line.defense, "attack": column,
            **{key: "" if value is None else f"{value:.4f}" for key, value in
               (("error", entry.value), ("ci_low", entry.low), ("ci_high", entry.high))},
            "status": entry.status, "reason": entry.reason,
        }
        for line in group.rows
        for column, entry in zip(table.columns, line.cells, strict=True)
    ]  # fmt: skip
    count = len(table.columns)
    left = 0.1 + LETTER * max(len(variant(line.defense)) for line in group.rows)
    between, above, below = 0.2, 0.25, 0.42
    wide, tall = (PAGE - left - 0.12 - between * (count - 1)) / count, _LINE * len(group.rows)
    height = above + tall + below
    highest = max((entry.high or 0 for line in group.rows for entry in line.cells), default=0)
    end = min(100, -(-highest // 20) * 20) or 100
    with drawing.styled():
        figure = Figure((PAGE, height))
        for i, column in enumerate(table.columns):
            x = left + i * (wide + between)
            ax = figure.add_axes((x / PAGE, below / height, wide / PAGE, tall / height))
            _panel(ax, group.rows, i, end)
            ax.set_title(short(column, 14), fontweight="bold" if column == AVERAGE else "normal")
            if i == 0:
                ax.set_yticks(range(len(group.rows)), [variant(line.defense) for line in group.rows])
        figure.supxlabel("error, % (lower is better)", fontsize=SMALL + 1, x=(left + PAGE) / 2 / PAGE, y=0.02)
        caption = (
            f"Ablation of RDP. Error under attacks crafted on {group.name}, with 95 % intervals, of RDP trained "
            "without one part at a time." + " The dashed line is the whole RDP." * any(map(_is_whole, group.rows))
        )
        return ReportFigure("ablation", caption, drawing.save(figure), tidy(COLUMNS, rows))


def variant(defense: str) -> str:
    """The name of a defense in the figure.

    >>> variant("rdp(weights=rdp-ablation-no-lat)"), variant("rdp(weights=rdp-ablation-full)"), variant("jpeg")
    ('without latent loss', 'RDP, whole', 'JPEG')
    """
    if "rdp-ablation-full" in defense:
        return "RDP, whole"
    found = re.search(r"rdp-ablation-no-(\w+)", defense)
    return f"without {_PARTS.get(found[1], found[1])}" if found else short(display_name(defense))


def _is_whole(line: Row) -> bool:
    return "rdp-ablation-full" in line.defense


def _panel(ax: "Axes", lines: list[Row], column: int, end: float) -> None:
    """One dot with its interval per variant, on an axis from 0 to `end`."""
    whole = next(filter(_is_whole, lines), None)
    if whole and (reach := whole.cells[column].value) is not None:
        ax.axvline(reach, color=INK, linewidth=0.6, linestyle=(0, (3, 3)))
    for y, line in enumerate(lines):
        entry = line.cells[column]
        if entry.value is None or entry.low is None or entry.high is None:
            ax.text(2, y, entry.status, va="center", fontsize=SMALL)
            continue
        color = INK if line.defense == UNDEFENDED else ACCENT
        ax.hlines(y, entry.low, entry.high, color=color, linewidth=1.2)
        ax.scatter([entry.value], [y], s=20, color=color, linewidths=0, zorder=3, marker="D" if line is whole else "o")
    ax.set_yticks([])
    ax.set_ylim(len(lines) - 0.5, -0.5)
    ax.set_xlim(0, end)
    ax.set_xticks([0, end // 2, end])
    ax.tick_params(labelsize=SMALL)
    ax.tick_params(axis="y", length=0, labelsize=drawing.SIZE)
    ax.spines[["top", "right", "left"]].set_visible(False)
