"""Feature distillation: Liu et al., "Feature Distillation: DNN-Oriented JPEG Compression", CVPR 2019."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rdp_bench.protocols import Purifier
from rdp_bench.registry import defense

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.draws import Draws


@defense("fd", source="Liu et al. 2019; zihaoliu123/Feature-Distillation-DNN-Oriented-JPEG-Compression")
@dataclass(frozen=True)
class FeatureDistillation(Purifier):
    """Quantises the 8 x 8 cosine coefficients of R, G and B: step 25 for the low, 30 for the high.

    As the authors' code does, and unlike JPEG: no YCbCr, no subsampling, no level shift. Sizes that are no
    multiple of 8 are padded with their edge and cropped (299 to 304 and back); the authors' protocol
    resizes there instead. Their loop leaves the first image of a batch black; this one does not.
    """

    low: int = 25  # utils/feature_distillation.py: the 4 x 4 lowest frequencies
    high: int = 30  # the other 48

    def __post_init__(self) -> None:
        """Refuse steps that quantise nothing."""
        if min(self.low, self.high) < 1:
            raise ValueError(f"low and high are steps of at least 1, found {self.low} and {self.high}")

    def purify(self, x: Tensor, draws: Draws) -> Tensor:  # noqa: ARG002 - nothing is drawn
        """Images of the size of `x` `[n, 3, h, w]`, clipped to [0, 1]."""
        import torch
        from torch.nn.functional import pad

        n, channels, height, width = x.shape
        padded = pad(x.detach() * 255, (0, -width % 8, 0, -height % 8), mode="replicate")
        # Frequencies are columns; both directions at once, as one 64 x 64 matrix.
        k = torch.arange(8, dtype=torch.float64)
        cosine = torch.cos(torch.pi / 8 * (k + 0.5)[:, None] * k) / 2
        cosine[:, 0] = 8**-0.5
        transform = torch.kron(cosine, cosine).to(x.device)
        step = torch.full((8, 8), float(self.high), dtype=torch.float64, device=x.device)
        step[:4, :4] = self.low

        tall, wide = padded.shape[2] // 8, padded.shape[3] // 8
        blocks = padded.double().view(n, channels, tall, 8, wide, 8).transpose(3, 4).reshape(-1, 64)
        levels = blocks @ transform / step.flatten()
        # Halves are common (a block's mean is a multiple of 1/64): 2^-20 of a step is more than rounding
        # error, so that not the last bit decides, and halves go to the even level everywhere.
        levels = (levels * 2**20).round_().div_(2**20).round_()
        coded = (levels * step.flatten()) @ transform.T
        image: Tensor = coded.view(n, channels, tall, wide, 8, 8).transpose(3, 4).reshape(padded.shape)
        return image[..., :height, :width].to(x.dtype).div_(255).clamp_(0, 1)
