"""Wavelet denoising, the first half of SR: Mustafa et al., "Image Super-Resolution as a Defense ...", TIP 2020."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rdp_bench.defenses.jpeg import check_quality, codec, jpeg_round_trip
from rdp_bench.protocols import Purifier
from rdp_bench.registry import defense

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.rng import ImageRng


@defense("wavelet", source="Mustafa et al. 2020; aamir-mustafa/super-resolution-adversarial-defense")
@dataclass(frozen=True)
class Wavelet(Purifier):
    """Shrinks Haar wavelets of YCbCr by BayesShrink, sigma .04, then saves as JPEG 95.

    What the authors' scripts hand to super-resolution. Their file names sigma .01, their shipped image
    follows from .04 under the scikit-image of its time (see `_wavelet`), saved as JPEG 95.
    """

    has_smooth: ClassVar[bool] = True

    sigma: float = 0.04
    jpeg: int = 95  # quality; 0: not saved as JPEG

    def __post_init__(self) -> None:
        """Reject a negative sigma and a quality outside 1 to 100."""
        if self.sigma < 0:
            raise ValueError(f"sigma is at least 0, found {self.sigma}")
        if self.jpeg:
            check_quality(self.jpeg)

    def resolved(self) -> dict[str, Any]:
        """Every parameter, and the codec if one is used."""
        return {**super().resolved(), "codec": codec() if self.jpeg else None}

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:  # noqa: ARG002 - nothing is drawn
        """The denoised images, of the shape of `x` `[n, 3, h, w]`."""
        import torch

        from rdp_bench.defenses._wavelet import denoise

        clean = torch.stack([denoise(image, self.sigma) for image in x.detach()])
        return jpeg_round_trip(clean, self.jpeg) if self.jpeg else clean

    def smooth(self, x: Tensor, rng: ImageRng) -> Tensor:  # noqa: ARG002 - nothing is drawn
        """Shrinkage is differentiable; JPEG gets a soft rounding."""
        import torch

        from rdp_bench.defenses._smooth_jpeg import smooth_jpeg
        from rdp_bench.defenses._wavelet import denoise

        clean = torch.stack([denoise(image, self.sigma) for image in x])
        return smooth_jpeg(clean, self.jpeg) if self.jpeg else clean
