"""Entries that return what is natural in other libraries, and some that return what cannot be used."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rdp_bench import Attack, Classifier, Dataset, Purifier, attack, dataset, defense, model
from rdp_bench.protocols import Source
from rdp_bench.rng import ImageRng

SIZE, CLASSES, COUNT = 16, 5, 12


class Net:
    """Logits of 4 x 4 means, in the form that `wrap` gives them."""

    def __init__(self, name: str, wrap: Callable[[Tensor], Any], classes: Any = CLASSES) -> None:
        self.name, self.wrap, self.classes = name, wrap, classes
        self.weight = torch.randn(3 * 16, CLASSES, generator=torch.Generator().manual_seed(3))

    def __call__(self, x: Tensor, zoom: float = 1.0) -> Any:
        means = torch.nn.functional.adaptive_avg_pool2d(x - 0.5, 4).flatten(1)
        return self.wrap(means @ self.weight)

    def record(self) -> dict[str, Any]:
        if self.name != "natural/mapping":
            return {}
        return {
            "scale": np.float32(0.5),
            "size": np.int64(SIZE),
            "mean": np.array([0.5, 0.25]),
            "fixed": np.bool_(True),
        }


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "plain": lambda z: z,
    "tuple": lambda z: (z, z.sum()),
    "list": lambda z: [z],
    "hugging-face": lambda z: SimpleNamespace(logits=z),
    "mapping": lambda z: {"logits": z},
}
BAD: dict[str, Callable[[Tensor], Any]] = {
    "argmax": lambda z: z.argmax(1),
    "wider": lambda z: torch.cat([z, z[:, :1]], 1),
    "text": lambda z: "cat",
    "raises": lambda z: z + None,
}


def register(name: str, wrap: Callable[[Tensor], Any]) -> None:
    def make() -> Classifier:
        """A network."""
        return Net(name, wrap)

    make.__qualname__ = name
    model(f"natural/{name}", source="made up")(make)


for name_, wrap_ in (FORMS | BAD).items():
    register(name_, wrap_)


def pixels(index: int) -> Any:
    return np.random.default_rng(index).integers(0, 256, (3, SIZE, SIZE), np.uint8)


IMAGES: dict[str, Callable[[int], Any]] = {
    "array": pixels,
    "torch": lambda i: torch.from_numpy(pixels(i)),
    "hwc": lambda i: pixels(i).transpose(1, 2, 0),
    "int64": lambda i: pixels(i).astype(np.int64),
    "pil": lambda i: Image.fromarray(pixels(i).transpose(1, 2, 0)),
    "float": lambda i: pixels(i) / 255,
}
LABELS: dict[str, Callable[[list[int]], Any]] = {
    "list": list,
    "numpy": np.array,
    "torch": torch.tensor,
    "floats": lambda found: [float(label) for label in found],
    "halves": lambda found: [label + 0.5 for label in found],
    "words": lambda found: [str(label) for label in found],
}


@dataclass(frozen=True)
class Natural:
    """Twelve images."""

    images: str = "array"
    numbers: str = "list"
    name: str = "natural/set"
    size: int = SIZE

    @property
    def ids(self) -> Any:
        found = [f"image-{i}" for i in range(COUNT)]
        return np.array(found) if self.numbers == "numpy" else found

    @property
    def labels(self) -> Any:
        return LABELS[self.numbers]([i % CLASSES for i in range(COUNT)])

    def image(self, index: int) -> Any:
        return IMAGES[self.images](index)


@dataset("natural/set", source="made up")
def natural() -> Dataset:
    """Twelve images."""
    return Natural()


@defense("natural/scalars", source="made up")
@dataclass(frozen=True)
class Scalars(Purifier):
    """Says its parameters as numpy scalars."""

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        return x.flip(3)

    def resolved(self) -> dict[str, Any]:
        return {"level": np.int64(3), "flags": {"on": np.bool_(True)}}


@defense("natural/object", source="made up")
@dataclass(frozen=True)
class Object(Purifier):
    """Says a parameter that JSON cannot hold."""

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        return x

    def resolved(self) -> dict[str, Any]:
        return {"level": object()}


@defense("natural/none", source="made up")
@dataclass(frozen=True)
class Raises(Purifier):
    """Raises a TypeError."""

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        return x + None  # type: ignore[operator]


@dataclass(frozen=True)
class Returns:
    """Returns what it is told."""

    what: str = "leaf"

    def __call__(self, source: Source, x: Tensor, y: Tensor, eps: float, rng: ImageRng) -> Any:
        adv = (x + eps).clamp(0, 1)
        return {"leaf": adv.requires_grad_(), "array": adv.detach().numpy(), "none": None}[self.what]

    def resolved(self, eps_255: float) -> dict[str, Any]:
        return {"what": self.what, "eps": np.float32(eps_255)}

    def gradients(self, eps_255: float) -> int:
        return 1


@attack("natural/attack", source="made up")
def returns() -> Attack:
    """Adds eps."""
    return Returns()
