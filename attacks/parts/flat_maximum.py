"""PGN: a penalty on the norm of the gradient, for flat maxima of the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rdp_bench.attacks.parts.ball import Ball
from rdp_bench.attacks.parts.base import Part, find, require
from rdp_bench.budgets import LINF

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.attacks.parts.base import Gradient, Run


@dataclass(frozen=True)
class FlatMaximum(Part):
    """G = mean_i (1 - d) g_i + d g*_i (Ge et al. 2023, Eq. 7-8, Alg. 1).

    g_i is the gradient at x_i = x_t + U(-r, r), r = `flat_range` * eps, and g*_i that at x_i - alpha * g_i / mean|g_i|;
    d is `flat_weight`.
    """

    id: ClassVar[str] = "flat-maximum"
    order: ClassVar[int] = 42
    off: ClassVar[Any] = 0
    changes_first: ClassVar[bool] = True
    aliases: ClassVar = {"n": "flat_samples", "zeta": "flat_range", "delta": "flat_weight"}

    flat_samples: int = 20
    flat_range: float = 3.0
    flat_weight: float = 0.5

    def rules(self) -> Mapping[str, bool]:
        """Ranges of the fields."""
        return {
            "flat_samples is not negative and at most 10000": 0 <= self.flat_samples <= 10_000,
            "flat_range is above 0": self.flat_range > 0,
            "flat_weight is above 0 and at most 1": 0 < self.flat_weight <= 1,
        }

    def check(self, parts: Sequence[Part]) -> None:
        """Neighbours are within eps per pixel."""
        require({"PGN is defined for L-infinity": (find(parts, Ball) or Ball()).norm == LINF})

    @property
    def evaluations(self) -> int:
        """Two per neighbour."""
        return 2 * self.flat_samples

    def gradient(self, run: Run, inner: Gradient, at: Tensor) -> Tensor:
        """The mean of the weighted pairs of gradients."""
        from rdp_bench.attacks._kernels.neighbours import mean_gradient
        from rdp_bench.attacks._kernels.norms import normalise

        def pair(point: Tensor) -> Tensor:
            first = inner(point)
            second = inner(point - run.alpha * normalise(first))
            return (1 - self.flat_weight) * first + self.flat_weight * second

        return mean_gradient(pair, at, self.flat_range * run.eps, self.flat_samples, run.rng)
