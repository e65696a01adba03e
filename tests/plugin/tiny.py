"""A plugin as a user would write one: a data set, two classifiers, an attack and two defenses, all tiny."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rdp_bench import Attack, Classifier, Dataset, Defense, Purifier, attack, dataset, defense, model
from rdp_bench.protocols import Source
from rdp_bench.rng import ImageRng

SIZE, CLASSES, COUNT = 16, 5, 12


class Linear:
    """Logits linear in the pixels; weights from a fixed seed."""

    def __init__(self, name: str, seed: int) -> None:
        self.name = name
        self.classes = CLASSES
        self.seed = seed
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(CLASSES, 3 * SIZE * SIZE, generator=generator)

    def __call__(self, x: Tensor, zoom: float = 1.0) -> Tensor:
        small = torch.nn.functional.interpolate(x, size=(SIZE, SIZE), mode="nearest")
        return (small - 0.5).flatten(1) @ self.weight.T

    def to(self, device: str) -> "Linear":
        self.weight = self.weight.to(device)
        return self

    def record(self) -> dict[str, Any]:
        return {"seed": self.seed}


@model("tiny/one", source="made up")
def one() -> Classifier:
    """A linear classifier of 16 x 16 pixels."""
    return Linear("tiny/one", 1)


@model("tiny/two", source="made up")
def two() -> Classifier:
    """Another linear classifier."""
    return Linear("tiny/two", 2)


@dataclass(frozen=True)
class Noise:
    """Random images, labelled by tiny/one, so that it is always right."""

    name: str = "tiny/noise"
    size: int = SIZE
    ids: Sequence[str] = tuple(f"image-{i}" for i in range(COUNT))

    @property
    def labels(self) -> Sequence[int]:
        images = torch.stack([torch.from_numpy(self.image(i)) for i in range(COUNT)]).float() / 255
        found: list[int] = one()(images).argmax(1).tolist()
        return found

    def image(self, index: int) -> NDArray[np.uint8]:
        return np.random.default_rng(index).integers(0, 256, (3, SIZE, SIZE), np.uint8)


@dataset("tiny/noise", source="made up")
def noise() -> Dataset:
    """Twelve random images."""
    return Noise()


@dataclass(frozen=True)
class Sleepy:
    """Random signs, slowly: gives a test time to interrupt it."""

    seconds: float = 0.0
    stray: float = 0.0  # moves this much farther than allowed, in /255
    broken: bool = False

    def __call__(self, source: Source, x: Tensor, y: Tensor, eps: float, rng: ImageRng) -> Tensor:
        if self.broken:
            raise ZeroDivisionError("this attack is broken")
        time.sleep(self.seconds)
        noise = rng.uniform(*x.shape[1:], low=-1.0, high=1.0).sign()
        return (x + (eps + self.stray / 255) * noise).clamp(0, 1)

    def resolved(self, eps_255: float) -> dict[str, Any]:
        return {"stray": self.stray, "broken": self.broken}  # not `seconds`: it changes no pixel

    def gradients(self, eps_255: float) -> int:
        return 1


@attack("tiny/sleepy", source="made up")
def sleepy() -> Attack:
    """Random signs of eps."""
    return Sleepy()


@defense("tiny/round", source="made up")
@dataclass(frozen=True)
class Round(Purifier):
    """Rounds pixels to a few levels."""

    levels: int = 4

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        return (x * self.levels).round() / self.levels


@defense("tiny/dither", source="made up")
@dataclass(frozen=True)
class Dither(Purifier):
    """Adds noise; three passes."""

    random = True

    @property
    def passes(self) -> int:
        return 3

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        return (x + 0.1 * rng.normal(*x.shape[1:])).clamp(0, 1)


@defense("tiny/nan", source="made up")
def nan() -> Defense:
    """Returns NaN: its cells must fail, and only its."""

    @dataclass(frozen=True)
    class Nan(Purifier):
        def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
            return x * float("nan")

    return Nan()
