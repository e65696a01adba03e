"""NI: Nesterov's look-ahead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rdp_bench.attacks.parts.base import Part, find, require
from rdp_bench.attacks.parts.momentum import Momentum

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.attacks.parts.base import Gradient, Run


@dataclass(frozen=True)
class Nesterov(Part):
    """The gradient is taken at x_t + alpha * mu * g_t (Lin et al. 2020, Eq. 6), not clipped, as in their code."""

    id: ClassVar[str] = "nesterov"
    order: ClassVar[int] = 20
    off: ClassVar[Any] = False

    nesterov: bool = True

    def check(self, parts: Sequence[Part]) -> None:
        """The look-ahead follows the momentum."""
        require({"nesterov needs momentum above 0": find(parts, Momentum) is not None})

    def gradient(self, run: Run, inner: Gradient, at: Tensor) -> Tensor:
        """The gradient one momentum step ahead."""
        momentum = run.part(Momentum)
        assert momentum is not None
        return inner(at + momentum.momentum * run.alpha * run.g)
