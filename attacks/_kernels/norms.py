"""Norms of images and gradients: normalisation, L2 directions and projection."""

from __future__ import annotations

import torch
from torch import Tensor


def normalise(grad: Tensor) -> Tensor:
    """Each image's gradient divided by its mean absolute value; a zero gradient stays zero.

    Dong et al. 2018, Eq. 6 divide by the L1 norm, their code by the mean: the sign of the sum is the
    same for one norm, so either; we follow the code.
    """
    mean = grad.abs().mean(dim=(1, 2, 3), keepdim=True)
    return grad / mean.masked_fill_(mean == 0, 1)


def norm_l2(x: Tensor) -> Tensor:
    """L2 norm of each image, `[n, 1, 1, 1]`."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True)
    return norm


def unit_l2(x: Tensor) -> Tensor:
    """Each image divided by its L2 norm; zero stays zero."""
    norm = norm_l2(x)
    return x / norm.masked_fill(norm == 0, 1)


def project_l2(adv: Tensor, x: Tensor, eps: float) -> Tensor:
    """The nearest point to `adv` whose L2 distance to `x` is at most `eps`, per image."""
    delta = adv - x
    norm = norm_l2(delta)
    return x + delta * (eps / norm.masked_fill(norm == 0, 1)).clamp(max=1)
