"""Gradients at random points near an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from rdp_bench.rng import ImageRng


def neighbours(at: Tensor, radius: float | Tensor, count: int, rng: ImageRng) -> Iterator[Tensor]:
    """`count` points `at + U(-radius, radius)`, drawn per pixel and not clipped.

    Args:
        at: images `[n, 3, h, w]`.
        radius: in [0, 1], one number or `[n, 1, 1, 1]`.
        count: how many.
        rng: one stream per image.
    """
    for _ in range(count):
        yield at + radius * rng.uniform(*at.shape[1:], low=-1.0, high=1.0)


def mean_gradient(
    gradient: Callable[[Tensor], Tensor], at: Tensor, radius: float | Tensor, count: int, rng: ImageRng
) -> Tensor:
    """The mean of `gradient` over `neighbours`; `count` is above 0."""
    total: Tensor | None = None
    for point in neighbours(at, radius, count, rng):
        found = gradient(point)
        total = found if total is None else total + found
    assert total is not None
    return total / count
