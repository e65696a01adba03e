"""Square attack: Andriushchenko et al., "Square Attack: a query-efficient black-box adversarial attack", ECCV 2020."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rdp_bench.attacks._base import Adaptive, limits
from rdp_bench.registry import attack

if TYPE_CHECKING:
    from rdp_bench.attacks._adaptive.victim import Run


@attack("square", source="Andriushchenko et al. 2020, Alg. 1-3; fra31/auto-attack")
@dataclass(frozen=True)
class Square(Adaptive):
    """Random squares of shrinking size, kept where the margin falls: 5000 queries, no gradient."""

    queries: int = 5000
    """Evaluations of the source per image. The sizes follow the paper's schedule for 10000."""
    restarts: int = 1
    first: float = 0.8
    """The share of the pixels that the first squares cover."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        super().__post_init__()
        limits(queries=self.queries, restarts=self.restarts)
        if not 0 < self.first <= 1:
            raise ValueError(f"first is above 0 and at most 1, found {self.first}")

    def runs(self, classes: int) -> Iterator[Run]:  # noqa: ARG002
        """See `Adaptive`."""
        from rdp_bench.attacks._adaptive import cascade

        return cascade.square_runs(self.queries, self.restarts, self.first)

    def gradients(self, eps_255: float) -> int:  # noqa: ARG002
        """In the time of a gradient, about three times a query's: at most, as images stop once they are broken."""
        return -(-self.queries * self.restarts // 3)
