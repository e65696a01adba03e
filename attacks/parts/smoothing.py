"""TI: translation invariance by smoothing the gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rdp_bench.attacks.parts.base import Part
from rdp_bench.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.attacks.parts.base import Gradient, Run


@dataclass(frozen=True)
class Smoothing(Part):
    """G = W * G with a Gaussian W (Dong et al. 2019, Eq. 7 and Sec. 3.3), sigma = (kernel_size - 1) / 6 pixels."""

    id: ClassVar[str] = "smoothing"
    order: ClassVar[int] = 30
    off: ClassVar[Any] = 1

    kernel_size: int = 15
    """Length of the kernel in pixels, odd."""

    def rules(self) -> Mapping[str, bool]:
        """Ranges of the fields."""
        return {
            "kernel_size is odd and at least 1": self.kernel_size >= 1 and self.kernel_size % 2 == 1,
            "kernel_size is at most 4001": self.kernel_size <= 4001,
        }

    def start(self, run: Run, adv: Tensor) -> Tensor:  # noqa: ARG002 - the start stays
        """Refuse images that the kernel is too long for."""
        height, width = adv.shape[2:]
        if self.kernel_size > 2 * max(height, width) + 1:
            raise UsageError(
                f"kernel_size {self.kernel_size} is more than twice the size of the images, {width} x {height} pixels"
            )
        return adv

    def gradient(self, run: Run, inner: Gradient, at: Tensor) -> Tensor:  # noqa: ARG002
        """The smoothed gradient."""
        from rdp_bench.attacks._kernels.smoothing import smooth

        return smooth(inner(at), self.kernel_size)
