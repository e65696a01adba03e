"""Self-supervised perturbation: Naseer et al., "A Self-supervised Approach for Adversarial Robustness", CVPR 2020."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rdp_bench.errors import UsageError
from rdp_bench.protocols import Features
from rdp_bench.registry import attack

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.protocols import Source
    from rdp_bench.rng import ImageRng

Features = Callable[["Tensor"], "list[Tensor]"]


@attack("ssp", source="Naseer et al. 2020, Eq. 1; Muzammal-Naseer/NRP ssp.py; RDP, Eq. 1")
@dataclass(frozen=True)
class SelfSupervised:
    """Drives a network's inner features away from the clean image's; needs no label.

    Starts, as the authors' code does, from pure noise N(0, 1) and not from the image: the first step's
    gradient is taken there, and the first projection puts most pixels on the faces of the eps-ball.
    """

    steps: int = 100  # ssp.py; fixed there whatever its --iters says
    step: float = 0.01  # of [0, 1], so 2.55 in /255, at every eps
    level: int = 2  # which of timm's feature maps: relu3_3 of VGG-16, stride 8 of EfficientNet

    def __post_init__(self) -> None:
        """Refuse what never moves."""
        if not 1 <= self.steps <= 100_000 or not 0 < self.step <= 1 or not 0 <= self.level <= 100:
            raise ValueError("steps is 1 to 100000, step above 0 and at most 1, level 0 to 100")

    def resolved(self, eps_255: float) -> dict[str, Any]:  # noqa: ARG002 - the step does not scale
        """Every parameter, as JSON."""
        return asdict(self)

    def gradients(self, eps_255: float) -> int:  # noqa: ARG002
        """One a step."""
        return self.steps

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
    features: Features,
    x: Tensor,
    start: Tensor,
    eps: Tensor | float,
    steps: int,
    step: Tensor | float,
    direction: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Ascend |features(x') - features(x)|^2 by sign steps from `start`, each projected to `eps` of `x` and [0, 1].

    `eps` and `step` may be one number an image, `[n, 1, 1, 1]`. `direction` may change the gradient before its sign.
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
