"""Gradual noise: Lee & Kim, "Robust Evaluation of Diffusion-Based Adversarial Purification", ICCV 2023."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rdp_bench.defenses._networks import schedule
from rdp_bench.defenses._score import ScoreBased, noised
from rdp_bench.registry import defense

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.defenses._networks.score import ScoreNetwork
    from rdp_bench.defenses._replay import States
    from rdp_bench.rng import ImageRng

SCHEDULES = {
    "imagenet": (30, 30, 30, 30, 50, 50, 200, 200),
    "cifar10": (30, 30, 30, 30, 50, 50, 125, 125),
}
"""Noise steps of each round."""


@defense("gradual", source="Lee & Kim 2023; ml-postech/robust-evaluation-of-diffusion-based-purification")
@dataclass(frozen=True)
class GradualNoise(ScoreBased):
    """Rounds of DDPM purification with growing noise: 30 x 4, 50 x 2, then 200 x 2 steps (CIFAR-10: 125 x 2).

    Ancestral sampling without clipping and with the posterior's variance. `stride` leaves steps out, as a surrogate
    for an attacker: a round of T steps takes T // stride of them, at least one. The authors' surrogate for ImageNet is
    three rounds to 30, 50 and 200 noise steps, with 1, 1 and 5 network calls, as those of `stride=40`; the eight rounds
    stay here. They evaluate every step, and take the majority of ten runs: `--defense-samples 10`.
    """

    rounds: Literal["imagenet", "cifar10"] = "imagenet"
    stride: int = 1

    def __post_init__(self) -> None:
        """Reject a stride beyond the longest round."""
        most = max(SCHEDULES[self.rounds])
        if not 1 <= self.stride <= most:
            raise ValueError(f"stride is 1 to {most}, the longest round, found {self.stride}")

    def strongest(self) -> float:
        """See `ScoreBased`: in the last round."""
        return schedule.noise_to_signal(schedule.abars()[max(SCHEDULES[self.rounds]) - 1])

    def constants(self) -> dict[str, Any]:
        """The noise steps of each round, and the number of network calls."""
        rounds = SCHEDULES[self.rounds]
        return {"t": list(rounds), "calls": sum(len(schedule.strided(last, self.stride).steps) for last in rounds)}

    def run(self, net: ScoreNetwork, x: Tensor, rng: ImageRng) -> Tensor:
        """See `ScoreBased`."""
        from rdp_bench.defenses._replay import Noise, chain, needs_gradient

        noise = Noise(rng, x, keep=needs_gradient(x))
        state = 2 * x - 1
        for number, last in enumerate(SCHEDULES[self.rounds]):
            steps = schedule.strided(last, self.stride)

            def reverse(
                i: int, states: States, _: States, steps: schedule.Spaced = steps, number: int = number
            ) -> States:
                at = len(steps.steps) - 1 - i
                abar, before = steps.abar[at], steps.before(at)
                eps = net.predict(states[0], steps.steps[at], abar).eps
                x0 = (states[0] - math.sqrt(1 - abar) * eps) / math.sqrt(abar)
                spread = math.sqrt(steps.posterior(at)[2])
                mean = math.sqrt(before) * x0 + math.sqrt(1 - before - spread**2) * eps
                return (mean + spread * noise((number, i)) if at else mean,)

            state = noised(state, schedule.abars()[last - 1], noise(number))
            (state,) = chain(reverse, len(steps.steps), (state,))
        return (state + 1) / 2
