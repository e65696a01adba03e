"""Mean error under transfer attacks against mean error under white-box attacks, one point per defense.

From leaderboards, so from predictions: of one run that has both kinds of sources, or of two runs on the same images.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from rdp_bench.reports.figures import drawing
from rdp_bench.reports.figures.drawing import ACCENT, COLUMN, INK, PAGE, ReportFigure, short, tidy
from rdp_bench.reports.figures.tradeoff import Box, write_names
from rdp_bench.reports.tables.leaderboard import Leaderboard
from rdp_bench.results.rows import display_name
from rdp_bench.specs import UNDEFENDED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = (
    "target", "eps", "defense", "transfer_error", "transfer_low", "transfer_high", "white_box_error", "white_box_low",
    "white_box_high",
)  # fmt: skip
_EDGE = 4.0  # percent beyond 0 and 100, room for points
_MARGINS = (0.55, 0.5, 0.1, 0.1)  # inches: left, bottom, right, top
_CROWDED = 6  # defenses, above which intervals would hide names; they are in the CSV
_THIN = 0.02  # inches, half the width that a line takes
_COLUMN, _PAGE = (width - _MARGINS[0] - _MARGINS[2] for width in (COLUMN, PAGE))
"""Inches: the side of the square, which is as wide as a page if there are many defenses."""

Points = list[dict[str, Any]]


def pairs(boards: Sequence[Leaderboard]) -> Iterator[tuple[Leaderboard, Leaderboard]]:
    """Transfer and white-box leaderboards of the same target, eps, norm and images."""
    for transfer, white in product(boards, boards):
        if not transfer.white_box and white.white_box and _setting(transfer) == _setting(white):
            yield transfer, white


def _setting(board: Leaderboard) -> tuple[object, ...]:
    return board.target, board.eps, board.run.norm, board.run.record["dataset"]["images"]


def points(transfer: Leaderboard, white: Leaderboard) -> Points:
    """A row for each defense that has both errors, by `COLUMNS`, in percent."""
    other = {each.defense: each.mean for each in white.standings if each.mean.value is not None}
    return [
        {
            "target": transfer.target, "eps": transfer.run.eps(transfer.eps), "defense": each.defense,
            **_error("transfer", each.mean), **_error("white_box", other[each.defense]),
        }
        for each in transfer.standings if each.mean.value is not None and each.defense in other
    ]  # fmt: skip


def _error(kind: str, mean: Any) -> dict[str, float]:
    parts = {"error": mean.value, "low": mean.low, "high": mean.high}
    return {f"{kind}_{part}": round(float(value), 4) for part, value in parts.items()}


def attackers(transfer: Leaderboard, white: Leaderboard) -> ReportFigure | None:
    """The figure of one pair; None for fewer than two defenses."""
    found = points(transfer, white)
    if len(found) < 2:
        return None
    caption = (
        f"Mean error under transfer attacks ({transfer.over}) against mean error under white-box attacks "
        f"({white.over}), {transfer.where}. On the dashed line the two are equal; the higher above it, the less a "
        "transfer attack says of the defense. The hollow point is no defense"
        + (", thin lines are 95 % intervals." if len(found) <= _CROWDED else ".")
    )
    name = f"attackers-{transfer.name.replace('_', '-')}"
    return ReportFigure(name, caption, _draw(found), tidy(COLUMNS, found))


def _draw(found: Points) -> drawing.Saved:
    from matplotlib.figure import Figure

    crowded = len(found) > _CROWDED
    side = _PAGE if crowded else _COLUMN
    left, bottom, right, top = _MARGINS
    width, height = left + side + right, bottom + side + top

    def inches(value: float) -> float:
        """From the edge of the plot."""
        return (value + _EDGE) / (100 + 2 * _EDGE) * side

    def line(x0: float, y0: float, x1: float, y1: float) -> Box:
        """A line between two points, in percent, as a thin box in inches."""
        return Box(inches(x0) - _THIN, inches(y0) - _THIN, inches(x1) + _THIN, inches(y1) + _THIN)

    with drawing.styled():
        figure = Figure((width, height))
        ax: Axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
        ax.set_xlim(-_EDGE, 100 + _EDGE)
        ax.set_ylim(-_EDGE, 100 + _EDGE)
        ax.plot([0, 100], [0, 100], color=INK, linewidth=0.5, linestyle=(0, (3, 3)), zorder=1)
        named: dict[tuple[float, float], list[str]] = {}  # defenses with the same numbers share a point
        steps = [(k + 0.5) / 40 * 100 for k in range(40)]
        lines = [line(step, step, step, step) for step in steps]  # what names keep away from
        for point in found:
            x, y = point["transfer_error"], point["white_box_error"]
            across = (point["transfer_low"], y, point["transfer_high"], y)
            upward = (x, point["white_box_low"], x, point["white_box_high"])
            for ends in (across, upward) if not crowded else ():
                ax.plot(ends[::2], ends[1::2], color=INK, linewidth=0.3, zorder=2)
                lines.append(line(*ends))
            named.setdefault((x, y), []).append(point["defense"])
        for at, defenses in named.items():
            bare = UNDEFENDED in defenses
            face = "white" if bare else ACCENT
            ax.plot(*at, "o", markersize=5.5, color=INK if bare else ACCENT, markerfacecolor=face, zorder=3)
        names = [short(", ".join(short(display_name(each), 24) for each in group), 40) for group in named.values()]
        write_names(ax, names, [(inches(x), inches(y)) for x, y in named], (side, side), lines)
        ax.set_xticks(range(0, 101, 20))
        ax.set_yticks(range(0, 101, 20))
        ax.set_xlabel("error under transfer attacks, %")
        ax.set_ylabel("error under white-box attacks, %")
        ax.spines[["top", "right"]].set_visible(False)
        return drawing.save(figure)
