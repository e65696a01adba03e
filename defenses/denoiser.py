"""Our own denoiser: one network for every noise level, trained by `rdp-bench train denoiser`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rdp_bench.defenses._learned import Learned
from rdp_bench.registry import defense

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.rng import ImageRng


@defense("denoiser", source="this package; preconditioned as in Karras et al. 2022, Table 1 (EDM)")
@dataclass(frozen=True)
class GaussianDenoiser(Learned):
    """Removes noise of level `sigma` from an image that got none: the perturbation is taken for the noise.

    The control for all defenses that add noise and remove it with the same network: it adds none.
    """

    sigma: float = 0.06  # 16/255: L-infinity perturbations of this size, mostly at full size, have about this deviation

    kind: ClassVar[str] = "denoiser"
    network: ClassVar[str] = "rdp_bench.defenses._networks.edm:Denoiser"

    def __post_init__(self) -> None:
        """Reject noise levels outside those of the training."""
        if not 0 < self.sigma <= 0.5:
            raise ValueError(f"sigma is above 0 and at most .5, found {self.sigma}")

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:  # noqa: ARG002 - nothing is drawn
        """D(x, sigma) for `x` `[n, 3, h, w]`, clamped to [0, 1]."""
        return self.forward(x, x.new_full((len(x),), self.sigma)).clamp(0, 1)
