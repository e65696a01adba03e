"""PI: patch-wise steps that carry what the budget cuts off to neighbouring pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rdp_bench.attacks.parts.ball import Ball
from rdp_bench.attacks.parts.base import Part, find, require
from rdp_bench.budgets import LINF

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.attacks.parts.base import Run, Step


@dataclass(frozen=True)
class PatchWise(Part):
    """x_{t+1} = clip(x_t + b sign(G) + b sign(W * C)), b = `amplification` * alpha (Gao et al. 2020, Alg. 1).

    a, the sum of all steps so far, exceeds the budget; C = clip(|a| - eps, 0, inf) sign(a) is the excess, and W
    averages the other pixels of a `projection_size` square. Their gamma equals b, as in their code
    (qilong-zhang/Patch-wise-iterative-attack).
    """

    id: ClassVar[str] = "patch-wise"
    order: ClassVar[int] = 5
    off: ClassVar[Any] = 0.0

    amplification: float = 10.0
    projection_size: int = 3
    """Side of W in pixels, odd."""

    def rules(self) -> Mapping[str, bool]:
        """Ranges of the fields."""
        odd = self.projection_size % 2 == 1 and 3 <= self.projection_size <= 101
        return {"amplification is not negative": self.amplification >= 0, "projection_size is odd, from 3 to 101": odd}

    def check(self, parts: Sequence[Part]) -> None:
        """The excess is measured per pixel."""
        require({"PI is defined for L-infinity": (find(parts, Ball) or Ball()).norm == LINF})

    def step(self, run: Run, inner: Step, adv: Tensor, g: Tensor) -> Tensor:
        """An amplified step, and one along the excess of the sum of all steps."""
        import torch
        from torch.nn.functional import avg_pool2d

        bound = self.amplification * run.alpha
        sign, side = g.sign(), self.projection_size
        total = run.memory.get(self.id, torch.zeros_like(g)) + bound * sign
        excess = (total.abs() - run.eps).clamp(min=0) * total.sign()
        # W * C, up to a positive factor: the sum over the square without its centre.
        around = avg_pool2d(excess, side, 1, side // 2, divisor_override=1) - excess
        # Excesses are often equal and opposite: rounding must not give their sum of zero a sign.
        projection = bound * around.sign() * (around.abs() > 1e-6)
        run.memory[self.id] = total + projection
        # The inner step adds alpha * sign.
        return inner(adv + (bound - run.alpha) * sign + projection, g)
