"""Model cards: what is known about a network before it is loaded. No torch."""

import tomllib
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from rdp_bench import schema

NUMERICS = 1
"""Version of how networks are prepared (batch-norm folding, resizing); bump when logits change."""


@dataclass(frozen=True)
class KnownAccuracy:
    """Top-1 percent that somebody measured on the first `n` images of a data set."""

    dataset: str
    n: int
    percent: float


@dataclass(frozen=True)
class Card:
    """What is known about a model; see data/models.toml for each field, which this is the schema of."""

    name: str
    summary: str
    arch: str
    weights: str
    input_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    in_order: bool = False
    sha256: str = ""
    interpolation: str = "bicubic"
    crop: float = 1.0
    fixed_size: bool = False
    label_offset: int = 0
    install: str = ""
    files: tuple[str, ...] = ()
    licence: str = ""
    accuracy: tuple[KnownAccuracy, ...] = ()
    trained_against: str = ""
    seen: tuple[str, ...] = ()

    def known_accuracy(self, dataset: str, n: int) -> float | None:
        """Top-1 percent on this many images of this data set, where somebody has measured it."""
        for known in self.accuracy:
            if (known.dataset, known.n) == (dataset, n):
                return known.percent
        return None


@cache
def cards() -> dict[str, Card]:
    """The built-in cards by name."""
    table = tomllib.loads(files("rdp_bench.data").joinpath("models.toml").read_text())
    return {name: schema.read({"name": name, **values}, Card, f"model card {name}") for name, values in table.items()}


ABOUT = ("name", "summary", "install", "files", "licence", "accuracy", "sha256", "weights", "trained_against", "seen")
"""Fields that no output depends on. Of the others, one that is added later is declared `keys.neutral(VALUE)`."""
