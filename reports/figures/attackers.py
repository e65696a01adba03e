"""Mean error under transfer attacks against mean error under white-box attacks, one point per defense.

From leaderboards, so from predictions: of one run that has both kinds of sources, or of two runs on the same images.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from rdp_bench.reports.figures import drawing
from rdp_bench.reports.figures.drawing import ACCENT, COLUMN, INK, ReportFigure, short, tidy
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
_SIDE = COLUMN - _MARGINS[0] - _MARGINS[2]

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
        "transfer attack says of the defense. The hollow point is no defense, thin lines are 95 % intervals."
    )
    name = f"attackers-{transfer.name.replace('_', '-')}"
    return ReportFigure(name, caption, _draw(found), tidy(COLUMNS, found))


def _draw(found: Points) -> drawing.Saved:
    from matplotlib.figure import Figure

    left, bottom, _, top = _MARGINS
    height = bottom + _SIDE + top
    with drawing.styled():
        figure = Figure((COLUMN, height))
        ax: Axes = figure.add_axes((left / COLUMN, bottom / height, _SIDE / COLUMN, _SIDE / height))
        ax.set_xlim(-_EDGE, 100 + _EDGE)
        ax.set_ylim(-_EDGE, 100 + _EDGE)
        ax.plot([0, 100], [0, 100], color=INK, linewidth=0.5, linestyle=(0, (3, 3)), zorder=1)
        named: dict[tuple[float, float], list[str]] = {}  # defenses with the same numbers share a point
        for point in found:
            x, y = point["transfer_error"], point["white_box_error"]
            ax.plot([point["transfer_low"], point["transfer_high"]], [y, y], color=INK, linewidth=0.3, zorder=2)
            ax.plot([x, x], [point["white_box_low"], point["white_box_high"]], color=INK, linewidth=0.3, zorder=2)
            named.setdefault((x, y), []).append(point["defense"])
        for at, defenses in named.items():
            bare = defenses == [UNDEFENDED]
            face = "white" if bare else ACCENT
            ax.plot(*at, "o", markersize=5.5, color=INK if bare else ACCENT, markerfacecolor=face, zorder=3)
        spots = [tuple((value + _EDGE) / (100 + 2 * _EDGE) * _SIDE for value in at) for at in named]
        names = [short(", ".join(short(display_name(each), 24) for each in group), 40) for group in named.values()]
        steps = [(k + 0.5) / 40 * _SIDE for k in range(40)]
        diagonal = [Box(step - 0.02, step - 0.02, step + 0.02, step + 0.02) for step in steps]
        write_names(ax, names, [(x, y) for x, y in spots], (_SIDE, _SIDE), diagonal)
        ax.set_xticks(range(0, 101, 20))
        ax.set_yticks(range(0, 101, 20))
        ax.set_xlabel("error under transfer attacks, %")
        ax.set_ylabel("error under white-box attacks, %")
        ax.spines[["top", "right"]].set_visible(False)
        return drawing.save(figure)
