"""Randomness that belongs to an image, not to a batch.

Each image has its own stream, seeded from the cell's key and the image's pixels. So an image gets the
same draws alone, in any batch, after a resume, on any machine and any device.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Generator, Tensor


class ImageRng:
    """One random stream an image. Every method returns a tensor whose first axis is the images."""

    def __init__(self, seeds: Sequence[str], device: torch.device | str = "cpu") -> None:
        """`seeds`: one string an image; equal strings give equal streams."""
        self.seeds = list(seeds)
        self.device = torch.device(device)
        self._streams = [Generator().manual_seed(_int64(seed)) for seed in self.seeds]

    def __len__(self) -> int:
        return len(self.seeds)

    def fork(self, name: str) -> "ImageRng":
        """New streams derived from these images and `name`; these streams do not advance."""
        return ImageRng([f"{seed}/{name}" for seed in self.seeds], self.device)

    def select(self, index: Tensor) -> "ImageRng":
        """The streams of some of the images, shared with this object, not copied."""
        part = ImageRng([], self.device)
        part.seeds = [self.seeds[i] for i in index.tolist()]
        part._streams = [self._streams[i] for i in index.tolist()]
        return part

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """U[low, high), float32 `[n, *shape]`."""
        unit = torch.stack([torch.rand(shape, generator=stream) for stream in self._streams])
        return (low + (high - low) * unit).to(self.device)

    def normal(self, *shape: int) -> Tensor:
        """N(0, 1), float32 `[n, *shape]`."""
        return torch.stack([torch.randn(shape, generator=stream) for stream in self._streams]).to(self.device)

    def integers(self, low: int, high: int | Tensor, *shape: int) -> Tensor:
        """Integers of [low, high), upper end exclusive; int64 `[n, *shape]` on the CPU.

        `high` may be one bound an image, `[n]`.
        """
        unit = torch.stack([torch.rand(shape, generator=stream, dtype=torch.float64) for stream in self._streams])
        bound = torch.as_tensor(high).reshape(-1, *(1 for _ in shape))
        return low + (unit * (bound - low)).floor().long()


def _int64(seed: str) -> int:
    return int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big", signed=True)
