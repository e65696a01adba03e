"""The hourglass of deep image prior (Ulyanov et al. 2018, supplement): a U-Net that maps fixed noise to one image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate


def stage(old: int, new: int, side: int, stride: int = 1) -> nn.Sequential:
    """Convolution over mirrored borders, batch norm, leaky ReLU .2."""
    padding = side // 2
    return nn.Sequential(
        nn.Conv2d(old, new, side, stride, padding, padding_mode="reflect"), nn.BatchNorm2d(new), nn.LeakyReLU(0.2)
    )


class Level(nn.Module):
    """One size and, inside it, all smaller ones."""

    def __init__(self, old: int, width: int, skip: int, inner: Level | None) -> None:
        super().__init__()
        self.inner = inner
        self.side = stage(old, skip, 1)
        self.down = nn.Sequential(stage(old, width, 3, 2), stage(width, width, 3))
        self.up = nn.Sequential(nn.BatchNorm2d(width + skip), stage(width + skip, width, 3), stage(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """`[n, old, h, w]` to `[n, width, h, w]`."""
        deep = self.down(x)
        if self.inner is not None:
            deep = self.inner(deep)
        deep = interpolate(deep, size=x.shape[-2:], mode="bilinear", align_corners=False)
        out: Tensor = self.up(torch.cat([deep, self.side(x)], 1))
        return out


class Hourglass(nn.Module):
    """Noise `[1, old, h, w]` to an image `[1, 3, h, w]` in [0, 1]."""

    def __init__(self, old: int = 32, width: int = 128, levels: int = 5, skip: int = 4) -> None:
        super().__init__()
        level: Level | None = None
        for number in reversed(range(levels)):
            level = Level(width if number else old, width, skip, level)
        self.levels = level or nn.Identity()
        self.last = nn.Conv2d(width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        out: Tensor = self.last(self.levels(x))
        return out.sigmoid()
