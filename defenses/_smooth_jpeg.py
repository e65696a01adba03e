"""JPEG as a differentiable function: the stand-in for attacks through `jpeg` and what contains it.

Baseline JPEG with chroma at half resolution, and rounding replaced by the nearest integer plus the cube of the
remainder (Shin and Song, "JPEG-resistant Adversarial Images", 2017): coefficients that quantisation sets to zero pass
little gradient.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

YCBCR = torch.tensor(
    [[0.299, 0.587, 0.114], [-0.168735892, -0.331264108, 0.5], [0.5, -0.418687589, -0.081312411]], dtype=torch.float64
)
"""JFIF: R, G, B to Y, Cb - 128, Cr - 128."""


def soft_round(x: Tensor) -> Tensor:
    """The nearest integer plus the cube of the remainder, which has a gradient."""
    nearest = x.detach().round()
    return nearest + (x - nearest) ** 3


@cache
def tables(quality: int) -> tuple[Tensor, Tensor]:
    """The encoder's quantisation steps `[8, 8]` of luma and chroma, read from a file that it writes."""
    from io import BytesIO

    from PIL import Image

    file = BytesIO()
    Image.new("RGB", (16, 16)).save(file, format="JPEG", quality=quality)
    with Image.open(file) as image:
        found = image.quantization  # type: ignore[attr-defined]
        luma, chroma = (torch.tensor(found[i], dtype=torch.float32).view(8, 8) for i in (0, max(found)))
    return luma, chroma


def cosines() -> Tensor:
    """The orthonormal cosine transform of eight values; frequencies are rows, `[8, 8]` float64."""
    k = torch.arange(8, dtype=torch.float64)
    found = torch.cos(torch.pi / 8 * k[:, None] * (k + 0.5)) / 2
    found[0] = 8**-0.5
    return found


def smooth_jpeg(x: Tensor, quality: int) -> Tensor:
    """Images `[n, 3, h, w]` in [0, 1] as JPEG gives them back, near enough, with a gradient."""
    height, width = x.shape[-2:]
    padded = pad(x, (0, -width % 16, 0, -height % 16), mode="replicate")
    to = YCBCR.to(x)
    planes = torch.einsum("ij,njhw->nihw", to, padded * 255)
    luma, chroma = (table.to(x) for table in tables(quality))
    bright = _coded(planes[:, :1] - 128, luma) + 128
    colour = _coded(avg_pool2d(planes[:, 1:], 2), chroma)
    colour = interpolate(colour, scale_factor=2, mode="bilinear", align_corners=False)
    out = torch.einsum("ij,njhw->nihw", YCBCR.inverse().to(x), torch.cat([bright, colour], 1)) / 255
    return out[..., :height, :width].clamp(0, 1)


def _coded(planes: Tensor, steps: Tensor) -> Tensor:
    """Planes `[n, c, h, w]`, h and w in steps of 8, quantised block by block in the cosine domain."""
    n, channels, height, width = planes.shape
    blocks = planes.view(n, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    matrix = cosines().to(planes)
    quantised = soft_round(matrix @ blocks @ matrix.T / steps) * steps
    return (matrix.T @ quantised @ matrix).transpose(3, 4).reshape(planes.shape)
