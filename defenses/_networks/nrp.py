"""The purifiers of NRP: ESRGAN's trunk (Wang et al. 2018) without its global skip, and EDVR's blocks (resG)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from rdp_bench.defenses._networks.blocks import ConvShuffle, ResidualBlock, UnshuffleConv, init_near_identity

SIZES = {
    "paper": {"width": 64, "growth": 32, "blocks": 23, "unshuffle": 1},
    "compact": {"width": 32, "growth": 16, "blocks": 2, "unshuffle": 2},
}


class DenseBlock(nn.Module):
    """Five 3x3 convolutions, each fed all before it; a fifth of the last one's output is added to the input."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        for i in range(4):
            self.add_module(f"conv{i + 1}", nn.Conv2d(width + i * growth, growth, 3, padding=1))
        self.conv5 = nn.Conv2d(width + 4 * growth, width, 3, padding=1)
        init_near_identity(self)

    def forward(self, x: Tensor) -> Tensor:
        """`[n, width, h, w]` to the same."""
        seen = x
        for i in range(4):
            seen = torch.cat([seen, leaky_relu(self.get_submodule(f"conv{i + 1}")(seen), 0.2)], 1)
        out: Tensor = self.conv5(seen)
        return x + 0.2 * out


class RRDB(nn.Module):
    """Residual in residual: three dense blocks, a fifth of their output added. 719,424 parameters at 64, growth 32."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.RDB1, self.RDB2, self.RDB3 = (DenseBlock(width, growth) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """`[n, width, h, w]` to the same."""
        out: Tensor = self.RDB3(self.RDB2(self.RDB1(x)))
        return x + 0.2 * out


class RRDBNet(nn.Module):
    """NRP: convolution, `blocks` RRDBs, convolution; linear at both ends."""

    def __init__(self, width: int = 64, growth: int = 32, blocks: int = 23, unshuffle: int = 1) -> None:
        super().__init__()
        self.multiple = unshuffle
        self.conv_first = UnshuffleConv(width, unshuffle)
        self.RRDB_trunk = nn.Sequential(*(RRDB(width, growth) for _ in range(blocks)))
        self.conv_last = ConvShuffle(width, unshuffle)

    def forward(self, x: Tensor) -> Tensor:
        """Images `[n, 3, h, w]` to images of the same size, not clamped."""
        out: Tensor = self.conv_last(self.RRDB_trunk(self.conv_first(x)))
        return out


class ResNetG(nn.Module):
    """NRP_resG: convolution, leaky ReLU .1, `blocks` residual blocks, convolution."""

    def __init__(self, width: int = 64, blocks: int = 23, unshuffle: int = 1) -> None:
        super().__init__()
        self.multiple = unshuffle
        self.conv_first = UnshuffleConv(width, unshuffle)
        self.trunk = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)))
        self.conv_last = ConvShuffle(width, unshuffle)

    def forward(self, x: Tensor) -> Tensor:
        """Images `[n, 3, h, w]` to images of the same size, not clamped."""
        out: Tensor = self.conv_last(self.trunk(leaky_relu(self.conv_first(x), 0.1)))
        return out
