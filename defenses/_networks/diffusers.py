"""The U-Net of a diffusers pipeline as a score network, by the extra `diffusers`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from rdp_bench.defenses._networks.schedule import BETA, STEPS
from rdp_bench.defenses._networks.score import NoisePredicting, Prediction

DEFAULTS = {"prediction_type": "epsilon", "trained_betas": None, "rescale_betas_zero_snr": False}
"""What a scheduler means that does not say these: older versions of diffusers did not write them."""

SCHEDULE = {
    "num_train_timesteps": STEPS,
    "beta_schedule": "linear",
    "beta_start": BETA[0],
    "beta_end": BETA[1],
    **DEFAULTS,
}
"""What the scheduler of a pipeline must say for these purifiers' constants to hold."""


class Pipeline(NoisePredicting):
    """`UNet2DModel` with the settings of its folder's config.json; `largest_variance`: DDPM steps take beta."""

    def __init__(self, config: dict[str, Any], largest_variance: bool = False) -> None:
        super().__init__()
        self.largest_variance = largest_variance
        package: Any = import_module("diffusers")  # typed in part
        kept = {key: value for key, value in config.items() if not key.startswith("_")}
        self.inner: Any = package.UNet2DModel(**kept)
        size = config.get("sample_size")
        self.size = size if isinstance(size, int) else None
        self.multiple = 2 ** (len(self.inner.config.block_out_channels) - 1)

    def outputs(self, x: Tensor, step: Tensor) -> Tensor:
        """See `NoisePredicting`."""
        out: Tensor = self.inner(x, step).sample
        return out

    def predict(self, x: Tensor, step: int, abar: float) -> Prediction:
        """See `ScoreNetwork`."""
        eps, place = super().predict(x, step, abar)
        return Prediction(eps, torch.ones_like(eps) if self.largest_variance else place)

    forward = outputs
