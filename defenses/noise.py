"""Gaussian noise alone: the control that every purifier that adds noise must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rdp_bench.defenses._idle import refuse_idle
from rdp_bench.protocols import Backward, Purifier
from rdp_bench.registry import defense

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.rng import ImageRng


@defense("noise", source="Cohen et al. 2019, without training on noise; the control of stochastic purifiers")
@dataclass(frozen=True)
class GaussianNoise(Purifier):
    """Adds N(0, sigma^2) to every pixel and clamps to [0, 1]."""

    sigma: float = 0.25  # that of the noise that DiffPure adds at t = 150, relative to the image, is .26
    fixed: bool = False  # the same noise for every image and in every call, which an attacker knows

    differentiable: ClassVar[bool] = True
    backward: ClassVar[Backward] = "exact"
    only_by_name: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Reject a negative sigma."""
        if not 0 <= self.sigma <= 100:
            raise ValueError(f"sigma is 0 to 100, found {self.sigma}")
        if self.sigma == 0:
            refuse_idle(self, "sigma=0", "fixed")

    @property
    def random(self) -> bool:
        """Whether noise is drawn anew in every call."""
        return self.sigma > 0 and not self.fixed

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        """Noisy `x` `[n, 3, h, w]`, clamped to [0, 1]."""
        from rdp_bench.defenses._score import streams

        return (x + self.sigma * streams(rng, fixed=self.fixed).normal(*x.shape[1:]).to(x)).clamp(0, 1)


@defense("noise-vote", source="Cohen et al. 2019, without training on noise; the control of stochastic purifiers")
@dataclass(frozen=True)
class NoiseVote(GaussianNoise):
    """The classifier sees `n` noisy copies, and its softmax outputs are averaged.

    A vote of `n` hard decisions is `noise` with `--defense-samples n`, whose report has the majority.
    """

    n: int = 10

    def __post_init__(self) -> None:
        """Reject numbers of copies outside 1 to 10000, and copies that are all the same."""
        super().__post_init__()
        if not 1 <= self.n <= 10_000:
            raise ValueError(f"n is 1 to 10000, found {self.n}")
        if self.n > 1 and not self.random:
            raise ValueError("n copies with the same noise are one: set n=1, sigma above 0, or fixed=false")

    @property
    def passes(self) -> int:
        """The number of copies."""
        return self.n
