"""FAB: Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack", ICML 2020."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rdp_bench.attacks._base import Adaptive, for_targets, limits
from rdp_bench.registry import attack

if TYPE_CHECKING:
    from rdp_bench.attacks._adaptive.victim import Run


@attack("fab-t", source="Croce and Hein 2020a, Alg. 1; Croce and Hein 2020b, Sec. 5.1; fra31/auto-attack")
@dataclass(frozen=True)
class TargetedFab(Adaptive):
    """FAB towards the 9 likeliest wrong classes: the nearest point beyond the linearised boundary.

    It minimises the distance; points beyond the budget do not count.
    """

    steps: int = 100
    restarts: int = 1
    targets: int = 9
    alpha_max: float = 0.1
    """Most weight of the step from the clean image."""
    eta: float = 1.05
    """How far beyond the boundary a step goes."""
    beta: float = 0.9
    """What is left of the change of a misclassified point for the next step."""
    stop: bool = False
    """Leave an image alone once a point within the budget is misclassified as it will be stored.

    Without effect on a random source.
    """

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        super().__post_init__()
        limits(steps=self.steps, restarts=self.restarts, targets=self.targets)
        if not (0 <= self.alpha_max <= 1 and 1 <= self.eta <= 2 and 0 < self.beta < 1):
            raise ValueError("alpha_max is 0 to 1, eta 1 to 2, and beta between 0 and 1")

    @property
    def least_classes(self) -> int:
        """One for the label and one for each target."""
        return for_targets(2, self.targets)

    def runs(self, classes: int) -> Iterator[Run]:
        """See `Adaptive`."""
        from rdp_bench.attacks._adaptive import cascade
        from rdp_bench.attacks._adaptive.fab import Constants

        constants = Constants(self.alpha_max, self.eta, self.beta)
        return cascade.fab_runs(self.steps, self.restarts, min(self.targets, classes - 1), constants, stop=self.stop)

    def gradients(self, eps_255: float) -> int:  # noqa: ARG002
        """At most: later runs attack only the images that are still right."""
        return self.steps * self.restarts * self.targets
