"""Halfstep: an attack as a plugin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rdp_bench import Attack, attack

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.protocols import Source
    from rdp_bench.rng import ImageRng


@attack("mine/halfstep", source="my thesis, Alg. 1")
@dataclass(frozen=True)
class Halfstep(Attack):
    """Takes steps of eps/2, eps/4, ..., whose sum stays below eps."""

    steps: int = 8

    def __call__(
        self,
        source: Source,
        x: Tensor,
        y: Tensor,
        eps: float,
        rng: ImageRng,
    ) -> Tensor:
        """Return images within `eps` (in [0, 1]) of `x` `[n, 3, h, w]`; `y` `[n]` are labels."""
        import torch
        from torch.nn.functional import cross_entropy

        adv = x
        for k in range(1, self.steps + 1):
            adv = adv.detach().requires_grad_()
            outputs = [member(adv) for member in source.members]
            logits = torch.stack(outputs).mean(0)
            # A sum: no image's gradient depends on its neighbours.
            loss = cross_entropy(logits, y, reduction="sum")
            (grad,) = torch.autograd.grad(loss, adv)
            adv = (adv + eps / 2**k * grad.sign()).clamp(0, 1)
        return adv.detach()
