"""Blur: the purifier of the tutorial, as a plugin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rdp_bench import Purifier, defense
from rdp_bench.protocols import Backward

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.rng import ImageRng


@defense("mine/blur", source="my paper, Sec. 3", title="Ours")
@dataclass(frozen=True)
class Blur(Purifier):
    """Averages each pixel with its neighbours."""

    size: int = 3

    differentiable: ClassVar[bool] = True
    backward: ClassVar[Backward] = "exact"

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        """`x` `[n, 3, h, h]` in [0, 1] -> the same shape, averaged over `size` x `size` pixels."""
        from torch.nn.functional import avg_pool2d, pad

        return avg_pool2d(pad(x, [self.size // 2] * 4, mode="replicate"), self.size, stride=1)
