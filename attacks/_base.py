"""What the attacks of an adaptive evaluation share: norms, number of classes, and runs on who is left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rdp_bench.budgets import LINF, NORMS, Norm
from rdp_bench.errors import UsageError
from rdp_bench.protocols import Attack, Source, least_classes, too_few_classes

if TYPE_CHECKING:
    from typing import Self

    from torch import Tensor

    from rdp_bench.attacks._adaptive.victim import Run
    from rdp_bench.rng import ImageRng

MOST = 100_000


@dataclass(frozen=True, kw_only=True)
class Adaptive(Attack):
    """An attack that is a list of runs, each on the images that the ones before left right.

    A subclass defines `runs`. Through a random source, every value and gradient is a mean over the source's draws, and
    an image counts as broken only where 20 draws agree; of several points the one of the lowest accuracy is kept.
    """

    norm: Norm = LINF

    def __post_init__(self) -> None:
        """Refuse an unknown norm."""
        if self.norm not in NORMS:
            raise ValueError(f"norm is one of {', '.join(NORMS)}, found {self.norm}")

    @property
    def least_classes(self) -> int:
        """How many classes the source must tell apart."""
        return 2

    @property
    def least_draws(self) -> int:
        """Draws of a random source that a gradient averages, where the source itself says fewer."""
        return 1

    def with_norm(self, norm: Norm) -> Self:
        """The same attack with its budget in `norm`; see `protocols.ChoosesNorm`.

        Raises:
            UsageError: its label names another norm.
        """
        if self.norm not in (LINF, norm):
            raise UsageError(f"an attack with norm={self.norm} needs --norm {self.norm}, with --eps in that norm")
        return replace(self, norm=norm)

    def runs(self, classes: int) -> Iterator[Run]:
        """The runs in order, on a source that tells `classes` classes apart."""
        raise NotImplementedError

    def __call__(self, source: Source, x: Tensor, y: Tensor, eps: float, rng: ImageRng) -> Tensor:
        """The hardest image within `eps` of each of `x` that the runs find; see `Attack`."""
        from rdp_bench.attacks._adaptive.victim import Victim, hardest

        refuse_classes(self, source)
        victim = Victim.of(source, x, y, eps, self.norm, rng, self.least_draws)
        return hardest(victim, self.runs(victim.classes))


def refuse_classes(attack: Attack, source: Source) -> None:
    """Refuse a source with too few classes for the attack's loss.

    Raises:
        UsageError: the number of classes, and how many are needed.
    """
    least = least_classes(attack)
    for member in source.members if least > 2 else ():
        if member.classes < least:
            raise UsageError(too_few_classes(least, f"source '{source.name}'", member.classes))


USUAL_TARGETS = 9
"""Target classes of the authors' attacks; of fewer wrong classes, all."""


def for_targets(least: int, targets: int) -> int:
    """Classes that an attack on each of `targets` wrong classes needs, at least `least`.

    Of the usual number, which is not asked for, an attack takes as many as there are.
    """
    return max(least, targets + 1) if targets > USUAL_TARGETS else least


def limits(**numbers: int) -> None:
    """Refuse numbers below 1 or above `MOST`."""
    for name, value in numbers.items():
        if not 1 <= value <= MOST:
            raise ValueError(f"{name} is 1 to {MOST}, found {value}")
