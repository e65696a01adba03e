"""LPIPS (Zhang et al. 2018, Eq. 1): perceptual distance of two images by AlexNet's features. Downloads nothing.

Two files make it: AlexNet's ImageNet weights, which torchvision keeps in torch's hub folder once they were asked for,
and the paper's learned weights of its channels, which come with torchmetrics.
"""

import os
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from rdp_bench.cache.store import user_cache
from rdp_bench.errors import BadModelError
from rdp_bench.keys import Record, known_hash
from rdp_bench.metrics.measurement import Measurement
from rdp_bench.weights import files as weight_files

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

HOW = (
    "pip install '.[lpips]' in the checkout, and once with network: "
    "python -c \"import torchvision; torchvision.models.alexnet(weights='DEFAULT')\""
)
"""How to get the weights."""

ALEXNET = "alexnet-owt-7be5be79.pth"
"""torchvision's name for AlexNet's weights, version IMAGENET1K_V1."""

LEAST = 32
"""Smallest image size in pixels for AlexNet's pooling layers."""

_ENDS = (2, 5, 8, 10, 12)
"""Ends of the five stages of torchvision's AlexNet: after each ReLU."""

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""ImageNet's mean and deviation for images in [-1, 1], as the authors' code rounds them."""


def files() -> tuple[Path, Path] | None:
    """Paths of AlexNet's weights and of the channel weights, or None if one is missing."""
    spec = find_spec("torchmetrics")
    if spec is None or spec.origin is None:
        return None
    cached = Path(os.environ.get("XDG_CACHE_HOME") or user_cache()) / "torch"
    hub = Path(os.environ.get("TORCH_HOME") or cached) / "hub" / "checkpoints" / ALEXNET
    channels = Path(spec.origin).parent / "functional" / "image" / "lpips_models" / "alex.pth"
    return (hub, channels) if hub.is_file() and channels.is_file() else None


def record() -> Record | None:
    """What a distance depends on, for cache keys; None if the weights are missing."""
    found = files()
    return {"net": "alex", "weights": [known_hash(path) for path in found]} if found else None


def distance(first: "Tensor", second: "Tensor", hashes: Sequence[str] | None = None) -> "Tensor":
    """LPIPS `[n]` of images `[n, 3, s, s]` in [0, 1]; 0 for equal ones, NaN for those too small for AlexNet.

    Args:
        first: images.
        second: the images that they are compared with.
        hashes: what `record` said of the weights while planning; None: what they are now.

    Raises:
        BadModelError: the weights are not here, not AlexNet's, or have other hashes.
    """
    import torch

    found = files()
    if found is None:
        raise BadModelError(f"LPIPS: AlexNet's weights or torchmetrics are missing. {HOW}")
    if first.shape[-1] < LEAST:
        return first.new_full((len(first),), torch.nan)
    stages, channels = _load(*found, tuple(hashes or map(known_hash, found)), str(first.device))
    shift, scale = (torch.tensor(values, device=first.device).view(3, 1, 1) for values in (_SHIFT, _SCALE))
    maps = [(2 * images - 1 - shift) / scale for images in (first, second)]
    total = first.new_zeros(len(first))
    for stage, weight in zip(stages, channels, strict=True):
        maps = [stage(each) for each in maps]
        one, two = (each / (each.square().sum(1, keepdim=True).sqrt() + 1e-8) for each in maps)
        total += (weight * (one - two).square()).sum(1).mean((1, 2))
    return total


@cache
def _load(
    alexnet: Path, channels: Path, hashes: tuple[str, str], device: str
) -> tuple[list["nn.Module"], list["Tensor"]]:
    import torchvision

    net: Any = torchvision.models.alexnet(weights=None)
    with weight_files.unchanged(alexnet, hashes[0]), weight_files.unchanged(channels, hashes[1]):
        weight_files.load_strict(net, weight_files.read_tensors(alexnet), "AlexNet", alexnet)
        state = {name: tensor.clone() for name, tensor in weight_files.read_tensors(channels).items()}
    net.requires_grad_(False).eval().to(device)
    stages = [net.features[low:high] for low, high in zip((0, *_ENDS), _ENDS, strict=False)]
    for module in net.features.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    return stages, [state[f"lin{i}.model.1.weight"].to(device) for i in range(len(stages))]


class Lpips(Measurement):
    """LPIPS in percent."""

    name, title, unit = "lpips", "LPIPS", "%"
    better: ClassVar[Literal["higher", "lower"]] = "lower"
    note = "LPIPS is in percent, by AlexNet; lower means more alike."
    absent = (
        "LPIPS is left out: AlexNet's ImageNet weights, which no package installs, are missing here. "
        "rdp-bench doctor says how to get them."
    )
    install = HOW

    def facts(self) -> Record | None:
        """The network and the hashes of its weights, or None where they are missing."""
        return record()

    def measure(self, purified: "Tensor", clean: "Tensor", facts: Record) -> "Tensor":
        """LPIPS `[n]`, 0 for equal images."""
        return distance(purified, clean, facts["weights"])

    def values(self, stored: "NDArray[Any]") -> "NDArray[Any]":
        """LPIPS in percent."""
        return 100 * stored.astype(float)
