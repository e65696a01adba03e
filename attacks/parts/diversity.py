"""DI: random resizing and padding of what the source sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rdp_bench.attacks.parts.base import Part

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.attacks.parts.base import Outputs, Run, View
    from rdp_bench.rng import ImageRng


@dataclass(frozen=True)
class Diversity(Part):
    """G = grad J(T(x; p), y), T a random resize and padding (Xie et al. 2019, Eq. 3-4 and Sec. 3.2).

    Drawn anew for each image, gradient and member of the source; the authors draw once per batch.
    """

    id: ClassVar[str] = "diversity"
    order: ClassVar[int] = 60
    off: ClassVar[Any] = 0.0
    aliases: ClassVar = {"p": "diversity_prob", "size": "diversity_size", "back": "resize_back"}

    diversity_prob: float = 0.7
    """p, the probability of the transformation."""
    diversity_size: float = 330 / 299
    """Padded size over image size; the resized image is U{size .. padded - 1}, nearest neighbour."""
    resize_back: bool = False
    """Bring the padded image back to its size (nearest), as the SI-NI code does; else the network sees it larger."""

    def rules(self) -> Mapping[str, bool]:
        """Ranges of the fields."""
        return {
            "diversity_prob is a probability": 0 <= self.diversity_prob <= 1,
            "diversity_size is above 1 and at most 10": 1 < self.diversity_size <= 10,
        }

    def look(self, run: Run, view: View, images: Tensor) -> Outputs:
        """Outputs for the transformed images, in their order."""
        import torch

        from rdp_bench.attacks._kernels.gather import split_batch

        applied, rows, columns = self.sample(images.shape[-1], run.rng)
        # Up to a size of 2 at most two gathered pixels are one: the sum of their gradients has one order everywhere.
        fuse = self.diversity_size <= 2
        if self.resize_back:
            return view.gathered(images, rows, columns, fuse=fuse)
        zoom = rows.shape[1] / images.shape[-1]
        if applied.all():
            return view.gathered(images, rows, columns, zoom, fuse=fuse)
        if not applied.any():
            return view(images)
        # Two sizes cannot share a batch.
        some, rest = (index[:, 0] for index in (applied.nonzero(), (~applied).nonzero()))
        z_some, z_rest = split_batch(images, some.to(images.device), rest.to(images.device))
        parts = [
            view.gathered(z_some, rows[some], columns[some], zoom, some, fuse=fuse),
            view(z_rest, which=rest),
        ]
        back = torch.cat([some, rest]).argsort().to(images.device)
        heads = [aux for _, aux in parts if aux is not None]
        return torch.cat([main for main, _ in parts])[back], torch.cat(heads)[back] if heads else None

    def sample(self, size: int, rng: ImageRng) -> tuple[Tensor, Tensor, Tensor]:
        """One draw of the transformation per image, as arguments of `gather_pixels`.

        A resized image of U{size .. padded - 1} pixels sits at U{0 .. rest - 1} in a padded one, upper ends exclusive
        as in the authors' code.

        Args:
            size: side of the images in pixels.
            rng: one stream per image.

        Returns:
            Whether it is applied, bool `[n]`; source row and source column of each output pixel, int64 `[n, padded]`,
            -1 for padding. With `resize_back` the maps are `[n, size]` and the identity where it is not applied.
        """
        import torch

        padded = round(size * self.diversity_size)
        applied = rng.uniform().cpu() < self.diversity_prob
        resized = rng.integers(size, padded)
        rest = padded - resized
        maps = []
        for offset in (rng.integers(0, rest), rng.integers(0, rest)):
            at = torch.arange(padded) - offset[:, None]
            inside = (at >= 0) & (at < resized[:, None])
            # Nearest neighbour as TF and torch have it: floor(i * in / out).
            maps.append(torch.where(inside, at * size // resized[:, None], -1))
        rows, columns = maps
        if self.resize_back:
            back = torch.arange(size) * padded // size
            same = torch.arange(size).expand(len(rng), size)
            rows = torch.where(applied[:, None], rows[:, back], same)
            columns = torch.where(applied[:, None], columns[:, back], same)
        return applied, rows, columns
