"""What the runs of an audit found, per cell and image: the only thing that tiers and checks read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rdp_bench.audits.parts import EPS, Subject
from rdp_bench.errors import DamagedError, UnreadableError
from rdp_bench.metrics.correctness import majority
from rdp_bench.specs import CLEAN, UNDEFENDED, show_level

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rdp_bench.engine.run import Run


@dataclass(frozen=True)
class Cell:
    """One cell: on which draws of its defense each image is classified right."""

    part: str
    source: str
    attack: str
    eps: float
    defense: str
    right: NDArray[np.bool_] | None = None
    """Whether each image is classified right on each draw, `[n, draws]`; None where the cell failed."""
    vote: NDArray[np.bool_] | None = None
    """Whether the majority of the draws is right, `[n]`."""
    reason: str = ""
    """Why it failed."""

    @property
    def shares(self) -> NDArray[np.float64]:
        """Of each image the share of draws that are right, `[n]` in [0, 1]."""
        assert self.right is not None
        shares: NDArray[np.float64] = self.right.mean(1)
        return shares

    @property
    def draws(self) -> int:
        """How often its defense was drawn for each image."""
        assert self.right is not None
        return int(self.right.shape[1])

    @property
    def accuracy(self) -> float:
        """Mean of `shares`, in percent."""
        return 100 * float(self.shares.mean())

    @property
    def where(self) -> str:
        """Its part and attack, and what else tells it from the others of the part."""
        eps = f", eps {show_level(self.eps)}" if self.part == EPS else ""
        bare = ", without the defense" if self.defense == UNDEFENDED else ""
        return f"{self.part}: {self}{eps}{bare}"

    def __str__(self) -> str:
        return f"{self.attack} by {self.source}" if self.attack != CLEAN else "clean images"


@dataclass(frozen=True)
class Evidence:
    """All cells of an audit, and the numbers of its probes by name."""

    subject: Subject
    random: bool
    cells: tuple[Cell, ...]
    probes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def find(
        self,
        *,
        part: str | None = None,
        attack: str | None = None,
        defense: str | None = None,
        eps: float | None = None,
    ) -> list[Cell]:
        """The cells that are done and have these values."""
        wanted = {"part": part, "attack": attack, "defense": defense, "eps": eps}
        given = {name: value for name, value in wanted.items() if value is not None}
        return [
            cell
            for cell in self.cells
            if cell.right is not None and all(getattr(cell, name) == value for name, value in given.items())
        ]

    def clean(self, defense: str | None = None) -> Cell | None:
        """Clean images behind the audited defense, or another."""
        return next(iter(self.find(attack=CLEAN, defense=defense or self.subject.defense)), None)

    def attacked(self, *parts: str, defense: str | None = None) -> list[Cell]:
        """The attacks of these parts on the audited defense, or another, at the audit's eps."""
        behind = defense or self.subject.defense
        return [
            cell
            for part in parts
            for cell in self.find(part=part, defense=behind, eps=self.subject.eps)
            if cell.attack != CLEAN
        ]

    @property
    def failed(self) -> list[Cell]:
        """Cells without a number."""
        return [cell for cell in self.cells if cell.right is None]


def cells_of(part: str, run: Run) -> Iterable[Cell]:
    """The cells of one part of an audit, from its finished run."""
    for key, planned in run.plan.cells.items():
        facts = (part, key.source, key.attack, key.eps, key.defense)
        try:
            arrays = planned.eval.read() if planned.eval.complete else None
        except (DamagedError, UnreadableError) as error:
            yield Cell(*facts, reason=str(error))
            continue
        if arrays is None:
            yield Cell(*facts, reason=run.cells[key].reason or "it was not run")
            continue
        yield from_predictions(*facts, arrays["predicted"], arrays["label"])


def from_predictions(
    part: str, source: str, attack: str, eps: float, defense: str, predicted: NDArray[Any], label: NDArray[Any]
) -> Cell:
    """A cell from predictions `[n]`, or `[n, draws]`, and labels `[n]`."""
    draws = predicted.reshape(len(label), -1)
    return Cell(part, source, attack, eps, defense, draws == label[:, None], majority(draws) == label)
