"""AutoAttack: Croce and Hein, "Reliable evaluation of adversarial robustness", ICML 2020."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from rdp_bench.attacks._base import Adaptive, limits
from rdp_bench.attacks.apgd import AutoPgd
from rdp_bench.attacks.fab import TargetedFab
from rdp_bench.attacks.square import Square
from rdp_bench.registry import attack

if TYPE_CHECKING:
    from rdp_bench.attacks._adaptive.victim import Run


@dataclass(frozen=True)
class Cascade(Adaptive):
    """Attacks in order, each on the images that the ones before left right."""

    @property
    def attacks(self) -> tuple[Adaptive, ...]:
        """The attacks in order."""
        raise NotImplementedError

    @property
    def least_classes(self) -> int:
        """What the most demanding needs."""
        return max(each.least_classes for each in self.attacks)

    def runs(self, classes: int) -> Iterator[Run]:
        """See `Adaptive`."""
        return chain.from_iterable(each.runs(classes) for each in self.attacks)

    def gradients(self, eps_255: float) -> int:
        """At most: most images are broken by the first attack."""
        return sum(each.gradients(eps_255) for each in self.attacks)


@attack("autoattack", source="Croce and Hein 2020b, Sec. 5; fra31/auto-attack", version=2)
@dataclass(frozen=True)
class AutoAttack(Cascade):
    """APGD-CE, APGD-T, FAB-T and Square in order, each on what the ones before left right (the standard version)."""

    steps: int = 100
    targets: int = 9
    queries: int = 5000

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        super().__post_init__()
        limits(steps=self.steps, targets=self.targets, queries=self.queries)

    @property
    def attacks(self) -> tuple[Adaptive, ...]:
        """The four."""
        shared = {"steps": self.steps, "targets": self.targets, "stop": True}
        return (
            AutoPgd("ce", self.steps, stop=True, norm=self.norm),
            AutoPgd("targeted-dlr", **shared, norm=self.norm),  # type: ignore[arg-type]
            TargetedFab(**shared, norm=self.norm),  # type: ignore[arg-type]
            Square(self.queries, norm=self.norm),
        )


@attack("autoattack-rand", source="Croce and Hein 2020b, Sec. 5; fra31/auto-attack, issue 105", version=2)
@dataclass(frozen=True)
class RandomAutoAttack(Cascade):
    """APGD-CE and APGD-DLR with gradients averaged over 20 draws: AutoAttack for random defenses.

    The original drops an image after one wrong prediction. Here an image is attacked until 20 draws are all wrong, and
    the point of the lowest accuracy is kept.
    """

    steps: int = 100
    draws: int = 20
    """Draws of a random source that a gradient averages, where the source itself says fewer."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        super().__post_init__()
        limits(steps=self.steps, draws=self.draws)

    @property
    def least_draws(self) -> int:
        """See `Adaptive`."""
        return self.draws

    @property
    def attacks(self) -> tuple[Adaptive, ...]:
        """The two."""
        return tuple(AutoPgd(loss, self.steps, stop=True, norm=self.norm) for loss in ("ce", "dlr"))
