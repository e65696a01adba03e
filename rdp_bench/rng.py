"""Per-image random streams.

Each image has its own stream, seeded from the cell's key and the image's pixels. An image so gets the same draws alone,
in any batch, after a resume, on every machine and device.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

import torch
from torch import Generator, Tensor


class ImageRng:
    """One random stream per image. Every method returns a tensor whose first axis is the images."""

    def __init__(self, seeds: Sequence[str], device: torch.device | str = "cpu") -> None:
        """Streams for images.

        Args:
            seeds: one string per image; equal strings give equal streams.
            device: where drawn tensors are put.
        """
        self._seeds = list(seeds)
        self.device = torch.device(device)
        self._streams = [Generator().manual_seed(_int64(seed)) for seed in self._seeds]

    def __len__(self) -> int:
        return len(self._seeds)

    def fork(self, name: str) -> "ImageRng":
        """New streams derived from these images and `name`; these streams do not advance."""
        return ImageRng([f"{seed}/{name}" for seed in self._seeds], self.device)

    def spawn(self, name: str) -> "ImageRng":
        """New streams derived from these images, `name` and one draw: these streams advance, so every call differs."""
        draws = self.integers(0, 2**53).tolist()
        return ImageRng([f"{seed}/{name}/{draw}" for seed, draw in zip(self._seeds, draws, strict=True)], self.device)

    def select(self, index: Tensor) -> "ImageRng":
        """The streams of the images at `index` (int64 `[k]`), shared with this object, not copied."""
        part = ImageRng([], self.device)
        part._seeds = [self._seeds[i] for i in index.tolist()]
        part._streams = [self._streams[i] for i in index.tolist()]
        return part

    def copy(self) -> "ImageRng":
        """Streams that give what these will give; neither advances the other."""
        part = ImageRng([], self.device)
        part._seeds = self._seeds
        part._streams = [Generator().set_state(stream.get_state()) for stream in self._streams]
        return part

    def on_host(self) -> "ImageRng":
        """These streams, shared, with tensors on the CPU: for draws that decide what the host does."""
        part = ImageRng([], "cpu")
        part._seeds, part._streams = self._seeds, self._streams
        return part

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform on [low, high), float32 `[n, *shape]`."""
        unit = self._each(partial(torch.rand, shape, dtype=torch.float32))
        return self._moved(low + (high - low) * unit)

    def normal(self, *shape: int) -> Tensor:
        """N(0, 1), float32 `[n, *shape]`."""
        return self._moved(self._each(partial(torch.randn, shape, dtype=torch.float32)))

    def _each(self, draw: Callable[..., Tensor]) -> Tensor:
        """One draw of each stream; beside a GPU, on all cores, because it would wait for them.

        Images that share a stream draw from it in their order.
        """
        streams = len({id(stream) for stream in self._streams})
        if self.device.type == "cpu" or streams == 1 or streams < len(self):
            return torch.stack([draw(generator=stream) for stream in self._streams])
        return torch.stack(list(_drawers().map(lambda stream: draw(generator=stream), self._streams)))

    def _moved(self, drawn: Tensor) -> Tensor:
        if self.device.type == "cuda":  # a pinned copy does not wait for what the GPU is doing
            return drawn.pin_memory().to(self.device, non_blocking=True)
        return drawn.to(self.device)

    def integers(self, low: int, high: int | Tensor, *shape: int) -> Tensor:
        """Uniform integers on [low, high), upper end exclusive; int64 `[n, *shape]` on the CPU.

        Args:
            low: smallest value.
            high: upper end, one number or one per image, `[n]`.
            shape: of the draw of one image.
        """
        unit = torch.stack([torch.rand(shape, generator=stream, dtype=torch.float64) for stream in self._streams])
        bound = torch.as_tensor(high).reshape(-1, *(1 for _ in shape))
        return low + (unit * (bound - low)).floor().long()


@cache
def _drawers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "draw")


def _int64(seed: str) -> int:
    return int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big", signed=True)
