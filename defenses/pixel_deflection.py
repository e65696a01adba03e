"""Pixel deflection: Prakash et al., "Deflecting Adversarial Attacks with Pixel Deflection", CVPR 2018."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rdp_bench.protocols import Purifier
from rdp_bench.registry import defense

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.rng import ImageRng


@defense("pixel-deflection", source="Prakash et al. 2018; iamaaditya/pixel-deflection")
@dataclass(frozen=True)
class PixelDeflection(Purifier):
    """Copies 200 values from random neighbours, then shrinks wavelets, sigma .04.

    The paper spares places where a class activation map is high. A defense here sees no classifier, so all
    places are alike (with a map, places differ but the count does not: what is spared is drawn anew).
    """

    has_smooth: ClassVar[bool] = True

    deflections: int = 200  # as in methods.py, a value of one colour counts, in rounds of R, G, B
    window: int = 10  # the farthest row and column a value comes from
    sigma: float = 0.04  # of the wavelet step; 0: no wavelet step

    def __post_init__(self) -> None:
        """Reject negative numbers and a window without neighbours."""
        if not 0 <= self.deflections <= 10_000_000:
            raise ValueError(f"deflections is 0 to 10000000, found {self.deflections}")
        if not 1 <= self.window <= 10_000:
            raise ValueError(f"window is 1 to 10000, found {self.window}")
        if self.sigma < 0:
            raise ValueError(f"sigma is at least 0, found {self.sigma}")

    @property
    def random(self) -> bool:
        """Whether values are copied."""
        return self.deflections > 0

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        """The deflected and denoised images, of the shape of `x` `[n, 3, h, w]`."""
        return self.smooth(x.detach(), rng)

    def smooth(self, x: Tensor, rng: ImageRng) -> Tensor:
        """As `purify`, all of which is differentiable."""
        import torch

        from rdp_bench.defenses._wavelet import denoised

        out = x.clone(memory_format=torch.contiguous_format)
        size = out[0].numel()
        pairs = [
            (i * size + target, i * size + origin)
            for i, moved in enumerate(self.copies(x, rng))
            for target, origin in moved.items()
        ]
        if pairs:
            targets, origins = torch.tensor(pairs).T.to(x.device)
            flat = out.view(-1)
            flat[targets] = flat[origins]
        return denoised(out, self.sigma) if self.sigma else out

    def copies(self, x: Tensor, rng: ImageRng) -> list[dict[int, int]]:
        """For each image, the flat index of each replaced value and of the value of `x` that replaces it.

        Deflections follow one another, and a later one may copy what an earlier one wrote: that chain is
        followed here, so that all values can be moved at once.
        """
        import torch

        channels, height, width = x.shape[1:]
        rounds = -(-self.deflections // channels)
        unit = rng.uniform(rounds, channels, 4).double().cpu()
        row, column = (unit[..., 0] * height).long(), (unit[..., 1] * width).long()

        def other(own: Tensor, size: int, chance: Tensor) -> Tensor:
            """Uniform over the part of the window inside the image, as if redrawn until inside."""
            # The authors' code leaves out row 0 and column 0 (it asks for > 0); here they are like the others.
            low, high = (own - self.window).clamp(min=0), (own + self.window).clamp(max=size - 1)
            return (low + (chance * (high - low + 1)).long()).clamp(max=high)

        source_row, source_column = other(row, height, unit[..., 2]), other(column, width, unit[..., 3])
        base = torch.arange(channels) * height * width
        to, source = base + row * width + column, base + source_row * width + source_column
        result: list[dict[int, int]] = []
        for targets, sources in zip(to.flatten(1).tolist(), source.flatten(1).tolist(), strict=True):
            moved: dict[int, int] = {}
            for target, origin in zip(targets, sources, strict=True):
                moved[target] = moved.get(origin, origin)
            result.append(moved)
        return result
