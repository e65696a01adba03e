"""A data set and a network from the Hugging Face hub, as plugins.

pip install datasets    # huggingface_hub and safetensors are installed with rdp-bench
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdp_bench import dataset, model
from rdp_bench.keys import hash_file

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


@dataset("mine/hub", source="a data set of the Hugging Face hub")
@dataclass(frozen=True)
class Hub:
    """Images and labels of a data set on the hub, cut to squares."""

    repo: str = "uoft-cs/cifar10"
    split: str = "test"
    revision: str = "main"  # better a commit
    image_column: str = "img"
    label_column: str = "label"
    size: int = 32
    name: str = "mine/hub"

    @cached_property
    def _rows(self) -> Any:
        from datasets import load_dataset

        return load_dataset(self.repo, split=self.split, revision=self.revision)

    @property
    def classes(self) -> int:
        """The number of classes, as the data set declares it."""
        count: int = self._rows.features[self.label_column].num_classes
        return count

    @property
    def ids(self) -> Sequence[str]:
        """The number of each row."""
        return [f"{self.split}-{i:05d}" for i in range(len(self._rows))]

    @property
    def labels(self) -> Sequence[int]:
        """The class of each row, counted from 0."""
        return list(self._rows[self.label_column])

    def image(self, index: int) -> Image:
        """Return image `index`, `size` x `size` pixels, RGB."""
        from PIL.ImageOps import fit

        image: Image = self._rows[index][self.image_column]
        return fit(image.convert("RGB"), (self.size, self.size))


REPO, REVISION, FILE = "mine/resnet18-cifar10", "main", "model.safetensors"


class HubNet:
    """torchvision's ResNet-18 for ten classes, with weights from the hub."""

    name, classes = "mine/hub-resnet18", 10

    def __init__(self) -> None:
        from huggingface_hub import hf_hub_download
        from safetensors.torch import load_file
        from torchvision.models import resnet18

        self.file = hf_hub_download(REPO, FILE, revision=REVISION)
        self.net = resnet18(num_classes=self.classes).eval().requires_grad_(False)
        self.net.load_state_dict(load_file(self.file))

    def to(self, device: Any) -> HubNet:
        """Return the classifier on `device`."""
        self.net.to(device)
        return self

    def __call__(self, x: Tensor, zoom: float = 1.0) -> Tensor:
        """Return logits `[n, 10]` of `x` `[n, 3, h, w]` in [0, 1]."""
        logits: Tensor = self.net((x - 0.5) / 0.25)
        return logits

    def record(self) -> dict[str, Any]:
        """Return everything that the logits depend on; part of the cache key."""
        return {"weights": hash_file(Path(self.file)), "mean": 0.5, "std": 0.25}


@model("mine/hub-resnet18", source=f"https://huggingface.co/{REPO}")
def hub_resnet18() -> HubNet:
    """ResNet-18 from the hub."""
    return HubNet()
