"""Ten classes at 32 x 32 pixels: a data set and two networks as plugins, without ImageNet.

python docs/examples/small.py "mine/stripes(split=train, count=2000)"   # trains both networks in seconds
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rdp_bench as rb
from rdp_bench.keys import hash_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

HERE = Path(__file__).parent


@rb.dataset("mine/stripes", source="generated")
@dataclass(frozen=True)
class Stripes:
    """Noisy stripes in ten directions."""

    split: str = "test"
    count: int = 200
    name: str = "mine/stripes"
    size: int = 32
    classes: int = 10

    @property
    def ids(self) -> Sequence[str]:
        """A unique name per image."""
        return [f"{self.split}-{i:05d}" for i in range(self.count)]

    @property
    def labels(self) -> Sequence[int]:
        """The direction of the stripes in units of 18 degrees."""
        return [i % 10 for i in range(self.count)]

    def image(self, index: int) -> NDArray[np.uint8]:
        """Return image `index` as uint8 `[3, 32, 32]`."""
        import numpy as np

        rng = np.random.default_rng([index, self.split == "train"])
        angle = np.pi * (index % 10) / 10
        row, column = np.mgrid[:32, :32]
        wave = np.sin(0.8 * (row * np.cos(angle) + column * np.sin(angle)) + rng.uniform(0, 2 * np.pi))
        return (128 + 16 * wave + rng.normal(0, 16, (3, 32, 32))).clip(0, 255).astype(np.uint8)


class SmallNet:
    """Two convolutions and a linear layer, for images of 32 x 32 pixels in ten classes."""

    classes = 10

    def __init__(self, name: str, width: int, seed: int, load: bool = True) -> None:
        import torch
        from safetensors.torch import load_file
        from torch import nn

        self.name, self.file = f"mine/{name}", HERE / f"{name}.safetensors"
        torch.manual_seed(seed)
        layers = [nn.Conv2d(3, width, 5, 2, 2), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(32 * width, 10))
        if load:
            self.net.load_state_dict(load_file(self.file))
        self.net.eval()

    def to(self, device: Any) -> SmallNet:
        """Return the classifier on `device`."""
        self.net.to(device)
        return self

    def __call__(self, x: Tensor, zoom: float = 1.0) -> Tensor:
        """Return logits `[n, 10]` of `x` `[n, 3, 32, 32]` in [0, 1]; the network has no fixed input size."""
        logits: Tensor = self.net((x - 0.5) / 0.25)
        return logits

    def record(self) -> dict[str, Any]:
        """Return everything that the logits depend on; part of the cache key."""
        return {"weights": hash_file(self.file)}


NETWORKS = {"small-a": (16, 0), "small-b": (24, 1)}


@rb.model("mine/small-a", source="trained by small.py")
def small_a() -> SmallNet:
    """A network of width 16."""
    return SmallNet("small-a", *NETWORKS["small-a"])


@rb.model("mine/small-b", source="trained by small.py")
def small_b() -> SmallNet:
    """A network of width 24."""
    return SmallNet("small-b", *NETWORKS["small-b"])


def train(label: str, steps: int = 150) -> None:
    """Train both networks on a data set and save their weights beside this file."""
    import torch
    from safetensors.torch import save_file

    x, y = rb.load_dataset(label)
    for name, (width, seed) in NETWORKS.items():
        model = SmallNet(name, width, seed, load=False)
        optimizer = torch.optim.Adam(model.net.parameters(), 3e-3)
        for step in range(steps):
            rows = torch.randint(len(x), (64,), generator=torch.Generator().manual_seed(step))
            loss = torch.nn.functional.cross_entropy(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        save_file(model.net.state_dict(), model.file)
        print(f"{name}: training loss {loss.item():.3f}, {model.file}")


if __name__ == "__main__":
    train(sys.argv[1])
