"""The four networks of RDP: purifier P, reconstructor R, discriminator D; the feature extractor F is any classifier.

The paper names the blocks (EDVR's) and says that the global skip is gone; widths and depths are open. Size
"paper" is the one at which its batch of 16 crops a GPU fits: 64 channels, 8 + 8 blocks, full resolution.
Size "compact" works on 2x2 pixels as channels, a quarter of the positions.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from rdp_bench.defenses._networks.blocks import ConvShuffle, ResidualBlock, UnshuffleConv

SIZES = {
    "paper": {"width": 64, "blocks": 8, "unshuffle": 1},
    "compact": {"width": 32, "blocks": 4, "unshuffle": 2},
}


class Encoder(nn.Sequential):
    """`[n, 3, h, w]` to the latent `[n, width, h/u, w/u]`: convolution, leaky ReLU .1, `blocks` residual blocks."""

    def __init__(self, width: int, blocks: int, unshuffle: int) -> None:
        super().__init__(
            UnshuffleConv(width, unshuffle), nn.LeakyReLU(0.1), *(ResidualBlock(width) for _ in range(blocks))
        )


class Purifier(nn.Module):
    """P: encoder to the natural latent V, decoder to the purified image. 1,185,219 parameters at size paper."""

    def __init__(self, width: int = 64, blocks: int = 8, unshuffle: int = 1) -> None:
        super().__init__()
        self.multiple = unshuffle
        self.encoder = Encoder(width, blocks, unshuffle)
        self.decoder = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)), ConvShuffle(width, unshuffle))

    def forward(self, x: Tensor) -> Tensor:
        """Images `[n, 3, h, w]` to images of the same size, not clamped."""
        out: Tensor = self.decoder(self.encoder(x))
        return out


class Reconstructor(nn.Module):
    """R: rebuilds the adversarial image from P's latent V and its own latent U. 1,193,475 parameters at size paper."""

    def __init__(self, width: int = 64, blocks: int = 8, unshuffle: int = 1) -> None:
        super().__init__()
        self.encoder = Encoder(width, blocks, unshuffle)
        self.join = nn.Conv2d(2 * width, width, 1)
        self.decoder = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)), ConvShuffle(width, unshuffle))

    def forward(self, x: Tensor, natural: Tensor) -> Tensor:
        """Image of `x` `[n, 3, h, w]` and the natural latent V `[n, width, h/u, w/u]`, not clamped."""
        return self.decode(natural, self.encoder(x))

    def decode(self, natural: Tensor, own: Tensor) -> Tensor:
        """Image from the latents V and U; Figure 7d puts noise in V's place."""
        out: Tensor = self.decoder(self.join(torch.cat([natural, own], 1)))
        return out


class Reconstruction(nn.Module):
    """P's encoder with R: the part of a training that rebuilds adversarial images."""

    def __init__(self, width: int = 64, blocks: int = 8, unshuffle: int = 1) -> None:
        super().__init__()
        self.multiple = unshuffle
        self.encoder = Encoder(width, blocks, unshuffle)
        self.reconstructor = Reconstructor(width, blocks, unshuffle)

    def forward(self, x: Tensor, normal: Callable[..., Tensor] | None = None) -> Tensor:
        """R(x, V) for `x` `[n, 3, h, w]`, not clamped.

        `normal(*shape)` draws N(0, 1) `[n, *shape]`: with V's mean and deviation a channel it takes V's place.
        """
        natural: Tensor = self.encoder(x)
        if normal is not None:
            spread, middle = torch.std_mean(natural, (2, 3), keepdim=True)
            natural = middle + spread * normal(*natural.shape[1:])
        out: Tensor = self.reconstructor(x, natural)
        return out


class Discriminator(nn.Module):
    """D: five 4x4 convolutions of stride 2 and one linear layer, after VGG. 6,960,961 parameters at size paper."""

    def __init__(self, width: int = 64, crop: int = 128) -> None:
        super().__init__()
        widths = [3, width, 2 * width, 4 * width, 8 * width, 8 * width]
        layers: list[nn.Module] = []
        for i, (old, new) in enumerate(pairwise(widths)):
            layers.append(nn.Conv2d(old, new, 4, stride=2, padding=1, bias=i == 0))
            if i:
                layers.append(nn.BatchNorm2d(new))
            layers.append(nn.LeakyReLU(0.2))
        self.features = nn.Sequential(*layers)
        self.score = nn.Linear(8 * width * (crop // 32) ** 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scores `[n, 1]` of images `[n, 3, crop, crop]`: how natural, before the sigmoid."""
        out: Tensor = self.score(self.features(x).flatten(1))
        return out
