"""DDS: Carlini et al., "(Certified!!) Adversarial Robustness for Free!", ICLR 2023."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rdp_bench.defenses._networks import schedule
from rdp_bench.defenses._score import ScoreBased, noised
from rdp_bench.registry import defense

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.defenses._networks.score import ScoreNetwork
    from rdp_bench.rng import ImageRng


@defense("dds", source="Carlini et al. 2023, Alg. 1; ethz-spylab/diffusion_denoised_smoothing")
@dataclass(frozen=True)
class DiffusionDenoisedSmoothing(ScoreBased):
    """Adds noise of at least `sigma`, and removes it by one call of a diffusion model: its predicted x0, clipped.

    The paper certifies the majority over many such images; a run's majority vote is `--defense-samples`.
    """

    sigma: float = 0.25  # of the authors' .25, .5 and 1, in [0, 1] units

    def __post_init__(self) -> None:
        """Reject levels that the schedule does not reach."""
        if not (self.sigma > 0 and self.step is not None):
            raise ValueError(f"sigma is above 0 and at most {schedule.noise_to_signal(schedule.abars()[-1]):.1f}")

    @property
    def step(self) -> int | None:
        """The first noise step with sqrt(1 - abar) / sqrt(abar) >= 2 sigma: images are in [-1, 1]."""
        return schedule.first_with_noise(2 * self.sigma, schedule.abars())

    def strongest(self) -> float:
        """See `ScoreBased`: slightly more than `sigma`."""
        assert self.step is not None
        return schedule.noise_to_signal(schedule.abars()[self.step])

    def constants(self) -> dict[str, Any]:
        """The noise step, counted from 1, and abar after it."""
        assert self.step is not None
        return {"t": self.step + 1, "abar": round(schedule.abars()[self.step], 4), "calls": 1}

    def run(self, net: ScoreNetwork, x: Tensor, rng: ImageRng) -> Tensor:
        """See `ScoreBased`."""
        assert self.step is not None
        abar = schedule.abars()[self.step]
        state = noised(2 * x - 1, abar, rng.normal(*x.shape[1:]).to(x))
        eps = net.predict(state, self.step, abar).eps
        return (((state - math.sqrt(1 - abar) * eps) / math.sqrt(abar)).clamp(-1, 1) + 1) / 2
