"""Blocks of images: random cuts, shuffling and rotation, one draw per image."""

from __future__ import annotations

from dataclasses import dataclass
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


def strips(size: int, count: int, rng: ImageRng) -> Strips:
    """Cut `size` pixels into `count` strips and permute them.

    Lengths are proportional to draws of U(0, 1) and rounded; the longest takes what rounding leaves. A strip may be
    empty.
    """
    weights = rng.uniform(count).cpu().double()
    lengths = (weights / weights.sum(1, keepdim=True) * size).round().long()
    rest = size - lengths.sum(1, keepdim=True)
    lengths.scatter_add_(1, lengths.argmax(1, keepdim=True), rest)
    order = rng.uniform(count).cpu().argsort(1)
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
    device = images.device
    n, c, h, w = images.shape
    top, source_y, height = (each.to(device)[:, :, None] for each in (rows.first, rows.source, rows.length))
    left, source_x, width = (each.to(device)[:, None, :] for each in (columns.first, columns.source, columns.length))
    angle = angles.to(device)[torch.arange(n)[:, None, None], rows.block[:, :, None], columns.block[:, None, :]]
    centre_y, centre_x = (height - 1) / 2, (width - 1) / 2
    dy = torch.arange(h, device=device)[:, None] - top - centre_y
    dx = torch.arange(w, device=device) - left - centre_x
    y = centre_y + angle.cos() * dy + angle.sin() * dx
    x = centre_x - angle.sin() * dy + angle.cos() * dx
    flat = (images - GREY).reshape(n, c, h * w)
    out = torch.zeros_like(flat)
    low_y, low_x = y.floor(), x.floor()
    for corner_y, weight_y in ((low_y, 1 + low_y - y), (low_y + 1, y - low_y)):
        for corner_x, weight_x in ((low_x, 1 + low_x - x), (low_x + 1, x - low_x)):
            inside = (corner_y >= 0) & (corner_y < height) & (corner_x >= 0) & (corner_x < width)
            index = ((source_y + corner_y) * w + source_x + corner_x).long() * inside
            weight = (weight_y * weight_x * inside).reshape(n, 1, h * w)
            out = out + weight * flat.gather(2, index.reshape(n, 1, h * w).expand(n, c, h * w))
    return GREY + out.reshape(n, c, h, w)
