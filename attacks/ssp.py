"""Self-supervised perturbation: Naseer et al., "A Self-supervised Approach for Adversarial Robustness", CVPR 2020."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rdp_bench.errors import UsageError
from rdp_bench.protocols import Attack, Features
from rdp_bench.registry import attack

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.protocols import Source
    from rdp_bench.rng import ImageRng

Maps = Callable[["Tensor"], "list[Tensor]"]


@attack("ssp", source="Naseer et al. 2020, Eq. 1; Muzammal-Naseer/NRP ssp.py; RDP, Eq. 1")
@dataclass(frozen=True)
class SelfSupervised(Attack):
    """Drives a network's inner features away from the clean image's; needs no label.

    Starts, as the authors' code does, from pure noise N(0, 1) and not from the image: the first step's
    gradient is taken there, and the first projection puts most pixels on the faces of the eps-ball.
    """

    steps: int = 100
    """As in ssp.py, which ignores its option --iters."""
    step: float = 0.01
    """Step size in [0, 1] (2.55/255), the same at every eps."""
    level: int = 2
    """Feature level as timm counts: relu3_3 of VGG-16, stride 8 of EfficientNet."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        if not 1 <= self.steps <= 100_000 or not 0 < self.step <= 1 or not 0 <= self.level <= 100:
            raise ValueError("steps is 1 to 100000, step above 0 and at most 1, level 0 to 100")

    def __call__(self, source: Source, x: Tensor, y: Tensor, eps: float, rng: ImageRng) -> Tensor:  # noqa: ARG002
        """Images within `eps` of `x` whose features at `level` are far from those of `x`, summed over members."""
        members = [member for member in source.members if isinstance(member, Features)]
        for member in source.members:
            if not isinstance(member, Features):
                raise UsageError(f"ssp needs feature maps, and {member.name} has no method `features`")

        def features(images: Tensor) -> list[Tensor]:
            return [member.features(images, (self.level,))[0] for member in members]

        return distort(features, x, rng.normal(*x.shape[1:]), eps, self.steps, self.step)


def distort(
    features: Maps,
    x: Tensor,
    start: Tensor,
    eps: Tensor | float,
    steps: int,
    step: Tensor | float,
    direction: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Ascend |features(x') - features(x)|^2 by sign steps, each projected to `eps` of `x` and [0, 1].

    Args:
        features: images -> feature maps, each `[n, c, h', w']`.
        x: clean images `[n, 3, h, w]` in [0, 1].
        start: where the iteration starts, of the same shape; may be outside of the budget.
        eps: L-infinity budget in [0, 1], one number or `[n, 1, 1, 1]`.
        steps: number of steps.
        step: step size in [0, 1], one number or `[n, 1, 1, 1]`.
        direction: changes the gradient before its sign is taken.
    """
    import torch

    with torch.no_grad():
        wanted = features(x)
    low, high = (x - eps).clamp_(0, 1), (x + eps).clamp_(0, 1)
    adv = start
    for _ in range(steps):
        leaf = adv.detach().requires_grad_()
        # Mean over a map, sum over images: the sign of an image's gradient does not depend on the others.
        loss = sum(((a - b) ** 2).mean((1, 2, 3)).sum() for a, b in zip(features(leaf), wanted, strict=True))
        (grad,) = torch.autograd.grad(loss, leaf)  # type: ignore[arg-type]
        adv = adv + step * torch.sign(grad if direction is None else direction(grad))
        adv = torch.minimum(torch.maximum(adv, low), high)
    return adv.detach()
