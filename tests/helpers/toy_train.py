"""Trainings small enough to run many times: a toy extractor, tiny networks, photographs out of a formula."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from rdp_bench.defenses._networks import comdefend, edm, edsr, hgd, nrp, rdp
from rdp_bench.registry import Entry, model
from rdp_bench.train import recipes
from rdp_bench.train.loop import LoopIntervals, Training
from rdp_bench.train.photos import Photos
from rdp_bench.train.recipe import Recipe
from tests.helpers import toy

SIZES: dict[str, tuple[Any, dict[str, Any]]] = {
    "rdp": (rdp, {"width": 12, "blocks": 1, "unshuffle": 2}),
    "nrp": (nrp, {"width": 12, "growth": 4, "blocks": 1, "unshuffle": 2}),
    "hgd": (hgd, {"width": 4}),
    "comdefend": (comdefend, {"widths": [8]}),
    "sr": (edsr, {"width": 4, "blocks": 1}),
    "denoiser": (edm, {"widths": [4, 6], "blocks": 1}),
}
NAMES = tuple(SIZES)


class Maps(toy.Toy):
    """A classifier with feature maps: fixed convolutions, the second of stride 2; remembers zooms and levels."""

    def __init__(self, name: str, seed: int) -> None:
        self.first, self.second = (
            toy.random(*shape, seed=seed + i) / 3 for i, shape in enumerate(((6, 3, 3, 3), (8, 6, 3, 3)))
        )
        super().__init__(lambda x: self.features(x)[-1].mean((2, 3)), 8, name)
        self.levels: list[tuple[int, ...]] = []

    def features(self, x: Tensor, levels: tuple[int, ...] = (0, 1), zoom: float = 1.0) -> list[Tensor]:
        """Maps of 6 and 8 channels."""
        self.zooms.append(zoom)
        maps = [conv2d(x - 0.5, self.first, padding=1).tanh()]
        maps.append(conv2d(maps[0], self.second, stride=2, padding=1).tanh())
        return [maps[i] for i in levels] or maps[-1:]

    def to(self, device: str) -> "Maps":
        """Where the weights are."""
        self.first, self.second = self.first.to(device), self.second.to(device)
        return self


def install(setitem: Callable[[Any, str, Any], None] = dict.__setitem__) -> None:
    """Let `toy/one` and `toy/two` be models, and `tiny` a size of every recipe."""
    setitem(sys.modules, "tensorflow", None)  # TensorBoard does without, and importing it takes half a minute
    for seed, name in enumerate(("toy/one", "toy/two")):
        setitem(model.entries, name, Entry(name, lambda n=name, s=seed: Maps(n, 10 * s), "", "tests", 1, "tests"))
    for name, (module, args) in SIZES.items():
        setitem(module.SIZES, "tiny", args)
        setitem(recipes.get(name).defaults, "tiny", tiny(name))


def tiny(name: str) -> dict[str, Any]:
    """Options of ten steps."""
    levels = () if name == "hgd" else (0, 1)
    return {
        "steps": 10, "batch": 4, "crop": 32, "rate": 5e-4 if name == "nrp" else 4e-3, "schedule": "constant",
        "features": ("toy/one",), "levels": levels, "attack_steps": 2, "average": 0.998 if name == "denoiser" else 0.0,
    }  # fmt: skip


def recipe(name: str, **given: Any) -> Recipe:
    """A tiny recipe."""
    kind = recipes.get(name)
    return kind(kind.settings("tiny", given), "cpu")


def photos(shapes: Sequence[tuple[int, int]] = ((48, 40), (36, 52), (32, 32))) -> Photos:
    """Smooth photographs with a little noise."""
    rng = np.random.default_rng(0)
    images = []
    for i, (height, width) in enumerate(shapes):
        down, across = np.mgrid[:height, :width] / 6
        waves = [np.sin(down + i) + np.cos(across * (c + 1) / 2) for c in range(3)]
        images.append(
            np.clip(127 + 45 * np.stack(waves) + rng.normal(0, 4, (3, height, width)), 0, 255).astype(np.uint8)
        )
    flat = np.concatenate([image.ravel() for image in images])
    return Photos(flat, list(shapes), [f"{i}.png" for i in range(len(shapes))], "formula")


def judge(purify: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """A validation whose score goes up and down."""
    with torch.no_grad():
        mean = float(purify(toy.images(2, 32)).mean())
    return {"psnr_clean": mean, "score": abs(1000 * mean) % 1}


def training(out: Path, name: str = "rdp", **given: Any) -> Training:
    """Ten steps with a row and a validation every two; checkpoints only where the loop must."""
    pace = LoopIntervals(log_every=2, validate_every=2, checkpoint_minutes=1e9)
    return Training(recipe(name, **given), photos(), out, judge, pace)


def states(of: Training) -> dict[str, Any]:
    """Everything that a step may change, by value."""
    nets = {f"{net}.{key}": value.clone() for net, m in of.recipe.nets.items() for key, value in m.state_dict().items()}
    for name, optimizer in of.recipe.optimizers.items():
        for i, state in optimizer.state_dict()["state"].items():
            nets |= {f"{name}.{i}.{key}": torch.as_tensor(value).clone() for key, value in state.items()}
    return nets


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Bit for bit; names, too."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
