"""VT: variance tuning."""

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
class VarianceTuning(Part):
    """G = grad J(x_t) + v_t, v_{t+1} = mean_i grad J(x_t + r_i) - grad J(x_t) (Wang & He 2021, Eq. 5-7, Alg. 1).

    r_i is U(-variance_range * eps, variance_range * eps) per pixel and is not clipped, as in JHL-HUST/VT. Under NI, the
    gradient is that of the look-ahead, and neighbours are those of x_t, as there.
    """

    id: ClassVar[str] = "variance-tuning"
    version: ClassVar[int] = 2
    order: ClassVar[int] = 40
    off: ClassVar[Any] = 0
    aliases: ClassVar = {"n": "variance_samples", "beta": "variance_range"}

    variance_samples: int = 20
    """N, the number of neighbours."""
    variance_range: float = 1.5
    """beta, half the side of the neighbourhood over eps."""

    def rules(self) -> Mapping[str, bool]:
        """Ranges of the fields."""
        return {
            "variance_samples is not negative and at most 10000": 0 <= self.variance_samples <= 10_000,
            "variance_range is above 0": self.variance_range > 0,
        }

    def check(self, parts: Sequence[Part]) -> None:
        """Neighbours are within eps per pixel."""
        require({"VT is defined for L-infinity": (find(parts, Ball) or Ball()).norm == LINF})

    @property
    def evaluations(self) -> int:
        """One at the image or its look-ahead, and one per neighbour."""
        return 1 + self.variance_samples

    def gradient(self, run: Run, inner: Gradient, at: Tensor) -> Tensor:
        """The gradient and the variance of the previous step."""
        from rdp_bench.attacks._kernels.neighbours import mean_gradient

        here = inner(at)
        before = run.memory.get(self.id)
        around = mean_gradient(inner, run.point, self.variance_range * run.eps, self.variance_samples, run.rng)
        run.memory[self.id] = around - here
        return here if before is None else here + before
