"""SR's second half: EDSR, trained to double the resolution of photographs (Lim et al. 2017)."""

from collections.abc import Iterator
from functools import cache
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import interpolate

from rdp_bench.defenses._networks import edsr
from rdp_bench.defenses.sr import SuperResolution
from rdp_bench.train.losses import l1
from rdp_bench.train.recipe import Recipe, Step


@cache
def _half(size: int, device: torch.device) -> Tensor:
    """Matrix that halves one side, `[size/2, size]`: two products take a third of the time of `interpolate`."""
    eye = torch.eye(size)[None, None]
    return interpolate(eye, (size // 2, size), mode="bicubic", antialias=True)[0, 0].to(device)


class Sr(Recipe):
    """Trained on clean photographs only. Loss term: `pix`, L1 between a crop and its double-sized reduction.

    The paper's size trains as EDSR's baseline does, but for the schedule: theirs halves the rate once, at two thirds.
    """

    name = "sr"
    without_effect = ("features", "levels", "eps", "attack", "attack_steps", "clean", "scale", "blend")
    loss_weights: ClassVar = {"pix": 1.0}
    uses_features = False
    defaults: ClassVar = {
        "paper": {"steps": 300_000, "batch": 16, "crop": 96, "rate": 1e-4, "schedule": "halving"},
        "compact": {"steps": 4000, "batch": 16, "crop": 96, "rate": 1e-3, "schedule": "cosine"},
    }  # fmt: skip

    def build(self) -> dict[str, nn.Module]:
        """EDSR."""
        self.net_args = dict(edsr.SIZES[self.options.size])
        return {"edsr": edsr.EDSR(**self.net_args)}

    def defense(self) -> SuperResolution:
        """Denoised wavelets, then the network: the output is twice as large."""
        return SuperResolution()

    def prepare(self, clean: Tensor, rng: Generator) -> Tensor:  # noqa: ARG002 - nothing is drawn
        """The crops at half their size, `[n, 3, h/2, h/2]`: bicubic, antialiased, 8-bit as small images are."""
        half = _half(clean.shape[-1], clean.device)
        with torch.autocast(clean.device.type, enabled=False):
            small = half @ clean @ half.T
        return (small.clamp(0, 1) * 255).round() / 255

    def steps(self, clean: Tensor, inputs: Tensor, rng: Generator) -> Iterator[Step]:  # noqa: ARG002
        """EDSR."""
        yield "main", self.total({"pix": l1(self.nets["edsr"](inputs), clean)})
