"""Entries that write into what they are lent, unless `IN_PLACE` is false: both ways must give the same numbers."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rdp_bench import Attack, Classifier, Purifier, attack, defense, model
from rdp_bench.protocols import Source
from rdp_bench.rng import ImageRng

SIZE, CLASSES = 16, 5
IN_PLACE = True


class Net:
    """A linear network that normalises its input."""

    name = "careless/net"
    classes = CLASSES

    def __init__(self) -> None:
        self.weight = torch.randn(CLASSES, 3 * SIZE * SIZE, generator=torch.Generator().manual_seed(1))

    def __call__(self, x: Tensor, zoom: float = 1.0) -> Tensor:
        x = x.sub_(0.5).mul_(-3.0) if IN_PLACE else (x - 0.5) * -3.0
        return x.flatten(1) @ self.weight.T

    def record(self) -> dict[str, Any]:
        return {}


@model("careless/net", source="made up")
def net() -> Classifier:
    """Normalises in place."""
    return Net()


@defense("careless/dim", source="made up")
@dataclass(frozen=True)
class Dim(Purifier):
    """Darkens and adds noise, `count` times."""

    random = True
    differentiable = True
    count: int = 1

    @property
    def passes(self) -> int:
        return self.count

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        noise = 0.1 * rng.uniform(*x.shape[1:])
        return x.mul_(0.6).add_(noise) if IN_PLACE else x * 0.6 + noise


@dataclass(frozen=True)
class Shift:
    """Adds .5 in place, which is far outside of eps."""

    def __call__(self, source: Source, x: Tensor, y: Tensor, eps: float, rng: ImageRng) -> Tensor:
        y.zero_()
        return x.add_(0.5).clamp_(0, 1)

    def resolved(self, eps_255: float) -> dict[str, Any]:
        return {}

    def gradients(self, eps_255: float) -> int:
        return 1


@attack("careless/shift", source="made up")
def shift() -> Attack:
    """In place."""
    return Shift()
