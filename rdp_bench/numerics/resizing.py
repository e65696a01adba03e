"""Resizing of images as two products with banded matrices."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from rdp_bench import torch_settings

BAND = 16
"""Rows of a matrix that are multiplied at a time, without the columns in which they are all zero."""


@lru_cache(maxsize=64)
def resize_matrix(old: int, new: int, mode: str, crop: float, device: torch.device) -> Tensor:
    """Return the matrix `[new, old]` that resizes the central `crop` of `old` pixels to `new`.

    Without antialiasing, as in the TensorFlow pipelines that trained the networks.
    """
    whole = round(new / crop)
    margin = (whole - new) // 2
    with torch_settings.usual():  # it is kept, also for calls with a gradient
        matrix = interpolate(torch.eye(old)[None, None], size=(whole, old), mode=mode, align_corners=False)[0, 0]
        return matrix[margin : margin + new].contiguous().to(device)


def resize(x: Tensor, size: int, mode: str = "bicubic", crop: float = 1.0) -> Tensor:
    """Resize the central part of square images `[n, 3, h, h]` to `[n, 3, size, size]`.

    Resizing is linear and separable: R x R^T. Two matrix products are faster than `interpolate` and its backward pass,
    and the order of their sums is fixed on every device.

    Args:
        x: images.
        size: side of the result in pixels.
        mode: `bilinear` or `bicubic`.
        crop: side of the central part relative to the image, in (0, 1].
    """
    old = x.shape[-1]
    if old == size and crop == 1:
        return x
    matrix = resize_matrix(old, size, mode, crop, x.device)
    if not fits(x):
        return matrix @ x @ matrix.T
    out: Tensor = _Resize.apply(x, matrix)
    return out


def fits(x: Tensor) -> bool:
    """Whether bands are faster: on a GPU, where calls cost more than zeros, and under autocast they are not used."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


class _Resize(torch.autograd.Function):
    """R x R^T, and R^T g R for its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor) -> Tensor:
        ctx.matrix = matrix
        return _across(_down(x, matrix), matrix)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        matrix = _transposed(ctx.matrix)
        if torch.is_grad_enabled():  # create_graph: the gradient is differentiated itself
            return matrix @ grads[0] @ matrix.T, None
        return _down(_across(grads[0].contiguous(), matrix), matrix), None


def _down(x: Tensor, matrix: Tensor) -> Tensor:
    """`matrix @ x`."""
    out = x.new_empty(*x.shape[:2], len(matrix), x.shape[3])
    for top, bottom, first, last in _bands(matrix):
        out[:, :, top:bottom] = matrix[top:bottom, first:last] @ x[:, :, first:last]
    return out


def _across(x: Tensor, matrix: Tensor) -> Tensor:
    """`x @ matrix.T`."""
    flat = x.reshape(-1, x.shape[-1])
    out = x.new_empty(len(flat), len(matrix))
    for left, right, first, last in _bands(matrix):
        torch.mm(flat[:, first:last], matrix[left:right, first:last].T, out=out[:, left:right])
    return out.view(*x.shape[:-1], -1)


@lru_cache(maxsize=64)
def _transposed(matrix: Tensor) -> Tensor:
    with torch.inference_mode(mode=False):
        return matrix.T.contiguous()


@lru_cache(maxsize=128)
def _bands(matrix: Tensor) -> tuple[tuple[int, int, int, int], ...]:
    return _find_bands(matrix != 0)


def _find_bands(filled: Tensor) -> tuple[tuple[int, int, int, int], ...]:
    """First and last row of each band, and first and last column in which `filled` has an entry; ends exclusive."""
    found = []
    for top in range(0, len(filled), BAND):
        bottom = min(top + BAND, len(filled))
        columns = filled[top:bottom].any(0).nonzero()[:, 0].tolist()
        found.append((top, bottom, columns[0], columns[-1] + 1) if columns else (top, bottom, 0, 1))
    return tuple(found)


def resize_gathered(x: Tensor, rows: Tensor, columns: Tensor, size: int, mode: str, crop: float = 1.0) -> Tensor:
    """Resize `gather_pixels(x, rows, columns)` to `size` without creating that image; equal up to rounding.

    Gathering pixels is linear and separable, like resizing, so one pair of matrices per image does both. Grey is zero
    here, so padding is a row without any entry.

    Args:
        x: images `[n, 3, h, w]`.
        rows: source row of each row of the gathered image, int64 `[n, H]`, growing along each image, -1 for grey.
        columns: the same for columns.
        size: side of the result in pixels.
        mode: as in `resize`.
        crop: as in `resize`.
    """
    matrix = resize_matrix(rows.shape[1], size, mode, crop, torch.device(x.device))
    down, across = (gather_matrix(matrix, index.to(x.device), x.shape[-1]) for index in (rows, columns))
    if not fits(x):
        n, c, h, w = x.shape
        # The products over all channels at once need no copies of the matrices.
        x = torch.bmm((x - 0.5).view(n, c * h, w), across.mT).view(n, c, h, -1)
        return down[:, None] @ x + 0.5
    out: Tensor = _ResizeGathered.apply(x, down, across)
    return out


def gather_matrix(matrix: Tensor, index: Tensor, size: int) -> Tensor:
    """Return `matrix` `[new, old]` times the gathering of `index` `[n, old]` from `size` entries; -1 gathers none."""
    n, new = len(index), len(matrix)
    where = index.masked_fill(index < 0, size)[:, None].expand(n, new, -1)
    out = matrix.new_zeros(n, new, size + 1).scatter_add_(2, where, matrix.expand(n, -1, -1))
    return out[:, :, :size]


class _ResizeGathered(torch.autograd.Function):
    """D (x - 1/2) A^T + 1/2 with matrices `[n, new, old]` of each image, and D^T g A for its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, down: Tensor, across: Tensor) -> Tensor:
        ctx.save_for_backward(down, across)
        return _each_across(_each_down(x - 0.5, down), across).add_(0.5)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        down, across = ctx.saved_tensors
        if torch.is_grad_enabled():
            return down.mT[:, None] @ grads[0] @ across[:, None], None, None
        return _each_down(_each_across(grads[0].contiguous(), across.mT), down.mT), None, None


def _each_down(x: Tensor, matrices: Tensor) -> Tensor:
    """`matrices[k] @ x[k]` for every image k; one at a time, so that no sum depends on the batch."""
    n, c, _, w = x.shape
    out = x.new_empty(n, c, matrices.shape[1], w)
    for image, matrix, made, bands in zip(x, matrices, out, _bands_of_each(matrices), strict=True):
        for top, bottom, first, last in bands:
            made[:, top:bottom] = matrix[top:bottom, first:last] @ image[:, first:last]
    return out


def _each_across(x: Tensor, matrices: Tensor) -> Tensor:
    """`x[k] @ matrices[k].T` for every image k."""
    n, c, h, w = x.shape
    out = x.new_empty(n, c * h, matrices.shape[1])
    for image, matrix, made, bands in zip(x.reshape(n, c * h, w), matrices, out, _bands_of_each(matrices), strict=True):
        for left, right, first, last in bands:
            torch.mm(image[:, first:last], matrix[left:right, first:last].T, out=made[:, left:right])
    return out.view(n, c, h, -1)


def _bands_of_each(matrices: Tensor) -> list[tuple[tuple[int, int, int, int], ...]]:
    """`_bands` of every matrix of `[n, new, old]`."""
    tops = range(0, matrices.shape[1], BAND)
    filled = torch.stack([(matrices[:, top : top + BAND] != 0).any(1) for top in tops], 1).long()
    first = filled.argmax(2)
    last = torch.where(filled.any(2), filled.shape[2] - filled.flip(2).argmax(2), 1)
    ends = [min(top + BAND, matrices.shape[1]) for top in tops]
    return [tuple(zip(tops, ends, *pair, strict=True)) for pair in zip(first.tolist(), last.tolist(), strict=True)]
