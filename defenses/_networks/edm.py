"""A small denoiser that knows its noise level, preconditioned as Karras et al. 2022 (EDM), Sec. 5 and Table 1, do.

The network F inside is a U-Net of residual blocks on 2 x 2 pixels as channels. It has no normalisation, so a value
depends only on its neighbourhood: what is learned on crops holds on whole images, and an image does not depend on its
batch.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from rdp_bench.defenses._networks.score import Denoising

SIZES = {
    "paper": {"widths": [64, 96, 128, 160], "blocks": 2},
    "compact": {"widths": [32, 64, 96, 128], "blocks": 2},
}

SIGMA_DATA = 0.25
"""Standard deviation of pixels of photographs around mid-grey, in [0, 1] units: EDM's .5 for [-1, 1]."""

LOWEST, HIGHEST = 0.002, 0.5
"""Noise levels in [0, 1] units between which F is told its level; below the lowest the output is nearly the input."""

WAVES = 16
"""Cosines and sines, each, that tell F the noise level."""


class Block(nn.Module):
    """x + conv(ReLU(FiLM(conv(x)))): the noise level scales and shifts the hidden channels."""

    def __init__(self, width: int, embedded: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.film = nn.Linear(embedded, 2 * width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.kaiming_normal_(self.conv1.weight, nonlinearity="relu")
        nn.init.kaiming_normal_(self.conv2.weight, nonlinearity="relu")
        with torch.no_grad():
            self.conv2.weight *= 0.1  # a deep stack starts near the identity
            self.film.weight *= 0.1
            for layer in (self.conv1, self.conv2, self.film):
                layer.bias.zero_()  # type: ignore[union-attr]

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """`[n, width, h, w]` and the embedded level `[n, embedded]` to `[n, width, h, w]`."""
        scale, shift = self.film(level)[:, :, None, None].chunk(2, 1)
        hidden = torch.relu(torch.addcmul(shift, self.conv1(x), 1 + scale))
        out: Tensor = self.conv2(hidden)
        return x + out


class Stage(nn.Module):
    """Blocks of one width, one after the other."""

    def __init__(self, width: int, blocks: int, embedded: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, embedded) for _ in range(blocks))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """See `Block`."""
        for block in self.blocks:
            x = block(x, level)
        return x


class UNet(nn.Module):
    """EDM's F. Skips are added, sizes are halved and doubled by convolutions of stride 2, as in DRUNet."""

    def __init__(self, widths: list[int], blocks: int) -> None:
        super().__init__()
        embedded = 64
        self.embed = nn.Sequential(nn.Linear(2 * WAVES, embedded), nn.SiLU(), nn.Linear(embedded, embedded), nn.SiLU())
        self.first = nn.Conv2d(12, widths[0], 3, padding=1)
        self.encode = nn.ModuleList(Stage(width, blocks, embedded) for width in widths)
        self.decode = nn.ModuleList(Stage(width, blocks, embedded) for width in widths[:-1])
        self.down = nn.ModuleList(nn.Conv2d(old, new, 2, 2) for old, new in pairwise(widths))
        self.up = nn.ModuleList(nn.ConvTranspose2d(new, old, 2, 2) for old, new in pairwise(widths))
        self.last = nn.Conv2d(widths[0], 12, 3, padding=1)
        with torch.no_grad():
            self.last.weight *= 0.1

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """`[n, 3, h, w]` of unit variance, the level from 0 to 1 `[n]`, to `[n, 3, h, w]`."""
        angles = math.pi * level[:, None] * torch.arange(WAVES, device=x.device, dtype=x.dtype)
        embedded = self.embed(torch.cat([angles.cos(), angles.sin()], 1))
        out = self.first(nn.functional.pixel_unshuffle(x, 2))
        seen = []
        for stage, down in zip(self.encode, [*self.down, None], strict=True):
            out = stage(out, embedded)
            if down is not None:
                seen.append(out)
                out = down(out)
        for stage, up, skip in zip(reversed(self.decode), reversed(self.up), reversed(seen), strict=True):
            out = stage(up(out) + skip, embedded)
        shuffled: Tensor = nn.functional.pixel_shuffle(self.last(out), 2)
        return shuffled


class Denoiser(Denoising):
    """D(x, sigma): the expected clean image of a noisy one. 1,934,732 parameters at size compact."""

    highest = HIGHEST

    def __init__(self, widths: list[int], blocks: int = 2) -> None:
        super().__init__()
        self.multiple = 2 ** len(widths)
        self.inner = UNet(widths, blocks)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoised images `[n, 3, h, w]`, not clamped; h and w in steps of `multiple`.

        Args:
            x: images with added Gaussian noise, clean ones being in [0, 1]; not clamped.
            sigma: standard deviation of the noise of each image, `[n]`, in the same unit. At 0 the output is `x`.
        """
        shaped = sigma.view(-1, 1, 1, 1)
        skip, out, into = coefficients(shaped)
        level = torch.log(sigma.clamp_min(LOWEST) / LOWEST) / math.log(HIGHEST / LOWEST)
        centred = x - 0.5
        residual: Tensor = self.inner(into * centred, level)
        return 0.5 + skip * centred + out * residual.to(x.dtype)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """See `denoise`."""
        return self.denoise(x, sigma)


def coefficients(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """EDM's c_skip, c_out and c_in (Table 1) at noise level `sigma`."""
    total = (sigma**2 + SIGMA_DATA**2).sqrt()
    return (SIGMA_DATA / total) ** 2, sigma * SIGMA_DATA / total, 1 / total
