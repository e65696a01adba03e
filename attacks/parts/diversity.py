"""DI: random resizing and padding of what the source sees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, prod
from typing import TYPE_CHECKING, Any, ClassVar

from rdp_bench.attacks.parts.auxiliary import AuxiliaryHead
from rdp_bench.attacks.parts.ball import Ball
from rdp_bench.attacks.parts.base import Part
from rdp_bench.attacks.parts.copies import ScaleCopies
from rdp_bench.attacks.parts.labels import LabelChoice, Targeted
from rdp_bench.attacks.parts.momentum import Momentum
from rdp_bench.attacks.parts.nesterov import Nesterov
from rdp_bench.attacks.parts.random_start import RandomStart
from rdp_bench.attacks.parts.smoothing import Smoothing
from rdp_bench.attacks.parts.steps import Steps
from rdp_bench.errors import UsageError
from rdp_bench.protocols import StochasticLogits, samples_of

if TYPE_CHECKING:
    import torch
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

    def start(self, run: Run, adv: Tensor) -> Tensor:  # noqa: ARG002 - the start stays
        """Refuse images of so few pixels that the padded size is theirs."""
        size = adv.shape[-1]
        if self.padded(size) <= size:
            raise UsageError(
                f"diversity_size={self.diversity_size:.4g} leaves images of {size} pixels as they are; raise it to "
                f"{1 + 1 / size:.4g} or more"
            )
        return adv

    @contextmanager
    def around(self, run: Run) -> Iterator[None]:
        """With all draws of the iteration on the device, so that no step waits for the host."""
        run.tools[self.id] = iter(self._ahead(run))
        yield

    def look(self, run: Run, view: View, images: Tensor) -> Outputs:
        """Outputs for the transformed images, in their order."""
        import torch

        from rdp_bench.attacks._kernels.gather import split_batch

        size = images.shape[-1]
        drawn = next(run.tools.get(self.id, iter(())), None) or self.draw(size, run.rng).to(images.device)
        # Up to a size of 2 at most two gathered pixels are one: the sum of their gradients has one order everywhere.
        fuse, reach = self.diversity_size <= 2, ceil(self.diversity_size)
        if self.resize_back:
            return view.gathered(images, *self.maps(size, drawn), fuse=fuse, reach=reach)
        zoom = self.padded(size) / size
        if drawn.count == len(images):
            return view.gathered(images, *self.maps(size, drawn), zoom, fuse=fuse, reach=reach)
        if not drawn.count:
            return view(images)
        # Two sizes cannot share a batch.
        some, rest = drawn.order[: drawn.count], drawn.order[drawn.count :]
        z_some, z_rest = split_batch(images, some, rest)
        rows, columns = self.maps(size, drawn.of(some))
        parts = [
            view.gathered(z_some, rows, columns, zoom, some, fuse=fuse, reach=reach),
            view(z_rest, which=rest),
        ]
        heads = [aux for _, aux in parts if aux is not None]
        return torch.cat([main for main, _ in parts])[drawn.back], torch.cat(heads)[drawn.back] if heads else None

    def padded(self, size: int) -> int:
        """Side of the padded image in pixels."""
        return round(size * self.diversity_size)

    def draw(self, size: int, rng: ImageRng) -> Drawn:
        """One draw of the transformation per image.

        A resized image of U{size .. padded - 1} pixels sits at U{0 .. rest - 1} in a padded one, upper ends exclusive
        as in the authors' code.

        Args:
            size: side of the images in pixels.
            rng: one stream per image.
        """
        import torch

        padded = self.padded(size)
        applied = rng.on_host().uniform() < self.diversity_prob
        resized = rng.integers(size, padded)
        rest = padded - resized
        top, left = rng.integers(0, rest), rng.integers(0, rest)
        order = torch.cat([applied.nonzero()[:, 0], (~applied).nonzero()[:, 0]])
        facts = torch.stack([applied.long(), resized, top, left, order, order.argsort()])
        return Drawn(int(applied.sum()), facts)

    def maps(self, size: int, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """Source row and source column of each output pixel of `drawn`, as arguments of `gather_pixels`.

        Returns:
            Two int64 `[n, padded]`, -1 for padding. With `resize_back` they are `[n, size]`, and the identity where the
            transformation is not applied.
        """
        import torch

        padded, device = self.padded(size), drawn.facts.device
        applied, resized, top, left = (fact[:, None] for fact in drawn.facts[:4])
        maps = []
        for offset in (top, left):
            at = torch.arange(padded, device=device) - offset
            outside = (at < 0) | (at >= resized)
            # Nearest neighbour as TF and torch have it: floor(i * in / out). `where` would copy its -1 to the device.
            maps.append((at * size // resized).masked_fill_(outside, -1))
        rows, columns = maps
        if self.resize_back:
            same = torch.arange(size, device=device)
            back = same * padded // size
            rows = torch.where(applied > 0, rows[:, back], same)
            columns = torch.where(applied > 0, columns[:, back], same)
        return rows, columns

    def sample(self, size: int, rng: ImageRng) -> tuple[Tensor, Tensor, Tensor]:
        """Whether a draw is applied, bool `[n]`, and its `maps`."""
        drawn = self.draw(size, rng)
        return drawn.facts[0] > 0, *self.maps(size, drawn)

    def _ahead(self, run: Run) -> Sequence[Drawn]:
        """All draws that the iteration will make, in their order; none if others draw from the same streams between."""
        import torch

        alone = all(type(part) in QUIET or type(part) is Diversity for part in run.parts)
        if not alone or isinstance(run.eps, torch.Tensor):
            return ()
        if any(isinstance(member, StochasticLogits) for member in run.source.members):
            return ()
        ball, steps = run.part(Ball) or Ball(), run.part(Steps) or Steps()
        count = steps.count(run.eps * ball.unit) * prod(part.evaluations for part in run.parts)
        count *= samples_of(run.source) * len(run.source.members)
        if count > MOST_AHEAD:
            return ()
        drawn = [self.draw(run.x.shape[-1], run.rng) for _ in range(count)]
        facts = torch.stack([each.facts for each in drawn])
        if run.x.device.type == "cuda":
            facts = facts.pin_memory()
        on_device = facts.to(run.x.device, non_blocking=True)
        return [Drawn(each.count, fact) for each, fact in zip(drawn, on_device, strict=True)]


MOST_AHEAD = 10_000
"""Draws that are made before the first step: 100 KB per image."""

QUIET = (Steps, Ball, RandomStart, LabelChoice, Targeted, Momentum, Nesterov, ScaleCopies, Smoothing, AuxiliaryHead)
"""Parts that draw nothing between the first step and the last."""


@dataclass(frozen=True)
class Drawn:
    """A draw of the transformation for each image of a batch.

    Attributes:
        count: images that are transformed, known to the host, because they share a batch of their own.
        facts: int64 `[6, n]`: applied; size after resizing; top and left padding; the images in the order
            of `split_batch`, transformed ones first; the way back to their own order.
    """

    count: int
    facts: Tensor

    @property
    def order(self) -> Tensor:
        """Images, transformed ones first."""
        return self.facts[4]

    @property
    def back(self) -> Tensor:
        """Place of each image in `order`."""
        return self.facts[5]

    def to(self, device: torch.device) -> Drawn:
        """The draw on `device`."""
        return Drawn(self.count, self.facts.to(device))

    def of(self, some: Tensor) -> Drawn:
        """The draw of the images `some`."""
        return Drawn(self.count, self.facts.index_select(1, some))
