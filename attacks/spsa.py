"""SPSA: Uesato et al., "Adversarial Risk and the Dangers of Evaluating Against Weak Attacks", ICML 2018."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rdp_bench.attacks._base import Adaptive, limits
from rdp_bench.budgets import LINF, Norm
from rdp_bench.errors import UsageError
from rdp_bench.registry import attack

if TYPE_CHECKING:
    from typing import Self

    from rdp_bench.attacks._adaptive.victim import Run


@attack("spsa", source="Uesato et al. 2018, Alg. 1")
@dataclass(frozen=True)
class Spsa(Adaptive):
    """Adam along gradients that are estimated from pairs of evaluations: for sources without a useful gradient."""

    steps: int = 100
    samples: int = 128
    """Pairs of evaluations per step."""
    delta: float = 0.01
    """Distance of the two evaluations, in [0, 1]."""
    step: float = 0.01
    """Step size of Adam, in [0, 1]."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        super().__post_init__()
        limits(steps=self.steps, samples=self.samples)
        if not (0 < self.delta <= 1 and 0 < self.step <= 1):
            raise ValueError("delta and step are above 0 and at most 1")

    def with_norm(self, norm: Norm) -> Self:
        """Only L-infinity.

        Raises:
            UsageError: another norm, of the run or in the label.
        """
        if norm != LINF or self.norm != LINF:
            raise UsageError("spsa has an L-infinity budget only; square has both")
        return self

    def runs(self, classes: int) -> Iterator[Run]:  # noqa: ARG002
        """See `Adaptive`."""
        from rdp_bench.attacks._adaptive import cascade

        return cascade.spsa_runs(self.steps, self.samples, self.delta, self.step)

    def gradients(self, eps_255: float) -> int:  # noqa: ARG002
        """In the time of a gradient, about three times a query's."""
        return -(-self.steps * (2 * self.samples + 1) // 3)
