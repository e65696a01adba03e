"""Blocks that the learned purifiers share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """x + conv(ReLU(conv(x))), 3x3, no normalisation: EDVR's basic block (Wang et al. 2019), 73,856 at 64 channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        init_near_identity(self)

    def forward(self, x: Tensor) -> Tensor:
        """`[n, width, h, w]` to the same."""
        out: Tensor = self.conv2(torch.relu(self.conv1(x)))
        return x + out


class UnshuffleConv(nn.Sequential):
    """Image `[n, 3, h, w]` to features `[n, width, h/u, w/u]`: pixels to channels, then a 3x3 convolution.

    The first 3 u^2 features start as the pixels themselves, so that a purifier without a global skip starts
    near the identity and need not learn it first.
    """

    def __init__(self, width: int, unshuffle: int) -> None:
        conv = nn.Conv2d(3 * unshuffle**2, width, 3, padding=1)
        super().__init__(nn.PixelUnshuffle(unshuffle), conv)
        _no_bias(conv)
        with torch.no_grad():
            conv.weight[: 3 * unshuffle**2] = 0
            nn.init.dirac_(conv.weight[: 3 * unshuffle**2])


class ConvShuffle(nn.Sequential):
    """Features `[n, width, h/u, w/u]` to an image `[n, 3, h, w]`: a 3x3 convolution, then channels to pixels."""

    def __init__(self, width: int, unshuffle: int) -> None:
        conv = nn.Conv2d(width, 3 * unshuffle**2, 3, padding=1)
        super().__init__(conv, nn.PixelShuffle(unshuffle))
        _no_bias(conv)
        with torch.no_grad():
            conv.weight *= 0.1
            nn.init.dirac_(conv.weight[:, : 3 * unshuffle**2])


def init_near_identity(module: nn.Module, gain: float = 0.1) -> None:
    """Kaiming weights times `gain`, zero biases: a deep stack of residual blocks starts near the identity."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            with torch.no_grad():
                layer.weight *= gain
            _no_bias(layer)


def _no_bias(layer: nn.Conv2d) -> None:
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
