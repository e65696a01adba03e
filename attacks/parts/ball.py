"""The norm of the budget: random points in it, steps, and projection back to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rdp_bench.attacks.parts.base import Part, find, require
from rdp_bench.attacks.parts.nesterov import Nesterov
from rdp_bench.attacks.parts.steps import Steps
from rdp_bench.budgets import LINF, NORMS, Norm

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.attacks.parts.base import Run
    from rdp_bench.rng import ImageRng


@dataclass(frozen=True)
class Ball(Part):
    """The budget's ball (Madry et al. 2018, Sec. 2.1).

    * `linf`: x_{t+1} = clip(x_t + alpha * sign(g), x - eps, x + eps), then to [0, 1].
    * `l2`: x_t + alpha * g / |g|_2, projected to the ball of radius eps around x, then to [0, 1].
    """

    id: ClassVar[str] = "ball"
    version: ClassVar[int] = 2
    order: ClassVar[int] = 1
    off: ClassVar[Any] = LINF  # the norm without this part

    norm: Norm = LINF

    def rules(self) -> Mapping[str, bool]:
        """Only known norms."""
        return {f"norm is one of {NORMS}": self.norm in NORMS}

    def check(self, parts: Sequence[Part]) -> None:
        """Units in /255 and sign steps have no meaning in other norms."""
        steps = find(parts, Steps) or Steps()
        if self.norm != LINF:
            require(
                {
                    "steps=auto is a rule for eps in /255; give a number, as in steps=10": steps.steps is not None,
                    "alpha is in /255; write alpha=auto, and step_ratio for steps of step_ratio * eps / steps": (
                        steps.alpha is None and not steps.alpha_floor
                    ),
                    "nesterov's look-ahead is defined for sign steps only": find(parts, Nesterov) is None,
                }
            )

    @property
    def unit(self) -> int:
        """The number that stands for 1.0 where budgets are written: 255 for levels of 8-bit images."""
        return 255 if self.norm == LINF else 1

    def random(self, x: Tensor, eps: float, rng: ImageRng) -> Tensor:
        """A random change of each image: uniform in the cube, or in a uniform direction of a uniform length."""
        if self.norm == LINF:
            return rng.uniform(*x.shape[1:], low=-eps, high=eps)
        from rdp_bench.attacks._kernels.norms import unit_l2

        direction, length = unit_l2(rng.normal(*x.shape[1:])), eps * rng.uniform()
        return length.view(-1, 1, 1, 1) * direction

    def stepper(self, run: Run) -> Callable[[Tensor, Tensor], Tensor]:
        """The function of images and direction that gives the images one step on, within the budget of `run`."""
        import torch

        from rdp_bench.attacks._kernels.norms import project_l2, unit_l2

        x, eps, alpha = run.x, run.eps, run.alpha
        if self.norm == LINF:
            return sign_stepper((x - eps).clamp_(0, 1), (x + eps).clamp_(0, 1), alpha)

        def step(adv: Tensor, g: Tensor) -> Tensor:
            return torch.clamp(project_l2(adv + alpha * unit_l2(g), x, eps), 0, 1)  # type: ignore[arg-type]

        return step


def sign_stepper(low: Tensor, high: Tensor, alpha: float | Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Steps of `alpha * sign(g)`, clipped to `low` and `high`, written into the images that are stepped from.

    Args:
        low: smallest values, of the images' shape.
        high: largest values.
        alpha: step size, one number or `[n, 1, 1, 1]`.
    """
    import torch

    sign = torch.empty_like(low)

    def step(adv: Tensor, g: Tensor) -> Tensor:
        torch.sign(g, out=sign)
        adv = adv.add_(sign * alpha) if isinstance(alpha, torch.Tensor) else adv.add_(sign, alpha=alpha)
        return torch.clamp(adv, low, high, out=adv)

    return step
