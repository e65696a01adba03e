"""BayesShrink on Haar wavelets, as scikit-image did it up to 0.15."""

from __future__ import annotations

from math import log2

import torch
from torch import Tensor
from torch.nn.functional import pad

from rdp_bench.numerics.in_parts import in_parts

# ITU-R BT.601: R, G, B in [0, 1] to Y in 16-235 and Cb, Cr in 16-240. Offsets cancel below.
YCBCR = torch.tensor(
    [[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]], dtype=torch.float64
)


def denoised(images: Tensor, sigma: float) -> Tensor:
    """`denoise` of a batch `[n, 3, h, w]`, as many images at a time as the device computes fastest."""
    return in_parts(images, lambda part: denoise(part, sigma), on_cpu=4)  # the fastest of 1, 2, 4, 5, 10 and 20


def denoise(images: Tensor, sigma: float) -> Tensor:
    """`images` `[..., 3, h, w]` in [0, 1] without noise of standard deviation `sigma`.

    Old semantics, which made the authors' published demo image: every channel of YCbCr is stretched to
    [0, 1] first, and `sigma` is not scaled along. (Versions from 0.16 scale it, which shrinks less.)
    """
    channels = (YCBCR.to(images) @ images.flatten(-2)).view_as(images)
    low, high = channels.amin((-2, -1), keepdim=True), channels.amax((-2, -1), keepdim=True)
    # A flat channel has nothing to shrink; the epsilon keeps rounding noise from being stretched.
    span = (high - low).clamp(min=1e-3)
    clean = shrink((channels - low) / span, sigma).clamp(0, 1) * span + low
    return (YCBCR.inverse().to(images) @ clean.flatten(-2)).view_as(images).clamp(0, 1)


def levels_of(height: int, width: int) -> int:
    """How deep scikit-image goes by default: three short of the deepest, at least one."""
    return max(int(log2(min(height, width))) - 3, 1)


def shrink(channels: Tensor, sigma: float) -> Tensor:
    """Soft-threshold each band of each channel `[..., h, w]` (BayesShrink: Chang et al. 2000)."""
    sizes, bands = [], []
    for _ in range(levels_of(*channels.shape[-2:])):
        sizes.append(channels.shape[-2:])
        channels, *details = split(channels)
        bands.append([_soft(detail, sigma**2) for detail in details])
    for (height, width), details in zip(reversed(sizes), reversed(bands), strict=True):
        channels = join(channels, *details)[..., :height, :width]
    return channels


def _soft(detail: Tensor, noise: float) -> Tensor:
    power = (detail**2).mean((-2, -1), keepdim=True)  # of signal and noise
    threshold = noise / (power - noise).clamp(min=torch.finfo(detail.dtype).eps).sqrt()
    return detail - detail.clamp(-threshold, threshold)


def split(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One level of the orthonormal Haar transform of `[..., h, w]`; an odd edge is mirrored.

    Returns the mean band and the three details, each of half the size.
    """
    x = pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2), mode="replicate")
    a, b, c, d = x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]
    return (a + b + c + d) / 2, (a + b - c - d) / 2, (a - b + c - d) / 2, (a - b - c + d) / 2


def join(mean: Tensor, rows: Tensor, columns: Tensor, both: Tensor) -> Tensor:
    """The inverse of `split`, at even size."""
    x = mean.new_empty(*mean.shape[:-2], 2 * mean.shape[-2], 2 * mean.shape[-1])
    x[..., ::2, ::2] = (mean + rows + columns + both) / 2
    x[..., ::2, 1::2] = (mean + rows - columns - both) / 2
    x[..., 1::2, ::2] = (mean - rows + columns - both) / 2
    x[..., 1::2, 1::2] = (mean - rows - columns + both) / 2
    return x
