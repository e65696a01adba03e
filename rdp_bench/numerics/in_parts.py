"""How many images are computed at once where no sum crosses images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def in_parts(images: Tensor, function: Callable[[Tensor], Tensor], on_cpu: int) -> Tensor:
    """Apply `function` to all images at once on a GPU, where each call costs a kernel, and to few at a time on a CPU.

    Args:
        images: `[n, ...]`.
        function: maps `[k, ...]` to `[k, ...]`, each image as if it were alone.
        on_cpu: images at a time on a CPU: as many as keep what lies between two operations in its cache.
    """
    if images.device.type != "cpu" or len(images) <= on_cpu:
        return function(images)
    return torch.cat([function(part) for part in torch.split(images, on_cpu)])
