"""The denoiser that knows its noise level: denoising score matching on photographs (Karras et al. 2022, EDM)."""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from rdp_bench.defenses._networks import edm
from rdp_bench.defenses.denoiser import GaussianDenoiser
from rdp_bench.rng import ImageRng
from rdp_bench.train.recipe import Recipe, Step
from rdp_bench.train.validate import mean_psnr

LEVELS = (0.1, 0.25, 0.5)
"""Noise levels of the validation."""


class Denoiser(Recipe):
    """Trained on clean photographs plus Gaussian noise of a level that is .5 u^2, u uniform.

    Loss term: `mse`, EDM's: the squared error over c_out^2, so that every level weighs the same at the start. What is
    validated and exported is a moving average of the weights, by default.
    """

    name = "denoiser"
    without_effect = ("features", "levels", "eps", "attack", "attack_steps", "clean", "scale", "blend")
    loss_weights: ClassVar = {"mse": 1.0}
    uses_features = False
    defaults: ClassVar = {
        "paper": {"steps": 300_000, "batch": 32, "crop": 128, "rate": 2e-4, "schedule": "cosine", "average": 0.998},
        "compact": {"steps": 8000, "batch": 16, "crop": 96, "rate": 1e-3, "schedule": "cosine", "average": 0.998},
    }  # fmt: skip

    def build(self) -> dict[str, nn.Module]:
        """The network."""
        self.net_args: dict[str, Any] = dict(edm.SIZES[self.options.size])
        return {"denoiser": edm.Denoiser(**self.net_args)}

    def defense(self) -> GaussianDenoiser:
        """The denoiser at the middle level of the validation."""
        return GaussianDenoiser(sigma=LEVELS[1])

    def prepare(self, clean: Tensor, rng: Generator) -> Tensor:
        """`clean` `[n, 3, h, h]` with noise of another level an image, not clamped."""
        unit = torch.rand(len(clean), generator=rng, device=clean.device)
        self.sigma = (edm.HIGHEST * unit**2).clamp_min(edm.LOWEST)
        noise = torch.randn(clean.shape, generator=rng, device=clean.device)
        return clean + self.sigma.view(-1, 1, 1, 1) * noise

    def steps(self, clean: Tensor, inputs: Tensor, rng: Generator) -> Iterator[Step]:  # noqa: ARG002
        """The denoiser."""
        _, out, _ = edm.coefficients(self.sigma.view(-1, 1, 1, 1))
        error = (self.nets["denoiser"](inputs, self.sigma) - clean) / out
        yield "main", self.total({"mse": error.square().mean()})

    def purify(self, x: Tensor, sigma: float | None = None) -> Tensor:
        """Images `[n, 3, h, w]` denoised by the entry with the product as its network, at its own level or `sigma`."""
        entry = GaussianDenoiser() if sigma is None else GaussianDenoiser(sigma=sigma)
        object.__setattr__(entry, "net", lambda _: self.product)  # frozen, and else it would look for a file
        return entry.purify(x, ImageRng([str(i) for i in range(len(x))], x.device))

    def validation(self, clean: Tensor) -> Callable[[Callable[[Tensor], Tensor]], dict[str, float]]:
        """See `NoiseValidation`."""
        return NoiseValidation(clean, self)


class NoiseValidation:
    """PSNR of held-out photographs with noise of each of `LEVELS`, denoised through the entry."""

    def __init__(self, clean: Tensor, recipe: Denoiser) -> None:
        self.clean, self.purify, self.images = clean.to(recipe.device), recipe.purify, len(clean)
        rng = ImageRng([f"validation/{i}" for i in range(len(clean))], recipe.device)
        noise = rng.normal(*clean.shape[1:])
        self.sets = {sigma: self.clean + sigma * noise for sigma in LEVELS}
        self.undefended = {_name(sigma): mean_psnr(noisy, self.clean) for sigma, noisy in self.sets.items()}

    def __call__(self, purify: Callable[[Tensor], Tensor]) -> dict[str, float]:  # noqa: ARG002
        """PSNR in dB at each level; `score`: minus their mean."""
        found = {}
        for sigma, noisy in self.sets.items():
            with torch.no_grad():
                denoised = torch.cat([self.purify(part, sigma) for part in torch.split(noisy, 8)])
            found[_name(sigma)] = mean_psnr(denoised, self.clean)
        return found | {"score": -sum(found.values()) / len(found)}


def _name(sigma: float) -> str:
    return f"psnr_sigma_{sigma:g}"
