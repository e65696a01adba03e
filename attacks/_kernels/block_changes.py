"""The ten changes of blocks of SIA (Wang et al. 2023, Sec. 3.3), with the constants of xiaosen-wang/SIT."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from rdp_bench.attacks._kernels.cosine import dct, inverse_dct
from rdp_bench.errors import UsageError
from rdp_bench.rng import ImageRng

RESIZED, LOW_PASS, DROPPED, NOISE = 0.8, 0.4, 0.1, 16 / 255


@dataclass(frozen=True)
class Draw:
    """What a change may need: `unit` of U(0, 1), `channels` `[3]` of U(0, 1), `noise` of U(-1, 1) like the block."""

    unit: float
    channels: Tensor
    noise: Tensor


def shift_rows(block: Tensor, draw: Draw) -> Tensor:
    """Rolled down by U{0 .. h - 1} rows."""
    return block.roll(int(draw.unit * block.shape[-2]), -2)


def shift_columns(block: Tensor, draw: Draw) -> Tensor:
    """Rolled right by U{0 .. w - 1} columns."""
    return block.roll(int(draw.unit * block.shape[-1]), -1)


def flip_rows(block: Tensor, draw: Draw) -> Tensor:  # noqa: ARG001
    """Upside down."""
    return block.flip(-2)


def flip_columns(block: Tensor, draw: Draw) -> Tensor:  # noqa: ARG001
    """Left to right."""
    return block.flip(-1)


def rotate(block: Tensor, draw: Draw) -> Tensor:  # noqa: ARG001
    """By 180 degrees."""
    return block.flip(-1, -2)


def scale(block: Tensor, draw: Draw) -> Tensor:
    """Darkened by a factor of U(0, 1)."""
    return block * draw.unit


def resize(block: Tensor, draw: Draw) -> Tensor:  # noqa: ARG001
    """Bilinear to .8 of its size and back, clipped; the authors' code mixes up height and width of the small block."""
    small = [int(side * RESIZED) + 1 for side in block.shape[-2:]]
    down = interpolate(block[None], small, mode="bilinear", align_corners=False)
    return interpolate(down, block.shape[-2:], mode="bilinear", align_corners=False)[0].clamp(0, 1)


def add_noise(block: Tensor, draw: Draw) -> Tensor:
    """Noise of U(-16/255, 16/255), clipped."""
    return (block + NOISE * draw.noise).clamp(0, 1)


def low_pass(block: Tensor, draw: Draw) -> Tensor:  # noqa: ARG001
    """Without the highest .4 of the cosine coefficients of each axis; blocks of one or two pixels become black."""
    coefficients = dct(block)
    keep = torch.zeros_like(coefficients)
    rows, columns = (side - (int(side * LOW_PASS) or side) for side in block.shape[-2:])
    keep[..., :rows, :columns] = 1
    return inverse_dct(coefficients * keep)


def drop_channels(block: Tensor, draw: Draw) -> Tensor:
    """Each channel black with probability .1, the others brightened by 1 / .9."""
    kept = (draw.channels >= DROPPED).to(block.dtype) / (1 - DROPPED)
    return block * kept[:, None, None]


Change = Callable[[Tensor, Draw], Tensor]

CHANGES: tuple[Change, ...] = (
    resize, shift_rows, shift_columns, flip_rows, flip_columns, rotate, scale, add_noise, low_pass, drop_channels,
)  # fmt: skip


def change_blocks(images: Tensor, blocks: int, rng: ImageRng) -> Tensor:
    """`images` `[n, 3, h, w]` with each of `blocks` x `blocks` random blocks changed by one of `CHANGES`.

    Raises:
        UsageError: an image has fewer rows or columns than `blocks`.
    """
    if min(images.shape[-2:]) < blocks:
        raise UsageError(f"{blocks} x {blocks} blocks need images of at least {blocks} pixels a side")
    on_host = rng.on_host()
    cuts = [_cuts(on_host.uniform(size - 1), blocks) for size in images.shape[-2:]]
    units = on_host.uniform(blocks, blocks, 2).tolist()
    channels, noise = rng.uniform(blocks, blocks, 3), rng.uniform(*images.shape[1:], low=-1.0, high=1.0)
    out = []
    for k, image in enumerate(images):
        rows, columns = ([end - start for start, end in pairwise(each[k])] for each in cuts)
        made = []
        # Split, not sliced: the gradient of a slice is a whole image of zeros.
        for i, (of_image, of_noise) in enumerate(
            zip(torch.split(image, rows, 1), torch.split(noise[k], rows, 1), strict=True)
        ):
            strip = []
            for j, block in enumerate(torch.split(of_image, columns, 2)):
                which, unit = units[k][i][j]
                draw = Draw(unit, channels[k, i, j], torch.split(of_noise, columns, 2)[j])
                strip.append(CHANGES[int(which * len(CHANGES))](block, draw))
            made.append(torch.cat(strip, 2))
        out.append(torch.cat(made, 1))
    return torch.stack(out)


def _cuts(draws: Tensor, blocks: int) -> list[list[int]]:
    """Of each image, 0, `blocks - 1` different ordered numbers of 1 .. size - 1, and the size; from `[n, size - 1]`."""
    chosen = draws.argsort(1)[:, : blocks - 1].add(1).sort(1).values
    return [[0, *one, draws.shape[1] + 1] for one in chosen.tolist()]
