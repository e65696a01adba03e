"""The two-dimensional discrete cosine transform as matrix products."""

from __future__ import annotations

from functools import lru_cache
from math import pi

import torch
from torch import Tensor


@lru_cache(maxsize=512)
def basis(size: int, device: torch.device) -> Tensor:
    """The orthonormal DCT-II, `[size, size]`: row k is the k-th cosine."""
    k, i = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)
    rows = torch.cos(pi * (i + 0.5) * k / size) * (2 / size) ** 0.5
    rows[0] /= 2**0.5
    cosines: Tensor = rows.float().to(device)
    return cosines


def dct(images: Tensor) -> Tensor:
    """Coefficients of `images` `[..., h, w]`, of the same shape."""
    down, across = (basis(size, images.device) for size in images.shape[-2:])
    return down @ images @ across.mT


def inverse_dct(coefficients: Tensor) -> Tensor:
    """The images of `dct` coefficients."""
    down, across = (basis(size, coefficients.device) for size in coefficients.shape[-2:])
    return down.mT @ coefficients @ across
