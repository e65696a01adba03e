"""Our own denoiser: one network for every noise level, trained by `rdp-bench train denoiser`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rdp_bench.defenses._score import HIGHEST, ScoreFile
from rdp_bench.registry import defense

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.rng import ImageRng


@defense("denoiser", source="this package; preconditioned as in Karras et al. 2022, Table 1 (EDM)")
@dataclass(frozen=True)
class GaussianDenoiser(ScoreFile):
    """Removes noise of level `sigma` from an image to which none was added: the perturbation is taken for the noise.

    The control for all defenses that add noise and remove it with the same network.
    """

    sigma: float = 0.06  # about the deviation of L-infinity perturbations of 16/255

    only_by_name: ClassVar[bool] = True
    always_float32: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Reject noise levels outside those of the training."""
        if not 0 < self.sigma <= HIGHEST:
            raise ValueError(f"sigma is above 0 and at most {HIGHEST}, found {self.sigma}")

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:  # noqa: ARG002 - nothing is drawn
        """D(x, sigma) for `x` `[n, 3, h, w]`, clamped to [0, 1].

        Raises:
            BadModelError: a network for one noise level, on which `sigma` has no effect.
        """
        from rdp_bench.defenses._score import framed, restored

        net = self.told_its_level(x.device)
        out = net.denoise(framed(x, net), x.new_full((len(x),), self.sigma))
        return restored(out, x.shape[-2:], net).clamp(0, 1)
