"""The iteration of `_tv` as autograd sees it: the stand-in for attacks through total-variation minimisation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from rdp_bench.defenses._tv import RELAX, TAU, _guess

TINY = 1e-12

LAST = 4
"""Steps that the gradient passes. They carry most of it: on photographs its cosine with all 12 steps' is 0.85."""


def unrolled(x: Tensor, kept: Tensor, mu: float, steps: int, last: int = LAST) -> Tensor:
    """What `_tv.inpaint` returns, up to rounding, with its gradient.

    Args:
        x: images `[n, c, h, w]`.
        kept: 0/1 masks of the same shape.
        mu: weight of the kept values.
        steps: all steps.
        last: how many of them the gradient passes; each keeps about eight images in memory.
    """
    # One by one: the arrays of one image fit a processor's cache.
    return torch.cat([_one(*pair, mu, steps, min(last, steps)) for pair in zip(x, kept, strict=True)])


def _one(x: Tensor, kept: Tensor, mu: float, steps: int, last: int) -> Tensor:
    """`unrolled` for the planes `[c, h, w]` of one image, `[1, c, h, w]`."""
    pull = TAU * mu * kept
    with torch.set_grad_enabled(torch.is_grad_enabled() and last == steps):
        u = _guess(x, kept)
    ahead, dual = u, torch.zeros(2, *u.shape, dtype=u.dtype, device=u.device)
    for number in range(steps):
        with torch.set_grad_enabled(torch.is_grad_enabled() and number >= steps - last):
            dual = _dual(dual, ahead, 50.0 if number == 0 else 1 / (8 * TAU), 1.0 if number == 0 else RELAX)
            nearest = (u + TAU * _divergence(dual) + pull * x) / (1 + pull)
            ahead = 2 * nearest - u
            u = u + (1.0 if number == steps - 1 else RELAX) * (nearest - u)
    return u[None]


def _dual(dual: Tensor, u: Tensor, sigma: float, relax: float) -> Tensor:
    """One relaxed step of the dual variable `[2, c, h, w]`, into the unit disc of each pixel."""
    trial = dual + sigma * torch.stack([pad(u.diff(dim=-1), (0, 1)), pad(u.diff(dim=-2), (0, 0, 0, 1))])
    length = (trial.square().sum(0) + TINY).sqrt()
    return dual + relax * (trial / length.clamp(min=1) - dual)


def _divergence(dual: Tensor) -> Tensor:
    across, down = dual
    found: Tensor = across - pad(across, (1, 0))[..., :-1] + down - pad(down, (0, 0, 1, 0))[..., :-1, :]
    return found
