"""LM: likelihood maximisation, Chen et al., "Robust Classification via a Single Diffusion Model", ICML 2024."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rdp_bench.defenses._score import ScoreBased
from rdp_bench.registry import defense

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.defenses._networks.score import ScoreNetwork
    from rdp_bench.defenses._replay import States
    from rdp_bench.rng import ImageRng

BETAS, TINY = (0.9, 0.999), 1e-8
"""Adam's."""


@defense("lm", source="Chen et al. 2024; huanranchen/DiffusionClassifier, LM.py", version=2)
@dataclass(frozen=True)
class LikelihoodMaximisation(ScoreBased):
    """Moves the image by Adam towards a higher likelihood: a smaller error of the denoiser on its noisy copies.

    Five steps on the mean of (D(x + s e, s) - x)^2 with s uniform in [.4, .6] of images in [-1, 1]. The authors' bound
    on the L2 norm of the change is 100 in [0, 1] units and binds no 32-pixel image; it is left out. Their loss is a
    mean over the batch, which scales what Adam's 1e-8 is compared with; here it is a mean over the image. Their
    likelihood_maximization_T1 calls set_seed(1) first, so that every call has the same noise: `fixed=true` is nearer
    to it than the default.
    """

    steps: int = 5
    rate: float = 0.1  # Adam's, for images in [-1, 1]
    low: float = 0.4
    high: float = 0.6

    def __post_init__(self) -> None:
        """Reject empty ranges."""
        if not 0 < self.low <= self.high:
            raise ValueError(f"low and high are noise levels with 0 < low <= high, found {self.low} and {self.high}")
        if not (1 <= self.steps <= 10_000 and self.rate > 0):
            raise ValueError(f"steps is 1 to 10000 and rate above 0, found {self.steps} and {self.rate}")

    def strongest(self) -> float:
        """See `ScoreBased`: `high`, in [0, 1] units."""
        return self.high / 2

    def constants(self) -> dict[str, Any]:
        """The number of network calls."""
        return {"calls": self.steps}

    def run(self, net: ScoreNetwork, x: Tensor, rng: ImageRng) -> Tensor:
        """See `ScoreBased`."""
        import torch

        from rdp_bench.defenses._replay import Noise, chain, needs_gradient

        levels = rng.uniform(self.steps, low=self.low, high=self.high).to(x)
        noise = Noise(rng, x, keep=needs_gradient(x))

        def ascend(i: int, states: States, _: States) -> States:
            image, first, second = states
            level = levels[:, i]
            differentiable = torch.is_grad_enabled()
            with torch.enable_grad():
                leaf = image if image.requires_grad else image.detach().requires_grad_()
                seen = (leaf + level.view(-1, 1, 1, 1) * noise(i) + 1) / 2
                error = 2 * net.denoise(seen, level / 2) - 1 - leaf
                loss = error.square().mean((1, 2, 3)).sum()
                (grad,) = torch.autograd.grad(loss, leaf, create_graph=differentiable)
            first = BETAS[0] * first + (1 - BETAS[0]) * grad
            second = BETAS[1] * second + (1 - BETAS[1]) * grad**2
            spread = (second / (1 - BETAS[1] ** (i + 1))).sqrt() + TINY
            return image - self.rate * first / (1 - BETAS[0] ** (i + 1)) / spread, first, second

        image, _, _ = chain(ascend, self.steps, (2 * x - 1, torch.zeros_like(x), torch.zeros_like(x)))
        return (image + 1) / 2
