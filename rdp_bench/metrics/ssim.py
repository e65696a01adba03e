"""Structural similarity (Wang et al. 2004)."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from rdp_bench.keys import Record
from rdp_bench.metrics.measurement import Measurement

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

WINDOW, SIGMA = 11, 1.5  # Wang et al. 2004, Sec. III-B
_GREY = 0.5
_C1, _C2 = 0.01**2, 0.03**2  # their K1 and K2, for values in [0, 1]


class Ssim(Measurement):
    """SSIM in percent."""

    name, title, unit = "ssim", "SSIM", "%"
    better: ClassVar[Literal["higher", "lower"]] = "higher"
    note = "SSIM is in percent, with a Gaussian window of 11 pixels, σ 1.5, the mean over red, green and blue."

    def facts(self) -> Record:
        """The window and the channels."""
        return {"window": WINDOW, "sigma": SIGMA, "channels": "rgb"}

    def measure(self, purified: "Tensor", clean: "Tensor", facts: Record) -> "Tensor":  # noqa: ARG002
        """SSIM `[n]`, 1 for equal images."""
        return ssim(purified, clean)

    def values(self, stored: "NDArray[Any]") -> "NDArray[Any]":
        """SSIM in percent."""
        return 100 * stored.astype(float)


def ssim(first: "Tensor", second: "Tensor") -> "Tensor":
    """Structural similarity `[n]` of images `[n, 3, s, s]`: the mean over red, green and blue, each on its own.

    A Gaussian window of 11 pixels, sigma 1.5, only where it lies inside the image (Wang et al. 2004). NaN for images
    smaller than the window.
    """
    import torch

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


def _blur(x: "Tensor") -> "Tensor":
    """Gaussian means of the windows inside each channel: `[n, 3, s, s]` to `[n, 3, s - 10, s - 10]`."""
    import torch
    from torch.nn.functional import pad

    places = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    weights = torch.exp(-(places**2) / (2 * SIGMA**2))
    size = x.shape[-1]
    # Row i of this matrix is the window that starts at pixel i; two products beat convolutions of one channel.
    band = torch.stack([pad(weights / weights.sum(), (i, size - WINDOW - i)) for i in range(size - WINDOW + 1)])
    return band @ x @ band.T
