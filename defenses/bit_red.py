"""Bit-depth reduction: Xu et al., "Feature Squeezing", NDSS 2018.

Four incompatible quantisers go by this name. This one is the squeezer's authors' (mzweilin/EvadeML-Zoo):
2^b levels from 0 to 1, nearest. Guo et al. round x * 2^d with d 8; obfuscated-gradients floors to 3 bits,
which darkens; VT's has four levels between soft sigmoids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rdp_bench.protocols import Purifier
from rdp_bench.registry import defense

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.rng import ImageRng


@defense("bit-red", source="Xu et al. 2018; mzweilin/EvadeML-Zoo")
@dataclass(frozen=True)
class BitDepthReduction(Purifier):
    """Rounds every pixel to one of 2^5 evenly spaced values."""

    bits: int = 5  # the authors' ImageNet setting; CIFAR-10: 4 or 5

    def __post_init__(self) -> None:
        """Reject depths outside 1 to 8 bits."""
        if not 1 <= self.bits <= 8:
            raise ValueError(f"bits is 1 to 8, found {self.bits}")

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:  # noqa: ARG002 - nothing is drawn
        """`x` rounded to 2^bits values; ties go to the even level."""
        levels = 2**self.bits - 1
        grid: Tensor = (x * levels).round() / levels
        return grid
