"""ComDefend's two networks (Jia et al. 2019): an image to twelve bits a pixel, and back."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

SIZES = {
    "paper": {"widths": [16, 32, 64, 128, 256, 128, 64, 32]},
    "compact": {"widths": [16, 32, 48, 32]},
}

BITS = 12


def chain(widths: Sequence[int]) -> nn.Sequential:
    """3x3 convolutions from each width to the next, ELU between."""
    layers: list[nn.Module] = []
    for old, new in pairwise(widths):
        layers += [nn.Conv2d(old, new, 3, padding=1), nn.ELU()]
        nn.init.kaiming_normal_(layers[-2].weight)  # type: ignore[arg-type]
    return nn.Sequential(*layers[:-1])


class Elu(nn.Module):
    """ELU for inference, in place: exp(x) - 1 instead of expm1, which is 1e-7 more exact and takes most of the time."""

    def forward(self, x: Tensor) -> Tensor:
        """max(x, exp(min(x, 0)) - 1), which is ELU: its exponential part is above x for all x below 0."""
        negative = x.clamp(max=0).exp_().sub_(1)
        return torch.maximum(x, negative, out=negative)


class ComDefend(nn.Module):
    """ComCNN and RecCNN: 783,372 and 783,363 parameters at the paper's widths, which the second walks backwards."""

    def __init__(self, widths: Sequence[int] = (16, 32, 64, 128, 256, 128, 64, 32)) -> None:
        super().__init__()
        self.multiple = 1
        self.com = chain([3, *widths, BITS])
        self.rec = chain([BITS, *reversed(widths), 3])

    def fold(self) -> None:
        """Exchange the activations for inference."""
        for layers in (self.com, self.rec):
            for number, layer in enumerate(layers):
                if isinstance(layer, nn.ELU):
                    layers[number] = Elu()

    def encode(self, x: Tensor) -> Tensor:
        """Images `[n, 3, h, w]` in [0, 1] to `[n, 12, h, w]`: a bit is 1 where this is above the noise."""
        out: Tensor = self.com(x - 0.5)
        return out

    def decode(self, bits: Tensor) -> Tensor:
        """Bits, or in training their soft version in [0, 1], `[n, 12, h, w]` to images `[n, 3, h, w]` in [0, 1]."""
        out: Tensor = self.rec(bits)
        return out.sigmoid()

    def forward(self, x: Tensor, noise: Tensor | float = 0.0) -> Tensor:
        """Images `[n, 3, h, w]` through twelve bits a pixel; no gradient passes them."""
        return self.decode((self.encode(x) > noise).to(x.dtype))


def cut(x: Tensor, side: int) -> Tensor:
    """`[n, c, h, w]` to its patches, row by row, `[n * h/side * w/side, c, side, side]`."""
    n, channels, height, width = x.shape
    grid = x.view(n, channels, height // side, side, width // side, side)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, side, side)


def join(patches: Tensor, n: int) -> Tensor:
    """The inverse of `cut`, for `n` square images."""
    total, channels, side, _ = patches.shape
    rows = round((total // n) ** 0.5)
    grid = patches.view(n, rows, rows, channels, side, side)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(n, channels, rows * side, rows * side)
