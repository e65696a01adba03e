"""Gathering pixels and splitting batches, with backward passes that are gathers too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

GREY = 0.5
"""What stands for padding: the middle of [0, 1], 0 on the authors' scale of [-1, 1]."""


def gather_pixels(x: Tensor, rows: Tensor, columns: Tensor, reach: int | None = None) -> Tensor:
    """Output pixel (i, j) of image k is `x[k, :, rows[k, i], columns[k, j]]`, or mid-grey where either is -1.

    `x` `[n, c, h, w]`; `rows` `[n, H]` and `columns` `[n, W]` grow along each image. Differentiable in `x`.
    `reach` is how often a row or column appears at most; None counts, for which a GPU waits.
    """
    out: Tensor = _GatherPixels.apply(x, rows.to(x.device), columns.to(x.device), reach)
    return out


class _GatherPixels(torch.autograd.Function):
    """A gather whose backward is a gather too: fast, and free of the order of atomic additions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, columns: Tensor, reach: int | None) -> Tensor:
        n, c, h, w = x.shape
        ctx.size, ctx.reach = (h, w), reach
        ctx.save_for_backward(rows, columns)
        # One grey pixel behind the last stands for the padding.
        flat = pad(x.reshape(n, c, h * w), (0, 1), value=GREY)
        index = rows[:, :, None] * w + columns[:, None, :]
        outside = (rows < 0)[:, :, None] | (columns < 0)[:, None, :]
        index = index.masked_fill_(outside, h * w).reshape(n, 1, -1)
        return flat.gather(2, index.expand(n, c, -1)).view(n, c, rows.shape[1], columns.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = grads
        rows, columns = ctx.saved_tensors
        h, w = ctx.size
        grad = _collect(grad, rows, h, 2, ctx.reach)
        return _collect(grad, columns, w, 3, ctx.reach), None, None, None


def _collect(grad: Tensor, index: Tensor, size: int, dim: int, reach: int | None) -> Tensor:
    """Sum along `dim` of the entries that came from each of `size` places: the transpose of taking them.

    `index` grows, so the entries of one place are neighbours: at most `reach` of them.
    """
    n, length = index.shape
    counts = torch.zeros(n, size + 1, dtype=torch.long, device=index.device)
    counts.scatter_add_(1, index + 1, torch.ones_like(index))  # column 0 counts the padding
    # Leading padding comes before place 0; padding behind comes after the last place.
    leading = (index < 0).long().cumprod(1).sum(1, keepdim=True)
    counts = counts[:, 1:]
    first = leading + counts.cumsum(1) - counts
    shape = [n, 1, 1, 1]
    shape[dim] = size
    full = list(grad.shape)
    full[dim] = size
    total = torch.zeros(full, dtype=grad.dtype, device=grad.device)
    for k in range(int(counts.max()) if reach is None else reach):
        at = (first + k).clamp(max=length - 1).view(shape)
        there = (counts > k).view(shape)
        total += grad.gather(dim, at.expand(full)) * there
    return total


def split_batch(z: Tensor, one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:
    """Rows `one` and rows `two` of `z`; together they are all rows, each once. Differentiable in `z`.

    Args:
        z: `[n, ...]`.
        one: indices, int64 `[k]`, on the device of `z`.
        two: the other indices, int64 `[n - k]`.
    """
    parts: tuple[Tensor, Tensor] = _Split.apply(z, one, two)
    return parts


class _Split(torch.autograd.Function):
    """Two parts of a batch; plain indexing would sum two gradients of the whole batch."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(one, two)
        return z.index_select(0, one), z.index_select(0, two)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        one, two = ctx.saved_tensors
        total = grads[0].new_empty(len(one) + len(two), *grads[0].shape[1:])
        return total.index_copy_(0, one, grads[0]).index_copy_(0, two, grads[1]), None, None
