"""A network with a rotation head, as target and for the defense `soap`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdp_bench import Classifier, model
from rdp_bench.keys import hash_file

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = Path(__file__).with_name("rotation_net.pth")


class RotationNet:
    """A small convolutional network that names the class, and how its image was rotated."""

    name = "mine/net"
    classes = 10

    def __init__(self) -> None:
        import torch
        from torch import nn

        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1),
            nn.SiLU(),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
        )
        self.class_head, self.rotation_head = nn.Linear(512, self.classes), nn.Linear(512, 4)
        self.all = nn.ModuleList([self.body, self.class_head, self.rotation_head]).eval().requires_grad_(False)
        self.all.load_state_dict(torch.load(WEIGHTS, map_location="cpu", weights_only=True))

    def to(self, device: str) -> RotationNet:
        """Return the classifier on `device`."""
        self.all.to(device)
        return self

    def __call__(self, x: Tensor, zoom: float = 1.0) -> Tensor:
        """Return logits `[n, 10]` of `x` `[n, 3, h, w]` in [0, 1]."""
        logits: Tensor = self.class_head(self.body(x))
        return logits

    def auxiliary_loss(self, x: Tensor) -> Tensor:
        """Return how badly each image's four rotations are recognised, `[n]`: the squared error of the softmax."""
        import torch

        turned = torch.cat([x.rot90(turns, (2, 3)) for turns in range(4)])
        found = self.rotation_head(self.body(turned)).softmax(1).view(4, len(x), 4)
        return (found - torch.eye(4, device=x.device)[:, None]).square().mean((0, 2))

    def record(self) -> dict[str, Any]:
        """Return everything that the outputs depend on; part of the cache key."""
        return {"weights": hash_file(WEIGHTS)}


@model("mine/net", source="my thesis, Sec. 3")
def net() -> Classifier:
    """A network with a rotation head."""
    return RotationNet()
