"""EDSR (Lim et al. 2017), the baseline that doubles the resolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rdp_bench.defenses._networks.blocks import ResidualBlock

SIZES = {
    "paper": {"width": 64, "blocks": 16},
    "compact": {"width": 16, "blocks": 6},
}

MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K


class EDSR(nn.Module):
    """Head, `blocks` residual blocks under a long skip, twice the resolution. 1,369,859 parameters at size paper.

    With the means in and out, which the authors keep as two fixed 1x1 convolutions, 24 more: 1,369,883.
    """

    mean: Tensor

    def __init__(self, width: int = 64, blocks: int = 16) -> None:
        super().__init__()
        self.multiple = 1
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)), nn.Conv2d(width, width, 3, padding=1))
        self.up = nn.Sequential(nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2))
        self.tail = nn.Conv2d(width, 3, 3, padding=1)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Images `[n, 3, h, w]` in [0, 1] to `[n, 3, 2h, 2w]`, not clamped."""
        features: Tensor = self.head((x - self.mean) * 255)  # its weights expect 8-bit levels
        out: Tensor = self.tail(self.up(features + self.body(features)))
        return out / 255 + self.mean
