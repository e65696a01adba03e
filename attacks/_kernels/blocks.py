"""Blocks of images: random cuts, shuffling and rotation, one draw per image."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import erf

import torch
from torch import Tensor

from rdp_bench.attacks._kernels.gather import GREY
from rdp_bench.rng import ImageRng


@dataclass(frozen=True)
class Strips:
    """One axis of images cut into strips that are put into another order; every tensor is on the CPU.

    Attributes:
        block: number of the strip that each output pixel lies in, counted in the output, int64 `[n, size]`.
        first: first pixel of that strip in the output, `[n, size]`.
        source: first pixel of that strip in the input, `[n, size]`.
        length: pixels of that strip, `[n, size]`.
    """

    block: Tensor
    first: Tensor
    source: Tensor
    length: Tensor

    def of(self, k: int) -> Strips:
        """Those of image `k`."""
        return Strips(*(getattr(self, each.name)[k : k + 1] for each in fields(self)))


def strips(size: int, count: int, rng: ImageRng) -> Strips:
    """Cut `size` pixels into `count` strips and permute them.

    Lengths are proportional to draws of U(0, 1) and rounded; the longest takes what rounding leaves. A strip may be
    empty.
    """
    rng = rng.on_host()
    weights = rng.uniform(count).double()
    lengths = (weights / weights.sum(1, keepdim=True) * size).round().long()
    rest = size - lengths.sum(1, keepdim=True)
    lengths.scatter_add_(1, lengths.argmax(1, keepdim=True), rest)
    order = rng.uniform(count).argsort(1)
    starts = lengths.cumsum(1) - lengths
    lengths, starts = lengths.gather(1, order), starts.gather(1, order)
    ends = lengths.cumsum(1)
    at = torch.arange(size).expand(len(ends), size).contiguous()
    block = torch.searchsorted(ends, at, right=True)
    return Strips(block, (ends - lengths).gather(1, block), starts.gather(1, block), lengths.gather(1, block))


def truncated_normal(rng: ImageRng, *shape: int) -> Tensor:
    """N(0, 1) restricted to [-2, 2], float32 `[n, *shape]`, by the inverse of its distribution function."""
    inside = erf(2 / 2**0.5)
    unit = rng.uniform(*shape).double()
    return (torch.erfinv((2 * unit - 1) * inside) * 2**0.5).float()


def rotated_blocks(images: Tensor, rows: Strips, columns: Strips, angles: Tensor) -> Tensor:
    """Images made of permuted blocks, each rotated about its centre; bilinear, mid-grey outside of a block.

    Args:
        images: `[n, c, h, w]`.
        rows: strips of rows.
        columns: strips of columns.
        angles: radians, `[n, row blocks, column blocks]`, by the place of a block in the output.
    """
    if images.device.type == "cpu" and len(images) > 1:
        # One image at a time: what is computed between stays in the processor's cache.
        found = [
            rotated_blocks(part, rows.of(k), columns.of(k), angles[k : k + 1])
            for k, part in enumerate(torch.split(images, 1))
        ]
        return torch.cat(found)
    device = images.device
    n, c, h, w = images.shape
    top, source_y, height = (each.to(device)[:, :, None] for each in (rows.first, rows.source, rows.length))
    left, source_x, width = (each.to(device)[:, None, :] for each in (columns.first, columns.source, columns.length))
    # Of the block of each pixel, one axis after the other, which is much faster than both at once.
    block_y, block_x = rows.block.to(device)[:, :, None], columns.block.to(device)[:, None, :]
    angle = angles.to(device).gather(1, block_y.expand(n, h, angles.shape[2])).gather(2, block_x.expand(n, h, w))
    centre_y, centre_x = (height - 1) / 2, (width - 1) / 2
    dy = torch.arange(h, device=device)[:, None] - top - centre_y
    dx = torch.arange(w, device=device) - left - centre_x
    y = centre_y + angle.cos() * dy + angle.sin() * dx
    x = centre_x - angle.sin() * dy + angle.cos() * dx
    flat = (images - GREY).reshape(n, c, h * w)
    parts = []
    for row, above, weight_y in _neighbours(y, source_y, height):
        for column, beside, weight_x in _neighbours(x, source_x, width):
            inside = above & beside
            index = (row * w + column).clamp_(0, h * w - 1).reshape(n, 1, h * w)
            weight = (weight_y * weight_x).mul_(inside).reshape(n, 1, h * w)
            parts.append(weight * flat.gather(2, index.expand(n, c, h * w)))
    return GREY + (parts[0] + parts[1] + parts[2] + parts[3]).reshape(n, c, h, w)


def _neighbours(at: Tensor, source: Tensor, length: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of places within strips along one axis, the pixels below and above: index in the image, if inside, weight."""
    low = at.floor()
    found = []
    for pixel, weight in ((low, 1 + low - at), (low + 1, at - low)):
        found.append(((source + pixel).long(), (pixel >= 0) & (pixel < length), weight))
    return found
