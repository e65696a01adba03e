"""DiffPure: Nie et al., "Diffusion Models for Adversarial Purification", ICML 2022."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rdp_bench.defenses._networks import schedule
from rdp_bench.defenses._score import ScoreBased, ddpm_step, noised
from rdp_bench.registry import defense

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.defenses._networks.score import ScoreNetwork
    from rdp_bench.defenses._replay import States
    from rdp_bench.rng import ImageRng

LEAST_T = 50
"""Published settings are 75 (CIFAR-10, L2), 100 (CIFAR-10, L-infinity) and 150 (ImageNet)."""


@defense("diffpure", source="Nie et al. 2022, Sec. 3; NVlabs/DiffPure")
@dataclass(frozen=True)
class DiffPure(ScoreBased):
    """Adds the noise of `t` of 1000 diffusion steps and removes it again: reverse VP-SDE, its ODE, or DDPM.

    `sde` and `ode` take Euler steps of `stride` noise steps (authors: 1) down to time 1e-5. `ddpm` is the authors'
    other runner: ancestral sampling over every step, with x0 clipped. The authors differentiate the SDE by an adjoint
    SDE and DDPM not at all; here every variant has the exact gradient of what it computes.
    """

    t: int = 150  # noise steps: the authors' .15 for ImageNet
    variant: Literal["sde", "ode", "ddpm"] = "sde"
    stride: int = 1

    def __post_init__(self) -> None:
        """Reject times that are probably a number of network calls, and strides that do not apply."""
        if not LEAST_T <= self.t < schedule.STEPS:
            raise ValueError(
                f"t is {LEAST_T} to {schedule.STEPS - 1} of the {schedule.STEPS} noise steps (authors: 150 on "
                f"ImageNet, 100 on CIFAR-10), found {self.t}. For fewer network calls at the same noise, set stride: "
                "t=150, stride=15 makes ten"
            )
        if not 1 <= self.stride <= self.t:
            raise ValueError(f"stride is 1 to t = {self.t}, found {self.stride}")
        if self.variant == "ddpm" and self.stride > 1:
            raise ValueError("variant=ddpm takes every step: stride is for sde and ode")

    def strongest(self) -> float:
        """See `ScoreBased`: after the forward process."""
        return schedule.noise_to_signal(schedule.abars()[self.t - 1])

    def constants(self) -> dict[str, Any]:
        """The abar after the forward process, and the number of network calls."""
        calls = self.t if self.variant == "ddpm" else len(schedule.euler_steps(self.t, self.stride))
        return {"abar": round(schedule.abars()[self.t - 1], 4), "calls": calls}

    def run(self, net: ScoreNetwork, x: Tensor, rng: ImageRng) -> Tensor:
        """See `ScoreBased`."""
        from rdp_bench.defenses._replay import Noise, chain, needs_gradient

        noise = Noise(rng, x, keep=needs_gradient(x))
        state = noised(2 * x - 1, schedule.abars()[self.t - 1], noise(-1))
        euler = schedule.euler_steps(self.t, self.stride)
        every = schedule.all_steps()

        def reverse(i: int, states: States, _: States) -> States:
            (now,) = states
            if self.variant == "ddpm":
                return (ddpm_step(net, now, self.t - 1 - i, every, lambda: noise(i)),)
            at = euler[i]
            abar, beta = schedule.abar(at.t), schedule.beta(at.t)
            score = net.predict(now, at.step, abar).eps * (-1 / math.sqrt(1 - abar))
            share = 0.5 if self.variant == "ode" else 1.0
            now = now + at.h * beta * (now / 2 + share * score)
            return (now if self.variant == "ode" else now + math.sqrt(beta * at.h) * noise(i),)

        (state,) = chain(reverse, self.t if self.variant == "ddpm" else len(euler), (state,))
        return (state + 1) / 2
