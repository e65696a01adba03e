"""Convolution of gradients with the Gaussian of TI-FGSM."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import conv2d

STRIP = 75  # columns: of many widths tried, the fastest on a CPU


@lru_cache(maxsize=8)
def gaussian(length: int, device: torch.device | str = "cpu") -> Tensor:
    """Normal density at `length` points of [-3, 3], summing to 1 (Dong et al. 2019, their code), on `device`."""
    density = torch.exp(-(torch.linspace(-3, 3, length, dtype=torch.float64) ** 2) / 2)
    return (density / density.sum()).float().to(device)


def smooth(grad: Tensor, length: int) -> Tensor:
    """Gradient `[n, c, h, w]` convolved with the TI kernel, zero padding, borders not renormalised.

    The kernel is an outer product, so two one-dimensional passes give the same sum. The first takes an
    image's columns for channels of a depthwise convolution: in memory they lie as channels-last wants them.
    The second is a product with a band matrix, a strip of columns at a time.
    """
    n, c, h, w = grad.shape
    half = length // 2
    kernel = gaussian(length, grad.device).view(1, 1, -1, 1).expand(w, 1, -1, 1)
    columns = grad.reshape(n * c, h, 1, w).permute(0, 3, 1, 2)
    with torch.autocast(grad.device.type, enabled=False):  # a training under way may have lowered the precision
        rows = conv2d(columns, kernel, padding=(half, 0), groups=w).permute(0, 2, 3, 1).reshape(-1, w)
        band = _band(w, length, grad.device)
        out = torch.empty_like(rows)
        for left in range(0, w, STRIP):
            right = min(left + STRIP, w)
            reach = slice(max(0, left - half), right + half)
            torch.mm(rows[:, reach], band[reach, left:right], out=out[:, left:right])
    return out.view(n, c, h, w)


@lru_cache(maxsize=8)
def _band(size: int, length: int, device: torch.device) -> Tensor:
    """The matrix `[size, size]` that convolves with `gaussian(length)` and pads with zeros."""
    kernel, half = gaussian(length), length // 2
    offset = torch.arange(size)[:, None] - torch.arange(size) + half
    return torch.where((offset >= 0) & (offset < length), kernel[offset.clamp(0, length - 1)], 0.0).to(device)
