"""ComDefend: an autoencoder whose code is made binary by added noise (Jia et al. 2019)."""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import mse_loss

from rdp_bench.defenses._networks import comdefend
from rdp_bench.defenses.comdefend import ComDefend as Entry
from rdp_bench.train.recipe import Recipe, Step

NOISE = 20.0
"""Standard deviation of the noise that is subtracted before the sigmoid; only codes far from zero survive it."""


class ComDefend(Recipe):
    """Trained on clean patches only. Loss terms: `mse`, and `bits`, mean square of the soft bits, at weight 1e-4."""

    name = "comdefend"
    without_effect = ("features", "levels", "eps", "attack", "attack_steps", "clean", "scale", "blend")
    loss_weights: ClassVar = {"mse": 1.0, "bits": 1e-4}
    uses_features = False
    defaults: ClassVar = {
        # One epoch of CIFAR-10's 50,000 images, each of them a patch.
        "paper": {"steps": 2500, "batch": 20, "crop": 32, "rate": 1e-3, "schedule": "constant"},
        "compact": {"steps": 4000, "batch": 8, "crop": 96, "rate": 2e-3, "schedule": "cosine"},
    }  # fmt: skip

    def build(self) -> dict[str, nn.Module]:
        """Encoder and decoder in one."""
        self.net_args = dict(comdefend.SIZES[self.options.size])
        return {"codec": comdefend.ComDefend(**self.net_args)}

    def defense(self) -> Entry:
        """Our networks see red first."""
        return Entry(order="rgb")

    def prepare(self, clean: Tensor, rng: Generator) -> Tensor:  # noqa: ARG002 - nothing is drawn
        """The crops in patches, `[n (h/32)^2, 3, 32, 32]`, as the defense cuts images."""
        return comdefend.cut(clean, Entry.patch)

    def steps(self, clean: Tensor, inputs: Tensor, rng: Generator) -> Iterator[Step]:  # noqa: ARG002
        """The codec; bits are soft, so that a gradient passes."""
        codec: Any = self.nets["codec"]
        code = codec.encode(inputs)
        noise = torch.empty(code.shape, device=code.device).normal_(0, NOISE, generator=rng)
        bits = (code - noise).sigmoid()
        yield "main", self.total({"mse": mse_loss(codec.decode(bits), inputs), "bits": bits.square().mean()})
