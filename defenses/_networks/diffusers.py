"""The U-Net of a diffusers pipeline as a score network, by the extra `diffusers`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch import Tensor

from rdp_bench.defenses._networks.schedule import BETA, STEPS
from rdp_bench.defenses._networks.score import NoisePredicting

SCHEDULE = {
    "num_train_timesteps": STEPS,
    "beta_schedule": "linear",
    "beta_start": BETA[0],
    "beta_end": BETA[1],
    "prediction_type": "epsilon",
}
"""What the scheduler of a pipeline must say for these purifiers' constants to hold."""


class Pipeline(NoisePredicting):
    """`UNet2DModel` with the settings of its folder's config.json."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
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

    forward = outputs
