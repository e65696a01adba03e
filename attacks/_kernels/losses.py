"""Losses of adaptive attacks, each a number per image that is ascended."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy as _cross_entropy

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits `[n, classes]` and labels int64 `[n]` -> one number per image `[n]`."""

TINY = 1e-12
"""Added to denominators, as in fra31/auto-attack."""

CONFIDENCE = 50.0
"""The margin beyond which `cw` stops (Madry et al. 2018, Sec. 5)."""


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-log softmax(z)_y."""
    return _cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """max_{i != y} z_i - z_y: positive where the image is misclassified."""
    own = logits.gather(1, y[:, None])[:, 0]
    return logits.scatter(1, y[:, None], -torch.inf).amax(1) - own


def cw(logits: Tensor, y: Tensor) -> Tensor:
    """The margin up to `CONFIDENCE` (Carlini and Wagner 2017, Eq. 6)."""
    return margin(logits, y).clamp(max=CONFIDENCE)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio: -(z_y - max_{i != y} z_i) / (z_(1) - z_(3)) (Croce and Hein 2020b, Eq. 6)."""
    top = logits.topk(3, dim=1)
    first = top.values[:, 0]
    best_other = torch.where(top.indices[:, 0] == y, top.values[:, 1], first)
    own = logits.gather(1, y[:, None])[:, 0]
    return (best_other - own) / (first - top.values[:, 2] + TINY)


def targeted_dlr(target: Tensor) -> Loss:
    """-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2) (Croce and Hein 2020b, Eq. 7).

    Args:
        target: t, int64 `[n]`.
    """

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        top = logits.topk(4, dim=1).values
        own, wanted = (logits.gather(1, each[:, None])[:, 0] for each in (y, target))
        return (wanted - own) / (top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + TINY)

    return loss


def towards(target: Tensor) -> Loss:
    """z_t - z_y, the difference whose zero is the boundary to class t."""

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        own, wanted = (logits.gather(1, each[:, None])[:, 0] for each in (y, target))
        return wanted - own

    return loss


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "margin": margin, "cw": cw, "dlr": dlr}
"""By the word that labels use."""
