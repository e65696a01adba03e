"""Coarsen: a defense as a plugin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rdp_bench import Purifier, defense
from rdp_bench.protocols import Backward

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.rng import ImageRng


@defense("mine/coarsen", source="my thesis, Sec. 3")
@dataclass(frozen=True)
class Coarsen(Purifier):
    """Replaces each block of `factor` x `factor` pixels by its mean."""

    factor: int = 2

    differentiable: ClassVar[bool] = True
    backward: ClassVar[Backward] = "exact"

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        """Return the block means of `x` `[n, 3, h, h]` in [0, 1], in the same shape."""
        from torch.nn.functional import avg_pool2d, interpolate

        coarse = avg_pool2d(x, self.factor)
        return interpolate(coarse, size=x.shape[-2:], mode="nearest")
