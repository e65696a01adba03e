"""A plugin for `benchmarks.scale`: any number of images, networks and defenses that are planned and never run."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdp_bench import Classifier, Dataset, Purifier, dataset, defense, model

SIZE, CLASSES = 8, 1000


@dataclass(frozen=True)
class Pixels:
    """Images whose pixels are their own number: nothing is decoded."""

    n: int
    name: str = "scale/pixels"
    size: int = SIZE
    ids: Sequence[str] = field(init=False, repr=False)
    labels: Sequence[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Name and label the images."""
        object.__setattr__(self, "ids", tuple(f"{i:06d}" for i in range(self.n)))
        object.__setattr__(self, "labels", tuple(i % CLASSES for i in range(self.n)))

    def image(self, index: int) -> NDArray[np.uint8]:
        """Image `index` as uint8 `[3, 8, 8]`."""
        image = np.zeros((3, SIZE, SIZE), np.uint8)
        image[0, 0, :4] = np.frombuffer(index.to_bytes(4, "little"), np.uint8)
        return image


@dataset("scale/pixels", source="made up")
def pixels(n: int = 1000) -> Dataset:
    """As many images as are asked for."""
    return Pixels(n)


@dataclass(frozen=True)
class Network:
    """A classifier that is never called."""

    name: str
    classes: int = CLASSES

    def __call__(self, x: Any, zoom: float = 1.0) -> Any:
        """Raise: everything is in the store."""
        raise NotImplementedError(self.name)

    def record(self) -> dict[str, Any]:
        """Identity of the network."""
        return {"name": self.name}


def _make(name: str) -> Classifier:
    return Network(name)


for name in [f"scale/s{i}" for i in range(5)] + [f"scale/t{i}" for i in range(2)]:
    made = partial(_make, name)
    made.__doc__ = "A network that is never called."  # type: ignore[attr-defined]
    made.__name__ = name  # type: ignore[attr-defined]
    made.__qualname__ = name  # type: ignore[attr-defined]
    model(name, source="made up")(made)


@dataclass(frozen=True)
class Idle(Purifier):
    """A defense that is never called."""

    number: int = 0

    def purify(self, x: Any, rng: Any) -> Any:  # noqa: ARG002 - part of the protocol
        """Return the images."""
        return x


defense("scale/idle", source="made up")(Idle)
