"""ShuffleNet: a classifier as a plugin, with weights beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdp_bench import Classifier, model
from rdp_bench.keys import hash_file

if TYPE_CHECKING:
    import torch
    from torch import Tensor

WEIGHTS = Path(__file__).with_name("shufflenet.pth")
SIZE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ShuffleNet:
    """A torchvision network with its own resizing and normalisation."""

    name = "mine/shufflenet"
    classes = 1000

    def __init__(self) -> None:
        import torch
        from torchvision.models import shufflenet_v2_x0_5

        self.net = shufflenet_v2_x0_5().eval().requires_grad_(False)
        state = torch.load(WEIGHTS, map_location="cpu", weights_only=True)
        self.net.load_state_dict(state)

    def to(self, device: torch.device | str) -> ShuffleNet:
        """Return the classifier on `device`."""
        self.net.to(device)
        return self

    def __call__(self, x: Tensor, zoom: float = 1.0) -> Tensor:
        """Return logits `[n, 1000]` of `x` `[n, 3, h, w]` in [0, 1]."""
        from torch.nn.functional import interpolate

        side = round(SIZE * zoom)
        x = interpolate(x, (side, side), mode="bilinear", align_corners=False)
        mean, std = (x.new_tensor(v).view(3, 1, 1) for v in (MEAN, STD))
        logits: Tensor = self.net((x - mean) / std)
        return logits

    def record(self) -> dict[str, Any]:
        """Return everything that the logits depend on; part of the cache key."""
        return {"weights": hash_file(WEIGHTS), "size": SIZE, "mean": MEAN, "std": STD}


@model("mine/shufflenet", source="torchvision, shufflenet_v2_x0_5")
def shufflenet() -> Classifier:
    """ShuffleNet v2 x0.5 with weights of my own."""
    return ShuffleNet()
