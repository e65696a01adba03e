"""How many images a network computes at a time on a CPU: fewer take less memory, and give the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rdp_bench.numerics import memory, precision
from rdp_bench.numerics.fixed_layers import AVAILABLE, Convolution, Linear

AT_ONCE, CRAFTED = 10, 5
"""Images of usual size at a time: without a gradient, and with that of one network. Each takes up to 1 GB. A gradient
takes as long per image for 5 as for 20."""

STEP = 8
"""Batches of a GPU have a multiple of so many images."""

USUAL = 299
"""Side in pixels of an image of usual size for a network that has no size of its own."""

_INDEPENDENT = (Convolution, Linear, nn.BatchNorm2d, nn.PReLU)
"""Layers with weights whose bits for an image are independent of the rest of the batch. Matrix products' are not."""

_asked: list[int | None] = [None]


@contextmanager
def using(images: int | None) -> Iterator[None]:
    """Inside, compute up to `images` at a time, as a user asked for; None: what suits the memory."""
    _asked.append(images)
    try:
        yield
    finally:
        _asked.pop()


def independent(net: nn.Module) -> bool:
    """Whether a CPU gives an image the same bits whatever the rest of the batch is."""
    return AVAILABLE and all(
        isinstance(module, _INDEPENDENT)
        for module in net.modules()
        if next(module.parameters(recurse=False), None) is not None
    )


def size(x: Tensor, usual: int = USUAL, count: int = AT_ONCE) -> int | None:
    """How many of the images `x` `[n, 3, h, w]` an `independent` network computes at a time; None: all of them.

    Args:
        x: the images.
        usual: side of an image of usual size; of images of twice its pixels and more, fewer are computed at a time.
        count: images of usual size at a time.
    """
    if x.device.type != "cpu" or precision.lowers() or _asked[-1] is not None:
        return None
    return max(1, count // max(1, round(x.shape[-2] * x.shape[-1] / usual**2)))


def filled(x: Tensor) -> Tensor:
    """`x` with its last image repeated up to a multiple of `STEP` images on a GPU; more images than asked for.

    Input diversity and attacks that leave finished images alone make batches of every size, and cuDNN plans each
    convolution anew for each of them.
    """
    lacking = -len(x) % STEP
    if not _on_gpu(x) or len(x) < STEP or not lacking:
        return x
    return torch.cat([x, x[-1:].expand(lacking, *x.shape[1:])])


def _on_gpu(x: Tensor) -> bool:
    return x.device.type == "cuda"


def computed(net: Callable[[Tensor], Tensor], x: Tensor, at_once: int | None) -> Tensor:
    """`net(x)`, computed for `at_once` images at a time; None: for all at once."""
    if at_once is None or len(x) <= at_once:
        return net(x)
    memory.limit()
    return torch.cat([net(part) for part in torch.split(x, at_once)])
