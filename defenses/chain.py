"""Defenses in sequence: `jpeg >> rdp` applies JPEG, then RDP to its output."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from rdp_bench.errors import RdpBenchError, UsageError
from rdp_bench.protocols import Backward, Defense, Purifier
from rdp_bench.registry import Resolved, defense, identity
from rdp_bench.specs import split

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.rng import ImageRng

MARK = ">>"


@dataclass(frozen=True)
class Chain(Purifier):
    """Purifiers in order; each part has its own random stream, forked by its position.

    Its gradient is the parts' chain rule. BPDA passes each part in that part's own way (`Purifier.backward`): exactly
    where the part says so, by its stand-in or the identity elsewhere, for only parts that need it are approximated
    (Athalye et al. 2018, Sec. 4.1.2).
    """

    made: tuple[Resolved[Purifier], ...]

    def __post_init__(self) -> None:
        """Reject several parts that average softmax outputs: no paper uses the product of their passes."""
        several = [each.label for each in self.made if each.value.passes > 1]
        if len(several) > 1:
            raise ValueError(f"{' and '.join(several)} each average several passes; only one part of a chain may")

    @property
    def parts(self) -> tuple[Purifier, ...]:
        """The purifiers themselves, in order."""
        return tuple(each.value for each in self.made)

    @property
    def random(self) -> bool:
        """Whether any part is random."""
        return any(part.random for part in self.parts)

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        """Whether all parts are differentiable."""
        return all(part.differentiable for part in self.parts)

    @property
    def backward(self) -> Backward:  # type: ignore[override]
        """What all parts use; "stand-in" where they differ."""
        ways = {part.backward for part in self.parts}
        return ways.pop() if len(ways) == 1 else "stand-in"

    @property
    def purifies(self) -> bool:  # type: ignore[override]
        """Whether all parts do."""
        return all(part.purifies for part in self.parts)

    @property
    def scale(self) -> float:
        """The product of the parts' scales."""
        return prod(part.scale for part in self.parts)

    @property
    def passes(self) -> int:
        """Those of the one part that has several."""
        return prod(part.passes for part in self.parts)

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        """`x` `[n, 3, h, w]` through every part in order."""
        return self._in_order(x, rng, [part.purify for part in self.parts])

    def straight_through(self, x: Tensor, rng: ImageRng) -> Tensor:
        """As `purify`; the backward pass uses each part's own rule, as `bpda` does."""
        return self._in_order(x, rng, [part.bpda for part in self.parts])

    bpda = straight_through

    @property
    def has_smooth(self) -> bool:  # type: ignore[override]
        """Whether any part has."""
        return any(part.has_smooth for part in self.parts)

    def smooth_through(self, x: Tensor, rng: ImageRng) -> Tensor:
        """As `purify`; the backward pass uses the closer stand-in of each part that has one, and `bpda` elsewhere."""
        return self._in_order(x, rng, [part.smooth_through if part.has_smooth else part.bpda for part in self.parts])

    def resolved(self) -> dict[str, Any]:
        """The identity of every part, in order."""
        return {"parts": [identity(each) for each in self.made]}

    def _in_order(self, x: Tensor, rng: ImageRng, ways: list[Callable[[Tensor, ImageRng], Tensor]]) -> Tensor:
        # Parts with streams of their own do not shift each other's draws, and another call must have other draws (EOT).
        streams = rng.spawn("chain") if self.random else rng
        given = x
        for number, way in enumerate(ways):
            label = self.made[number].label
            try:
                purified = way(x, streams.fork(f"part {number}"))
            except (TypeError, ValueError, AttributeError, IndexError, KeyError, AssertionError) as error:
                raise RdpBenchError(f"part '{label}' of a chain: {type(error).__name__}: {error}") from error
            x = self._checked(number, purified, x, given)
        return x

    def _checked(self, number: int, purified: Tensor, x: Tensor, given: Tensor) -> Tensor:
        """Check the output of a part: the engine sees only the last part's output.

        Attacks that look ahead give images beyond [0, 1], and a part may hand them on.
        """
        where = f"part '{self.made[number].label}' of a chain"
        if purified.ndim != 4 or purified.shape[:2] != x.shape[:2]:
            raise UsageError(f"{where} returned shape {list(purified.shape)} for {list(x.shape)}")
        low, high = (float(end) for end in purified.detach().aminmax())
        within = low >= -1e-4 and high <= 1 + 1e-4  # not NaN
        if not (within or (math.isfinite(low + high) and (given.amin() < 0 or given.amax() > 1))):
            raise UsageError(f"{where} left the range [0, 1]: {low:.4f} to {high:.4f}")
        return purified


def chain(text: str) -> Resolved[Defense]:
    """The defenses of `A >> B >> C`, resolved.

    Raises:
        UsageError: an unknown part, an empty one, or one that is no `Purifier`.
    """
    labels = split(text, MARK)
    if len(labels) < 2 or not all(labels):
        raise UsageError(
            f"defense '{text}': expected defenses between each {MARK}, like jpeg {MARK} rdp, and closed parentheses"
        )
    parts: list[Resolved[Any]] = [defense.resolve(label) for label in labels]
    for part in parts:
        if not isinstance(part.value, Purifier):
            raise UsageError(f"defense '{text}': {part.label} cannot be part of a chain; subclass Purifier")
    return Resolved(
        f" {MARK} ".join(part.label for part in parts),
        Chain(tuple(parts)),
        "; then ".join(part.summary.rstrip(".") for part in parts) + ".",
        "; ".join(dict.fromkeys(part.source for part in parts)),
        "2",
        "chain",
    )


defense.label_scheme("chain of defenses, first to last", r".*>>.*", "jpeg >> rdp", chain, id="chain", mark=MARK)
