"""SI: copies of the image at falling contrast."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rdp_bench.attacks.parts.base import Part, identity

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.attacks.parts.base import Run, Transform


@dataclass(frozen=True)
class ScaleCopies(Part):
    """G = sum_i grad J(x / 2^i, y), i = 0 .. m - 1 (Lin et al. 2020, Eq. 8).

    Their images are in [-1, 1]; here a copy is scaled towards mid-grey .5.
    """

    id: ClassVar[str] = "scale-copies"
    order: ClassVar[int] = 50
    off: ClassVar[Any] = 1
    aliases: ClassVar = {"m": "scale_copies"}

    scale_copies: int = 5
    """m, the number of copies."""

    def rules(self) -> Mapping[str, bool]:
        """Ranges of the fields."""
        return {
            "scale_copies is at least 1": self.scale_copies >= 1,
            "scale_copies is at most 100": self.scale_copies <= 100,  # the contrast of copy 100 is below any float32
        }

    @property
    def evaluations(self) -> int:
        """One per copy."""
        return self.scale_copies

    def copies(self, run: Run) -> Iterable[Transform]:  # noqa: ARG002
        """Images at contrast 1, 1/2, 1/4, ..."""
        return [identity, *(_at_contrast(0.5**i) for i in range(1, self.scale_copies))]


def _at_contrast(contrast: float) -> Transform:
    from rdp_bench.attacks._kernels.gather import GREY

    def scaled(images: Tensor) -> Tensor:
        return GREY + (images - GREY) * contrast

    return scaled
