"""Model cards: what is known about a model before it is loaded. Does not import torch."""

import shlex
import tomllib
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from rdp_bench import schema

NUMERICS = 2
"""Version of the preparation of networks (batch-norm folding, resizing). Increase it when logits change."""


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
    legacy_files: tuple[str, ...] = ()
    licence: str = ""
    accuracy: tuple[KnownAccuracy, ...] = ()
    trained_against: str = ""
    seen: tuple[str, ...] = ()

    def known_accuracy(self, dataset: str, n: int) -> float | None:
        """Return the published top-1 accuracy in percent on `n` images of a data set; None if unknown."""
        for known in self.accuracy:
            if (known.dataset, known.n) == (dataset, n):
                return known.percent
        return None


@cache
def cards() -> dict[str, Card]:
    """Return the built-in cards by name."""
    table = tomllib.loads(files("rdp_bench.data").joinpath("models.toml").read_text())
    return {name: schema.read({"name": name, **values}, Card, f"model card {name}") for name, values in table.items()}


ABOUT = (
    "name", "summary", "install", "legacy_files", "licence", "accuracy", "sha256", "weights", "trained_against", "seen",
)  # fmt: skip
"""Fields on which no output depends. Declare any other field that is added later as `keys.neutral(VALUE)`."""


def convert_first(path: Path | str, model: str) -> str:
    """Return the sentence with the command that converts a weight file of an older format.

    >>> convert_first("resnet_v2_101.ckpt", "resnet-v2-101")
    'Convert it: rdp-bench weights convert resnet_v2_101.ckpt resnet-v2-101.safetensors --model resnet-v2-101'
    """
    out = Path(path).with_name(f"{model}.safetensors")
    return f"Convert it: rdp-bench weights convert {shlex.quote(str(path))} {shlex.quote(str(out))} --model {model}"
