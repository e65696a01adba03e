"""Random signs: the control that every attack must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rdp_bench.protocols import Attack
from rdp_bench.registry import attack

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.protocols import Source
    from rdp_bench.rng import ImageRng


@attack("noise", source="Carlini et al. 2019, arXiv 1902.06705, Sec. 4")
@dataclass(frozen=True)
class Noise(Attack):
    """Adds -eps or +eps to every value at random, and asks no source."""

    def __call__(self, source: Source, x: Tensor, y: Tensor, eps: float, rng: ImageRng) -> Tensor:  # noqa: ARG002
        """Images at the corners of the budget around `x`."""
        import torch

        return (x + eps * torch.where(rng.uniform(*x.shape[1:]) < 0.5, -1.0, 1.0)).clamp(0, 1)

    def gradients(self, eps_255: float) -> int:  # noqa: ARG002
        """None."""
        return 0
