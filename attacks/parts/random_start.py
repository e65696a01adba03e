"""Random start, as PGD has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rdp_bench.attacks.parts.ball import Ball
from rdp_bench.attacks.parts.base import Part

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.attacks.parts.base import Run


@dataclass(frozen=True)
class RandomStart(Part):
    """x_0 = x + a random change within the budget (Madry et al. 2018, Sec. 2.1)."""

    id: ClassVar[str] = "random-start"
    order: ClassVar[int] = 2
    off: ClassVar[Any] = False
    changes_first: ClassVar[bool] = True

    random_start: bool = True
    clip_start: bool = True
    """Clip the start to [0, 1] before the first gradient."""

    def start(self, run: Run, adv: Tensor) -> Tensor:
        """A random point of the ball."""
        ball = run.part(Ball) or Ball()
        adv = adv + ball.random(adv, run.eps, run.rng)  # type: ignore[arg-type]
        return adv.clamp_(0, 1) if self.clip_start else adv
