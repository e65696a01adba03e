"""Number and size of the steps."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from rdp_bench.attacks.parts.base import Part
from rdp_bench.errors import UsageError
from rdp_bench.specs import show


@dataclass(frozen=True)
class Steps(Part):
    """How many steps, and how far each goes: x_{t+1} = x_t + alpha * sign(g) (Kurakin et al. 2016, Sec. 2.2).

    `alpha`, `alpha_floor` and `eps` are in /255; under an L2 budget, in units of the L2 norm.
    """

    id: ClassVar[str] = "steps"
    order: ClassVar[int] = 0
    off: ClassVar[Any] = ()  # never: every attack has steps

    steps: int | None = 10
    """Iterations; None ("auto") is min(eps + 4, 1.25 eps), rounded down (Kurakin et al. 2016, Sec. 3)."""
    alpha: float | None = None
    """Step size; None is `step_ratio * eps / steps`, but at least `alpha_floor`."""
    step_ratio: float = 1.0
    alpha_floor: float = 0.0

    def rules(self) -> Mapping[str, bool]:
        """Ranges of the fields."""
        return {
            "steps is above 0 and at most 100000, or auto": self.steps is None or 0 < self.steps <= 100_000,
            "alpha is above 0": self.alpha is None or self.alpha > 0,
            "alpha is at most 255": self.alpha is None or self.alpha <= 255,
            "step_ratio is above 0": self.step_ratio > 0,
            "alpha_floor is 0 to 255": 0 <= self.alpha_floor <= 255,
        }

    def unused(self, named: Collection[str]) -> Mapping[str, str]:
        """What makes the step size, where alpha is given."""
        if self.alpha is None:
            return {}
        return {name: f"alpha={show(self.alpha)}" for name in named if name in ("step_ratio", "alpha_floor")}

    def count(self, eps: float) -> int:
        """Iterations at budget `eps`."""
        return self.steps or max(1, int(min(eps + 4, 1.25 * eps)))

    def size(self, eps: float) -> float:
        """Step size at budget `eps`, in its unit."""
        if self.alpha is not None:
            return self.alpha
        return max(self.alpha_floor, self.step_ratio * eps / self.count(eps))

    def resolved(self, eps: float) -> dict[str, Any]:
        """Every field, with the number and size of steps at `eps`."""
        return {**super().resolved(eps), "steps": self.count(eps), "alpha": self.size(eps)}

    def refuse_no_change(self, eps: float, unit: int) -> None:
        """Refuse steps that together move less than half a level, so that no stored pixel would change.

        Args:
            eps: the budget.
            unit: the number that stands for 1.0 where it is written; see `Ball.unit`.

        Raises:
            UsageError: the number and size of the steps, and what makes them longer.
        """
        count, size = self.count(eps), self.size(eps)
        if eps <= 0 or count * size * 255 / unit >= 0.5:
            return
        if self.alpha is not None:
            advice = f"alpha is in /255; did you mean alpha={max(1, round(self.alpha * 255))}?"
        else:
            advice = (
                f"a step is step_ratio * eps / steps with step_ratio={show(self.step_ratio)}; raise step_ratio or eps"
            )
        each = f"{show(size)}/255" if unit == 255 else f"an L2 norm of {show(size)}"
        raise UsageError(f"{count} steps of {each} change no 8-bit pixel: {advice}")
