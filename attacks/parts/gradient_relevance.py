"""GRA: gradients weighted by their agreement with those of the neighbourhood, and smaller steps where signs flip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rdp_bench.attacks.parts.ball import Ball
from rdp_bench.attacks.parts.base import Part, find, require
from rdp_bench.budgets import LINF

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.attacks.parts.base import Gradient, Run, Step


@dataclass(frozen=True)
class GradientRelevance(Part):
    """G = s g + (1 - s) g', s = cos(g, g'); steps of alpha * M per pixel (Zhu et al. 2023, Eq. 5-10).

    g is the gradient at x_t, g' the mean gradient of `relevance_samples` neighbours at x_t + U(-r, r) with
    r = `relevance_range` * eps. M starts at 1 / `relevance_decay`, and is multiplied by `relevance_decay` wherever the
    sign of the accumulated gradient differs from that of the step before.
    """

    id: ClassVar[str] = "gradient-relevance"
    order: ClassVar[int] = 41
    off: ClassVar[Any] = 0
    aliases: ClassVar = {"n": "relevance_samples", "beta": "relevance_range", "eta": "relevance_decay"}

    relevance_samples: int = 20
    relevance_range: float = 3.5
    relevance_decay: float = 0.94

    def rules(self) -> Mapping[str, bool]:
        """Ranges of the fields."""
        return {
            "relevance_samples is not negative and at most 10000": 0 <= self.relevance_samples <= 10_000,
            "relevance_range is above 0": self.relevance_range > 0,
            "relevance_decay is above 0 and at most 1": 0 < self.relevance_decay <= 1,
        }

    def check(self, parts: Sequence[Part]) -> None:
        """Step sizes per pixel belong to sign steps."""
        require({"GRA is defined for L-infinity": (find(parts, Ball) or Ball()).norm == LINF})

    @property
    def evaluations(self) -> int:
        """One at the image and one per neighbour."""
        return 1 + self.relevance_samples

    def gradient(self, run: Run, inner: Gradient, at: Tensor) -> Tensor:
        """The weighted gradient."""
        from rdp_bench.attacks._kernels.neighbours import mean_gradient
        from rdp_bench.attacks._kernels.norms import unit_l2

        here = inner(at)
        around = mean_gradient(inner, at, self.relevance_range * run.eps, self.relevance_samples, run.rng)
        relevance = (unit_l2(here) * unit_l2(around)).sum((1, 2, 3), keepdim=True)
        return relevance * here + (1 - relevance) * around

    def step(self, run: Run, inner: Step, adv: Tensor, g: Tensor) -> Tensor:
        """A sign step whose size differs from pixel to pixel."""
        import torch

        sign = g.sign()
        before = run.memory.get(self.id + "/sign", torch.zeros_like(g))
        scale = run.memory.get(self.id, torch.full_like(g, 1 / self.relevance_decay))
        scale = torch.where(sign == before, scale, scale * self.relevance_decay)
        run.memory[self.id], run.memory[self.id + "/sign"] = scale, sign
        # The inner step is clip(adv + alpha * sign): moving its start by alpha * (M - 1) * sign makes that alpha * M.
        return inner(adv + run.alpha * (scale - 1) * sign, g)
