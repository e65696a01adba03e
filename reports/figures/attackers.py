"""Mean error under transfer attacks against mean error under white-box attacks, one point per defense.

From leaderboards, so from predictions: of one run that has both kinds of sources, or of two runs on the same images.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from rdp_bench.reports.figures.drawing import ReportFigure, tidy
from rdp_bench.reports.figures.illusion import ERRORS, draw
from rdp_bench.reports.tables.leaderboard import Leaderboard

COLUMNS = ("target", "eps", "defense", *ERRORS)
Points = list[dict[str, Any]]


def pairs(boards: Sequence[Leaderboard]) -> Iterator[tuple[Leaderboard, Leaderboard]]:
    """Transfer and white-box leaderboards of the same target, eps, norm and images."""
    for transfer, white in product(boards, boards):
        if not (transfer.white_box or transfer.through) and white.white_box and _setting(transfer) == _setting(white):
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
    parts = {"": mean.value, "_low": mean.low, "_high": mean.high}
    return {f"{kind}_error{part}": round(float(value), 4) for part, value in parts.items()}


def attackers(transfer: Leaderboard, white: Leaderboard) -> ReportFigure | None:
    """The figure of one pair; None for fewer than two defenses."""
    found = points(transfer, white)
    if len(found) < 2:
        return None
    caption = (
        f"Mean error under transfer attacks ({transfer.over}) against mean error under white-box attacks "
        f"({white.over}), {transfer.where}. On the dashed line the two are equal; the higher above it, the less a "
        "transfer attack says of the defense. The hollow point is no defense; thin lines are 95 % intervals."
    )
    name = f"attackers-{transfer.name.replace('_', '-')}"
    return ReportFigure(name, caption, draw({("", ""): found}), tidy(COLUMNS, found))
