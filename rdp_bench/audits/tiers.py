"""Tiers: what an attacker knows, and the accuracy that is left, per image the worst over the attacks of a tier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rdp_bench.audits.evidence import Cell, Evidence
from rdp_bench.audits.parts import BLACK_BOX, DOUBLED, FIXED, TRANSFER, WHITE_BOX
from rdp_bench.metrics import stats
from rdp_bench.results.cards import Tier, headline

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["NAMES", "PARTS", "Tier", "hardest", "headline", "tiers"]

NAMES = {
    "clean": "clean images",
    "transfer": "transfer: the attacker knows neither defense nor target",
    "black-box": "gradient-free: the attacker sees the outputs",
    "white-box": "white-box: the attacker knows the defense and the target",
    "fixed": "noise fixed: the attacker knows the noise too",
}
"""The tiers in order of what the attacker knows."""

PARTS = {"transfer": (TRANSFER,), "black-box": (BLACK_BOX,), "white-box": (WHITE_BOX, DOUBLED)}


def tiers(evidence: Evidence) -> list[Tier]:
    """Every tier that was measured, in the order of `NAMES`."""
    found = []
    clean = evidence.clean()
    for name in NAMES:
        cells = _cells(evidence, name)
        if not cells:
            continue
        undefended = _undefended(evidence, name)
        # An attacker may always leave an image as it is.
        base = [evidence.clean(evidence.subject.fixed) if name == "fixed" else clean]
        found.append(_tier(name, cells + [each for each in base if each and name != "clean"], undefended))
    return found


def hardest(cells: Sequence[Cell]) -> NDArray[np.float64]:
    """Of each image the lowest share of right draws over the cells, `[n]`."""
    import numpy as np

    lowest: NDArray[np.float64] = np.min([cell.shares for cell in cells if cell.shares is not None], axis=0)
    return lowest


def _cells(evidence: Evidence, name: str) -> list[Cell]:
    if name == "clean":
        return [cell for cell in [evidence.clean()] if cell]
    if name == "fixed":
        return evidence.attacked(FIXED, defense=evidence.subject.fixed)
    return evidence.attacked(*PARTS[name])


def _undefended(evidence: Evidence, name: str) -> float | None:
    if name == "clean":
        cells = [cell for cell in [evidence.clean("none")] if cell]
    else:
        cells = evidence.attacked(*PARTS.get(name, ()), defense="none")
    return 100 * float(hardest(cells).mean()) if cells else None


def _tier(name: str, cells: Sequence[Cell], undefended: float | None) -> Tier:
    import numpy as np

    shares = hardest(cells)
    n = len(shares)
    if set(np.unique(shares)) <= {0.0, 1.0}:
        low, high = stats.wilson(int(shares.sum()), n)
    else:
        low, high = stats.mean_interval(shares)
    votes = np.min([cell.vote for cell in cells if cell.vote is not None], axis=0)
    attacks = tuple(dict.fromkeys(str(cell) for cell in cells if cell.attack != "clean"))
    return Tier(
        name, 100 * float(shares.mean()), 100 * low, 100 * high, 100 * float((shares == 1).mean()),
        100 * float(votes.mean()), n, attacks, undefended, NAMES[name],
    )  # fmt: skip
