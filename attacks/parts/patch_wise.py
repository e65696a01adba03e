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
        bound = self.amplification * run.alpha
        sign = g.sign()
        total = bound * sign
        if self.id in run.memory:
            total += run.memory[self.id]
        excess = (total.abs() - run.eps).clamp_(min=0).mul_(total.sign())
        # W * C, up to a positive factor: the sum over the square without its centre.
        around = box_sum(excess, self.projection_size).sub_(excess)
        # Excesses are often equal and opposite: rounding must not give their sum of zero a sign.
        projection = around.sign().mul_(around.abs() > 1e-6).mul_(bound)
        run.memory[self.id] = total.add_(projection)
        # The inner step adds alpha * sign.
        return inner((adv + (bound - run.alpha) * sign).add_(projection), g)


def box_sum(x: Tensor, side: int) -> Tensor:
    """The sum over a square of odd `side` around each pixel of `[n, c, h, w]`, zeros outside.

    Row by row and from left to right, as `avg_pool2d` adds; that takes several times as long.
    """
    import torch

    out, reach = torch.zeros_like(x), side // 2
    height, width = x.shape[-2:]
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            rows = slice(max(0, -down), height - max(0, down)), slice(max(0, down), height + min(0, down))
            columns = slice(max(0, -right), width - max(0, right)), slice(max(0, right), width + min(0, right))
            if abs(down) < height and abs(right) < width:
                out[..., rows[0], columns[0]] += x[..., rows[1], columns[1]]
    return out
