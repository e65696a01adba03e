"""Tiers: what an attacker knows, and the accuracy that is left, per image the worst over the attacks of a tier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rdp_bench.audits.evidence import Cell, Evidence
from rdp_bench.audits.parts import BLACK_BOX, BLIND, DOUBLED, FIXED, GREY_BOX, STAND_IN, TRANSFER, WHITE_BOX
from rdp_bench.metrics import stats
from rdp_bench.results.cards import Tier, headline
from rdp_bench.specs import CLEAN, UNDEFENDED

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["NAMES", "PARTS", "Tier", "hardest", "headline", "tiers"]

NAMES = {
    "clean": "clean images",
    "transfer": "transfer: the attacker knows neither defense nor target",
    "blind": "preprocessor-blind: the attacker knows the target, and not that something purifies",
    "grey-box": "grey-box: the attacker knows the target, and has a purifier of its own",
    "black-box": "gradient-free: the attacker sees the outputs",
    "white-box": "white-box: the attacker knows the defense and the target",
    "fixed": "noise fixed: the attacker knows the noise too",
}
"""The tiers in order of what the attacker knows."""

TELLING = 10
"""Images that must differ from the others for an interval by resampling."""

THROUGH = (WHITE_BOX, STAND_IN, DOUBLED)
"""The parts whose attacks use the gradient through the defense."""

PARTS = {
    "transfer": (TRANSFER,), "blind": (BLIND,), "grey-box": (GREY_BOX,), "black-box": (BLACK_BOX,),
    "white-box": THROUGH, "fixed": (FIXED,),
}  # fmt: skip
"""The parts that each tier adds."""

REACH = PARTS | {"white-box": (*THROUGH, TRANSFER, BLIND, GREY_BOX, BLACK_BOX)}
"""The parts whose attacks each tier takes the worst of: who knows defense and target can do what others can."""


def tiers(evidence: Evidence) -> list[Tier]:
    """Every tier that was measured, in the order of `NAMES`."""
    found = []
    for name in NAMES:
        cells = cells_of_tier(evidence, name)
        if not cells:
            continue
        tier = _tier(name, cells)
        undefended, failed = _undefended(evidence, name), _failed(evidence, name)
        found.append(replace(tier, undefended=undefended, failed=failed, title=NAMES[name]))
    return found


def hardest(cells: Sequence[Cell]) -> NDArray[np.float64]:
    """Of each image the share of right draws under the cell that is worst for it, `[n]`.

    The least of several shares that were drawn is lower by chance. Of a random defense the worst cell is therefore
    chosen by one half of the draws and counted by the other half, and the other way round: the mean of both is what an
    attacker reaches who tries the attacks and keeps the best. Few draws tell little of one image, so that the choice
    may be worse than one attack on all images. The attacker then takes the latter, chosen and counted alike.
    """
    import numpy as np

    rights = [cell.right for cell in cells if cell.right is not None]
    if len(rights) == 1 or all(right.shape[1] == 1 for right in rights):
        lowest: NDArray[np.float64] = np.min([right.mean(1) for right in rights], axis=0)
        return lowest
    halves = [np.stack([right[:, min(half, right.shape[1] - 1) :: 2].mean(1) for right in rights]) for half in (0, 1)]
    image = np.arange(halves[0].shape[1])
    pairs = (halves, halves[::-1])
    of_each: NDArray[np.float64] = np.mean([by[chosen.argmin(0), image] for chosen, by in pairs], axis=0)
    of_all: NDArray[np.float64] = np.mean([by[chosen.mean(1).argmin()] for chosen, by in pairs], axis=0)
    return min(of_each, of_all, key=np.mean)


def failed_attacks(evidence: Evidence) -> dict[str, tuple[str, ...]]:
    """The attacks on the defense without a number, by tier; also of tiers that have none."""
    return {name: lost for name in NAMES if (lost := _failed(evidence, name))}


def cells_of_tier(evidence: Evidence, name: str) -> list[Cell]:
    """The cells that a tier takes the worst of: its attacks, and clean images; none where it was not measured."""
    subject = evidence.subject
    behind = subject.fixed if name == "fixed" else subject.defense
    clean = [cell for cell in [evidence.clean(behind)] if cell]
    if name == "clean":
        return clean
    own = evidence.attacked(*PARTS[name], defense=behind)
    # An attacker may always leave an image as it is.
    return [*evidence.attacked(*REACH[name], defense=behind), *clean] if own else []


def _undefended(evidence: Evidence, name: str) -> float | None:
    """The accuracy without the defense, of clean images or under the worst of the tier's attacks that had that row."""
    clean = [cell for cell in [evidence.clean(UNDEFENDED)] if cell]
    own, reach = PARTS.get(name, ()), REACH.get(name, ())
    if BLIND in own:  # without a defense, its attacker is the one who knows all
        own = reach = (WHITE_BOX,)
    attacks = evidence.attacked(*reach, defense=UNDEFENDED)
    if name != "clean" and not evidence.attacked(*own, defense=UNDEFENDED):
        return None
    return 100 * float(hardest(attacks + clean).mean()) if attacks or clean else None


def _failed(evidence: Evidence, name: str) -> tuple[str, ...]:
    ours = (evidence.subject.defense, evidence.subject.fixed)
    parts = PARTS.get(name, ())
    return tuple(str(cell) for cell in evidence.failed if cell.part in parts and cell.defense in ours)


def _tier(name: str, cells: Sequence[Cell]) -> Tier:
    import numpy as np

    shares = hardest(cells)
    n = len(shares)
    low, high = stats.wilson(round(shares.sum()), n)
    levels, counts = np.unique(shares, return_counts=True)
    if not set(levels) <= {0.0, 1.0}:
        lower, upper = stats.mean_interval(shares)
        # Where hardly any image differs from the others, resampling them shows too little.
        few = n - counts.max() < TELLING
        low, high = (min(low, lower), max(high, upper)) if few else (lower, upper)
    # Under one attack, as clean images have one: the more draws, the fewer images are always right. Of a deterministic
    # defense, under every attack.
    random = any(cell.draws > 1 for cell in cells)
    judged = [min(cells, key=lambda cell: cell.accuracy)] if random else cells
    always = np.all([cell.right.all(1) for cell in judged if cell.right is not None], axis=0)
    votes = np.min([cell.vote for cell in judged if cell.vote is not None], axis=0)
    attacks = tuple(dict.fromkeys(str(cell) for cell in cells if cell.attack != CLEAN))
    return Tier(
        name, 100 * float(shares.mean()), 100 * low, 100 * high, 100 * float(always.mean()),
        100 * float(votes.mean()), n, attacks,
    )  # fmt: skip
