"""No defense: the reference row of every table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rdp_bench.protocols import Purifier
from rdp_bench.registry import defense

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.rng import ImageRng


@defense("none", source="-")
@dataclass(frozen=True)
class Undefended(Purifier):
    """Leaves every image as it is: the classifier undefended."""

    differentiable = True
    backward = "exact"

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:  # noqa: ARG002 - nothing is drawn
        """`x` itself."""
        return x
