"""How near purified images come to the clean ones: mean squared error (so PSNR), SSIM and, where it is here, LPIPS."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from rdp_bench.metrics import lpips as perceptual

WINDOW, SIGMA = 11, 1.5  # Wang et al. 2004, Sec. III-B
_GREY = 0.5
_C1, _C2 = 0.01**2, 0.03**2  # their K1 and K2, for values in [0, 1]


def measure(purified: Tensor, clean: Tensor, *, lpips: Sequence[str] | None = None) -> dict[str, Tensor]:
    """`mse`, `ssim` and, if asked, `lpips`, `[n]` each, of `pure` `[n, 3, t, t]` to `clean` `[n, 3, s, s]` in [0, 1].

    `lpips` are the hashes of its weights (`perceptual.record`), or None where it is not asked for.

    Images of another size are brought back to the clean one's first (bicubic, antialiased).
    """
    if purified.shape[-1] != clean.shape[-1]:
        purified = interpolate(purified, clean.shape[-1], mode="bicubic", antialias=True).clamp(0, 1)
    found = {"mse": (purified - clean).square().mean((1, 2, 3)), "ssim": ssim(purified, clean)}
    return found | ({"lpips": perceptual.distance(purified, clean, lpips)} if lpips else {})


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity `[n]` of images `[n, 3, s, s]`: the mean over red, green and blue, each on its own.

    A Gaussian window of 11 pixels, sigma 1.5, only where it lies inside the image (Wang et al. 2004). NaN for images
    smaller than the window.
    """
    if first.shape[-1] < WINDOW:
        return first.new_full((len(first),), torch.nan)
    # Around grey: variances are differences of near equal numbers, and the nearer to 0 the less they lose.
    a, b = first - _GREY, second - _GREY
    mean_a, mean_b, square_a, square_b, product = _blur(torch.cat([a, b, a * a, b * b, a * b])).chunk(5)
    contrast = square_a - mean_a**2 + square_b - mean_b**2 + _C2
    structure = 2 * (product - mean_a * mean_b) + _C2
    mean_a, mean_b = mean_a + _GREY, mean_b + _GREY
    light = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    return (light * structure / contrast).mean((1, 2, 3))


def _blur(x: Tensor) -> Tensor:
    """Gaussian means of the windows inside each channel: `[n, 3, s, s]` to `[n, 3, s - 10, s - 10]`."""
    places = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    weights = torch.exp(-(places**2) / (2 * SIGMA**2))
    size = x.shape[-1]
    # Row i of this matrix is the window that starts at pixel i; two products beat convolutions of one channel.
    band = torch.stack([pad(weights / weights.sum(), (i, size - WINDOW - i)) for i in range(size - WINDOW + 1)])
    return band @ x @ band.T
