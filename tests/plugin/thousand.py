"""A plugin with a tiny classifier of ImageNet's 1000 classes."""

from typing import Any

import torch
from torch import Tensor

from rdp_bench import Classifier, model


class Thousand:
    """Logits linear in 16 x 16 pixels; weights from a fixed seed."""

    name = "thousand/linear"
    classes = 1000

    def __call__(self, x: Tensor, zoom: float = 1.0) -> Tensor:
        weight = torch.randn(self.classes, 3 * 16 * 16, generator=torch.Generator().manual_seed(2))
        small = torch.nn.functional.interpolate(x, size=(16, 16), mode="nearest")
        return (small - 0.5).flatten(1) @ weight.T

    def record(self) -> dict[str, Any]:
        return {"seed": 2}


@model("thousand/linear", source="made up")
def linear() -> Classifier:
    """A linear classifier of 1000 classes."""
    return Thousand()
