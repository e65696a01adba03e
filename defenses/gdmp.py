"""GDMP: Wang et al., "Guided Diffusion Model for Adversarial Purification", 2022."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rdp_bench.defenses._idle import refuse_idle
from rdp_bench.defenses._networks import schedule
from rdp_bench.defenses._score import ScoreBased, ddpm_step, noised
from rdp_bench.registry import defense

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.defenses._networks.score import ScoreNetwork
    from rdp_bench.defenses._replay import States
    from rdp_bench.rng import ImageRng


@defense("gdmp", source="Wang et al. 2022; JinyiW/GuidedDiffusionPur")
@dataclass(frozen=True)
class GuidedDiffusion(ScoreBased):
    """DDPM purification whose steps are pulled towards the input: guided by the distance to it.

    The defaults are those of ImageNet_Res50.yml in the authors' code: 45 of 250 respaced steps, once, MSE to the plain
    input, scale 1000. Their other configurations of ImageNet name SSIM, and ImageNet.yml switches the guidance off
    (`guide=none`). For CIFAR-10 they use
    `steps=36, respacing=1000, rounds=4, scale_of_guide=60000, ptb=8, guide_noise=true`, with two differences: their
    noise is that of index 36 (abar[36]) while their first reverse step is that of index 35, and their variance is beta;
    here both are of index 35, and the variance is the posterior's unless the network says otherwise. Their MSE is
    a mean over the whole batch, so that the guidance of an image weakens with the number of its neighbours; here it is
    a mean over the image. They average the classifier's outputs over 10 runs on CIFAR-10 and 5 on ImageNet:
    `--defense-samples`.
    """

    steps: int = 45  # noise steps of the respaced process
    respacing: int = 250  # steps of the whole process
    rounds: int = 1
    guide: Literal["mse", "ssim", "none"] = "mse"
    scale_of_guide: float = 1000.0
    ptb: float = 4.0  # the eps in /255 that the guidance is made for
    guide_noise: bool = False  # the guide is the input with the noise of the step, drawn anew

    def __post_init__(self) -> None:
        """Reject impossible steps."""
        if not 2 <= self.respacing <= schedule.STEPS:
            raise ValueError(f"respacing is 2 to {schedule.STEPS}, found {self.respacing}")
        if not 1 <= self.steps <= self.respacing:
            raise ValueError(f"steps is 1 to respacing = {self.respacing}, found {self.steps}")
        if not 1 <= self.rounds <= 100:
            raise ValueError(f"rounds is 1 to 100, found {self.rounds}")
        if self.scale_of_guide <= 0 or self.ptb <= 0:
            raise ValueError("scale_of_guide and ptb are above 0; guide=none switches the guidance off")
        if self.guide == "none":
            refuse_idle(self, "guide=none", "scale_of_guide", "ptb", "guide_noise")

    def strongest(self) -> float:
        """See `ScoreBased`: after each forward process."""
        return schedule.noise_to_signal(schedule.respaced(self.respacing).abar[self.steps - 1])

    def constants(self) -> dict[str, Any]:
        """The noise step of the forward process, abar after it, the calls, the strength of the guidance there."""
        spaced = schedule.respaced(self.respacing)
        abar = spaced.abar[self.steps - 1]
        return {
            "t": spaced.steps[self.steps - 1] + 1,
            "abar": round(abar, 4),
            "calls": self.steps * self.rounds,
            "guidance": 0.0 if self.guide == "none" else round(self.strength(abar), 1),
        }

    def strength(self, abar: float) -> float:
        """The factor of the guide's gradient: sqrt(1 - abar) / (m sqrt(abar)), m = 2 ptb / (255 * 3 * scale)."""
        return math.sqrt((1 - abar) / abar) / (2 * self.ptb / (255 * 3 * self.scale_of_guide))

    def run(self, net: ScoreNetwork, x: Tensor, rng: ImageRng) -> Tensor:
        """See `ScoreBased`."""
        from rdp_bench.defenses._replay import Noise, chain, needs_gradient

        spaced = schedule.respaced(self.respacing)
        last = self.steps - 1
        noise = Noise(rng, x, keep=needs_gradient(x))
        image = 2 * x - 1
        state = image
        for number in range(self.rounds):

            def reverse(i: int, states: States, shared: States, number: int = number) -> States:
                def gradient(now: Tensor, abar: float) -> Tensor:
                    (plain,) = shared
                    aim = noised(plain, abar, noise((number, i, "guide"))) if self.guide_noise else plain
                    return self.strength(abar) * closer(now, aim, self.guide)

                guide = None if self.guide == "none" else gradient
                return (ddpm_step(net, states[0], last - i, spaced, lambda: noise((number, i)), guide),)

            state = noised(state, spaced.abar[last], noise(number))
            (state,) = chain(reverse, self.steps, (state,), (image,))
        return (state + 1) / 2


def closer(x: Tensor, aim: Tensor, distance: str) -> Tensor:
    """The direction from `x` towards `aim`: the gradient of minus their MSE, or of their SSIM, per image."""
    import torch

    if distance == "mse":
        return (aim - x) * (2 / x[0].numel())
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        leaf = x if x.requires_grad else x.detach().requires_grad_()
        (found,) = torch.autograd.grad(ssim(leaf, aim).sum(), leaf, create_graph=differentiable)
    return found


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """SSIM (Wang et al. 2004) of images `[n, c, h, w]`, `[n]`: Gaussian window of 11 pixels, sigma 1.5, zeros around.

    The constants are those of pytorch_ssim, for values of range 1, though the authors' images are in [-1, 1].
    """
    import torch
    from torch.nn.functional import conv2d

    channels = a.shape[1]
    place = torch.arange(11, dtype=a.dtype, device=a.device) - 5
    line = torch.exp(-(place**2) / (2 * 1.5**2))
    line = line / line.sum()

    def mean(x: Tensor) -> Tensor:
        across = conv2d(x, line.view(1, 1, 1, 11).expand(channels, 1, 1, 11), padding=(0, 5), groups=channels)
        return conv2d(across, line.view(1, 1, 11, 1).expand(channels, 1, 11, 1), padding=(5, 0), groups=channels)

    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b, both = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2, mean(a * b) - mean_a * mean_b
    low, high = 0.01**2, 0.03**2
    found = (2 * mean_a * mean_b + low) * (2 * both + high)
    return (found / ((mean_a**2 + mean_b**2 + low) * (var_a + var_b + high))).mean((1, 2, 3))
