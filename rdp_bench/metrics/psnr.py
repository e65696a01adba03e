"""Peak signal-to-noise ratio of images in [0, 1]."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from rdp_bench.keys import Record
from rdp_bench.metrics.measurement import Measurement

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor


def psnr(mse: "ArrayLike") -> "NDArray[Any]":
    """Peak signal-to-noise ratio in dB of mean squared errors of values in [0, 1]; infinite for equal images.

    >>> psnr([0.01, 0.0]).tolist()
    [20.0, inf]
    """
    import numpy as np

    with np.errstate(divide="ignore"):
        decibels: NDArray[Any] = -10 * np.log10(np.asarray(mse, float))
    return decibels


class Psnr(Measurement):
    """PSNR; the mean squared error is stored, so that equal images have a finite number there."""

    name, title, unit = "psnr", "PSNR", "dB"
    better: ClassVar[Literal["higher", "lower"]] = "higher"
    array = "mse"
    note = "PSNR is in dB."

    def measure(self, purified: "Tensor", clean: "Tensor", facts: Record) -> "Tensor":  # noqa: ARG002
        """Mean squared errors `[n]`."""
        return (purified - clean).square().mean((1, 2, 3))

    def values(self, stored: "NDArray[Any]") -> "NDArray[Any]":
        """PSNR in dB."""
        return psnr(stored)
