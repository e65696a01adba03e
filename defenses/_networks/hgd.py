"""HGD's denoiser DUNET (Liao et al. 2018): a U-Net that predicts the perturbation's negative."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.nn.utils.fusion import fuse_conv_bn_eval

SIZES = {
    "paper": {"width": 64},
    "compact": {"width": 16},
}

SPACES = {
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Means and standard deviations of the classifiers that the authors' four denoisers stand before."""


class Block(nn.Module):
    """Convolution 3x3 without bias, batch-norm, ReLU: `[n, old, h, w]` to `[n, new, h, w]`, or to half, rounded up."""

    def __init__(self, old: int, new: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(old, new, 3, stride, 1, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(new)
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        out: Tensor = self.bn(self.conv(x))
        return out.relu_()

    def fold(self) -> None:
        """Put the batch-norm into the convolution, for inference."""
        if isinstance(self.bn, nn.BatchNorm2d):
            self.conv, self.bn = fuse_conv_bn_eval(self.conv, self.bn), nn.Identity()


def stage(old: int, new: int, blocks: int, stride: int = 1) -> nn.Sequential:
    """`blocks` blocks, the first of which strides."""
    return nn.Sequential(Block(old, new, stride), *(Block(new, new) for _ in range(blocks - 1)))


class Denoiser(nn.Module):
    """DUNET. 11,033,984 parameters at width 64; of 299 pixels its five scales see 299, 150, 75, 38 and 19.

    It works in the values its classifier is fed with, `space`, and there adds what it predicts to its input.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, width: int = 64, space: Literal["inception", "imagenet"] = "inception") -> None:
        super().__init__()
        self.multiple = 1
        widths = [width, 2 * width, 4 * width, 4 * width, 4 * width]
        self.fwd = nn.ModuleList([stage(3, width, 2), *(stage(old, new, 3, stride=2) for old, new in pairwise(widths))])
        self.back = nn.ModuleList(  # from below, or at the bottom from the encoder, always come `deeper` channels
            stage(own + deeper, own, 2 if i == 0 else 3) for i, (own, deeper) in enumerate(pairwise(widths))
        )
        self.final = nn.Conv2d(width, 3, 1, bias=False)
        for name, values in zip(("mean", "std"), SPACES[space], strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Images `[n, 3, h, w]` in [0, 1] to images of the same size, not clamped."""
        out = (x - self.mean) / self.std
        seen = []
        for down in self.fwd:
            out = down(out)
            seen.append(out)
        for skip, up in zip(reversed(seen[:-1]), reversed(self.back), strict=True):
            # Corners aligned, as in the PyTorch 0.2 that the authors used; later versions default to the opposite.
            out = interpolate(out, size=skip.shape[-2:], mode="bilinear", align_corners=True)
            out = up(torch.cat([out, skip], 1))
        change: Tensor = self.final(out)
        return x + change * self.std
