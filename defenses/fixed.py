"""A random defense with all its noise fixed: `fixed(r&p)`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rdp_bench.errors import UsageError
from rdp_bench.protocols import Backward, Defense, Purifier
from rdp_bench.registry import Resolved, defense, identity
from rdp_bench.specs import cut

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.rng import ImageRng


@dataclass(frozen=True)
class Fixed(Purifier):
    """The defense with one and the same noise for every image and every call, so that it is deterministic.

    An attacker who knows the noise ("DW-box", arXiv 2404.14309) attacks it without EOT: what is left of
    a random defense here does not come from luck. Where a prediction averages several passes, this is one of them.
    """

    made: Resolved[Purifier]

    @property
    def parts(self) -> tuple[Purifier, ...]:
        """The defense, for what asks for its network."""
        return (self.made.value,)

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        """As the defense."""
        return self.made.value.differentiable

    @property
    def backward(self) -> Backward:  # type: ignore[override]
        """As the defense."""
        return self.made.value.backward

    @property
    def purifies(self) -> bool:  # type: ignore[override]
        """As the defense."""
        return self.made.value.purifies

    @property
    def scale(self) -> float:
        """As the defense."""
        return self.made.value.scale

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        """`x` `[n, 3, h, w]` as the defense purifies it with the fixed noise."""
        return self.made.value.purify(x, _same(rng))

    def stand_in(self, x: Tensor, rng: ImageRng) -> Tensor:
        """The defense's own."""
        return self.made.value.stand_in(x, _same(rng))

    def straight_through(self, x: Tensor, rng: ImageRng) -> Tensor:
        """The defense's own."""
        return self.made.value.straight_through(x, _same(rng))

    @property
    def has_smooth(self) -> bool:  # type: ignore[override]
        """As the defense."""
        return self.made.value.has_smooth

    def smooth_through(self, x: Tensor, rng: ImageRng) -> Tensor:
        """The defense's own."""
        return self.made.value.smooth_through(x, _same(rng))

    def resolved(self) -> dict[str, Any]:
        """The identity of the defense."""
        return {"defense": identity(self.made)}


def _same(rng: ImageRng) -> ImageRng:
    """Streams that begin alike for every image and in every call."""
    return type(rng)(["fixed noise"] * len(rng), rng.device)


def fixed(text: str) -> Resolved[Defense]:
    """The defense of `fixed(DEFENSE)`.

    Raises:
        UsageError: no defense is named, or one that is deterministic or no `Purifier`.
    """
    inside = cut(text)[1]
    if not inside:
        raise UsageError(f"defense '{text}': expected fixed(DEFENSE), like fixed(r&p)")
    made: Resolved[Any] = defense.resolve(inside)
    if not isinstance(made.value, Purifier):
        raise UsageError(f"defense '{text}': {made.label} cannot be fixed; subclass Purifier")
    if not made.value.random:
        raise UsageError(f"defense '{text}': {made.label} is deterministic and has no noise to fix; leave out fixed()")
    return Resolved(
        f"fixed({made.label})", Fixed(made), f"{made.summary.rstrip('.')}; with fixed noise.", made.source, "1", "fixed"
    )  # fmt: skip


defense.label_scheme("random defense with fixed noise", r"fixed\(.*\)", "fixed(r&p)", fixed, id="fixed")
