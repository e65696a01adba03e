"""MI: momentum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rdp_bench.attacks.parts.base import Part

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.attacks.parts.base import Gradient, Run


@dataclass(frozen=True)
class Momentum(Part):
    """g_{t+1} = mu * g_t + G / mean|G| (Dong et al. 2018, Eq. 6; the mean instead of the sum, as in their code)."""

    id: ClassVar[str] = "momentum"
    order: ClassVar[int] = 10
    off: ClassVar[Any] = 0.0
    aliases: ClassVar = {"mu": "momentum"}

    momentum: float = 1.0

    def rules(self) -> Mapping[str, bool]:
        """Ranges of the fields."""
        return {"momentum is not negative": self.momentum >= 0}

    def gradient(self, run: Run, inner: Gradient, at: Tensor) -> Tensor:
        """The accumulated gradient."""
        from rdp_bench.attacks._kernels.norms import normalise

        return normalise(inner(at)).add_(run.g, alpha=self.momentum)
