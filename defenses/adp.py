"""ADP: Yoon et al., "Adversarial Purification with Score-based Generative Models", ICML 2021."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rdp_bench.defenses._idle import refuse_idle
from rdp_bench.defenses._score import ScoreBased
from rdp_bench.registry import defense

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.defenses._networks.score import ScoreNetwork
    from rdp_bench.defenses._replay import States
    from rdp_bench.rng import ImageRng

PROBE = 1e-3
"""Length of the small step that measures how fast the score changes along itself."""

LEAST, MOST = 1e-5, 0.1
"""Smallest and largest step length."""


@defense("adp", source="Yoon et al. 2021; jmyoon1/adp")
@dataclass(frozen=True)
class AdaptiveDenoising(ScoreBased):
    """Adds noise once and follows the score in up to ten steps whose length adapts; the softmax of `runs` is averaged.

    The authors' network is NCSNv2, whose output f is sigma times the score; their code tells it no noise level. Here f
    comes from the score network at level `level`. The authors average logits over ten runs; here, as for every defense
    of several passes, it is the softmax.
    """

    noise: float = 0.25
    level: float = 0.25  # noise level at which the score is asked, in [0, 1] units; ours
    steps: int = 10
    factor: float = 0.05  # of the step length
    stop: float = 1e-3  # an image whose step is not longer is finished
    runs: int = 10

    def __post_init__(self) -> None:
        """Reject impossible values."""
        if not (self.noise >= 0 and self.level > 0 and self.factor > 0 and self.stop >= 0):
            raise ValueError("noise and stop are at least 0, level and factor above 0")
        if self.stop >= MOST:
            raise ValueError(
                f"stop is below {MOST}, the longest step: no image would follow the score at {self.stop:g}"
            )
        if self.noise == 0:
            refuse_idle(self, "noise=0", "fixed")
        if not (1 <= self.steps <= 1000 and 1 <= self.runs <= 1000):
            raise ValueError(f"steps and runs are 1 to 1000, found {self.steps} and {self.runs}")
        if self.runs > 1 and not self.random:
            raise ValueError("runs with the same noise are one: set runs=1, noise above 0, or fixed=false")

    @property
    def passes(self) -> int:
        """The number of runs."""
        return self.runs

    @property
    def random(self) -> bool:
        """Whether noise is drawn anew in every call."""
        return self.noise > 0 and not self.fixed

    def strongest(self) -> float:
        """See `ScoreBased`."""
        return self.level

    def constants(self) -> dict[str, Any]:
        """The largest number of network calls."""
        return {"calls": 2 * self.steps * self.runs}

    def run(self, net: ScoreNetwork, x: Tensor, rng: ImageRng) -> Tensor:
        """See `ScoreBased`: one run."""
        from rdp_bench.defenses._replay import chain

        level = x.new_full((len(x),), self.level)

        def follow(_: int, states: States, __: States) -> States:
            image, running = states
            if not running.any():
                return image, running
            score = self.level * net.score(image, level)
            ahead = self.level * net.score(image + PROBE * score, level)
            # 1 - <g, g'> / <g, g>, without the cancellation of two numbers near 1
            change = (score * (score - ahead)).sum((1, 2, 3)) / (score * score).sum((1, 2, 3)).clamp_min(1e-20)
            length = (self.factor * PROBE / change).clamp(LEAST, MOST)
            # a negative change divides to a negative length, which the authors' clamp makes the least, too
            running = running * (length > self.stop).to(running)
            return (image + (length * running).view(-1, 1, 1, 1) * score).clamp(0, 1), running

        noisy = (x + self.noise * rng.normal(*x.shape[1:]).to(x)).clamp(0, 1)
        image, _ = chain(follow, self.steps, (noisy, x.new_ones(len(x))))
        return image
