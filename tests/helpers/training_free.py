"""Photographs out of a formula, and training-free defenses by name."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from rdp_bench import plugins
from rdp_bench.protocols import Purifier
from rdp_bench.registry import defense
from rdp_bench.rng import ImageRng

plugins.load()


def photo(n: int = 1, size: int = 37, seed: int = 0) -> Tensor:
    """Soft shapes with an edge, 8-bit: like a photograph to a codec."""
    noise = torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    soft = interpolate(noise, size=(size, size), mode="bicubic", align_corners=False).clamp(0, 1)
    soft[..., size // 3 : size // 2] *= 0.4
    return (soft * 255).round() / 255


def image_rng(*seeds: str) -> ImageRng:
    return ImageRng(seeds or ["a"])


def made(text: str) -> Purifier:
    value = defense.resolve(text).value
    assert isinstance(value, Purifier)
    return value
