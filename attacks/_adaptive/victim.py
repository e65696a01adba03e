"""What an adaptive attack attacks: a source, some images, and who of them is still right."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rdp_bench.attacks._kernels.losses import Loss
from rdp_bench.budgets import LINF, Norm, levels_within_l2
from rdp_bench.errors import RdpBenchError, no_gradient
from rdp_bench.protocols import StochasticLogits, is_random, samples_of

if TYPE_CHECKING:
    from rdp_bench.protocols import Source
    from rdp_bench.rng import ImageRng

JUDGED = 20
"""Draws of a random source on which an image's accuracy is measured (fra31/auto-attack issue 105)."""


class Point(NamedTuple):
    """What one evaluation with a gradient gives."""

    value: Tensor
    """The loss `[n]`, a mean over draws."""
    gradient: Tensor
    """Its gradient, of the images' shape; a mean over draws."""
    broken: Tensor
    """Whether no draw predicted the label, bool `[n]`."""


@dataclass(frozen=True)
class Victim:
    """A source and the images that are attacked on it."""

    source: Source
    x: Tensor
    """Clean images `[n, 3, h, w]` in [0, 1]."""
    y: Tensor
    """Labels int64 `[n]`."""
    eps: float
    """Budget in [0, 1], or an L2 norm."""
    norm: Norm
    noise: ImageRng
    """What the source's defense draws from."""
    own: ImageRng
    """What the attack draws from."""
    draws: int
    """Evaluations of a random source that one value or gradient averages (EOT)."""
    random: bool

    @classmethod
    def of(cls, source: Source, x: Tensor, y: Tensor, eps: float, norm: Norm, rng: ImageRng, draws: int = 1) -> Victim:
        """The victim of one call of an attack; a random source is averaged over at least `draws`."""
        random = is_random(source)
        averaged = max(draws, samples_of(source)) if random else 1
        return cls(source, x, y, eps, norm, rng, rng.fork("attack"), averaged, random)

    def __len__(self) -> int:
        return len(self.x)

    def select(self, which: Tensor) -> Victim:
        """The same with the images at `which` (int64 `[k]` on the CPU) only; their streams go on."""
        at = which.to(self.x.device)
        return replace(self, x=self.x[at], y=self.y[at], noise=self.noise.select(which), own=self.own.select(which))

    @property
    def classes(self) -> int:
        """How many classes the source tells apart."""
        return self.source.members[0].classes

    def logits(self, images: Tensor) -> Tensor:
        """Logits `[n, classes]`, a mean over the source's members; one draw of a random source."""
        outputs = [
            member.stochastic_logits(images, self.noise) if isinstance(member, StochasticLogits) else member(images)
            for member in self.source.members
        ]
        return outputs[0] if len(outputs) == 1 else torch.stack(outputs).mean(0)

    @torch.no_grad()
    def mean_logits(self, images: Tensor, draws: int | None = None) -> Tensor:
        """The mean of `draws` logits (by default, as many as a gradient averages)."""
        count = (draws or self.draws) if self.random else 1
        total = self.logits(images)
        for _ in range(count - 1):
            total = total + self.logits(images)
        return total / count

    @torch.no_grad()
    def accuracy(self, images: Tensor) -> Tensor:
        """The share of draws in which each image is classified as its label, float `[n]`."""
        count = JUDGED if self.random else 1
        right = torch.zeros(len(self), device=self.x.device)
        for _ in range(count):
            right += (self.logits(images).argmax(1) == self.y).float()
        return right / count

    def gradient(self, images: Tensor, loss: Loss) -> Point:
        """The loss at `images` and its gradient; one graph at a time, so that memory does not grow with the draws.

        Raises:
            RdpBenchError: the outputs do not depend on the images, or a number is not finite.
        """
        for draw in range(self.draws):
            leaf = images.detach().requires_grad_()
            with torch.enable_grad():
                logits = self.logits(leaf)
                wrong = logits.detach().argmax(1) != self.y
                # Not a mean over the batch: an image's gradient must not depend on its neighbours.
                each = loss(logits, self.y)
                grad = _backward(each.sum(), leaf, self.source.name)
            if draw == 0:
                value, total, broken = each.detach(), grad, wrong
            else:
                value, total, broken = value + each.detach(), total + grad, broken & wrong
        _refuse_not_finite(self.source.name, loss=value, gradient=total)
        if self.draws > 1:
            value, total = value / self.draws, total / self.draws
        return Point(value, total, broken)

    @torch.no_grad()
    def finished(self, images: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
        """Who of `asked` (bool `[n]`) is misclassified as it will be stored, and who is left; int64 on the CPU.

        Of a random source all of `JUDGED` draws must be wrong; an image is not judged further after one that is right.
        """
        done = asked.nonzero()[:, 0].cpu()
        some = self.select(done)
        stored = some.stored(images[done.to(images.device)]) if len(done) else images[:0]
        for _ in range(JUDGED if self.random else 1):
            if not len(done):
                break
            wrong = (some.logits(stored).argmax(1) != some.y).nonzero()[:, 0]
            done, some, stored = done[wrong.cpu()], some.select(wrong.cpu()), stored[wrong]
        rest = torch.ones(len(self), dtype=torch.bool)
        rest[done] = False
        return done, rest.nonzero()[:, 0]

    def stored(self, images: Tensor) -> Tensor:
        """The images as they are stored, in whole levels of 8 bits, and as many as the budget allows."""
        levels, clean = (images * 255).round().clamp(0, 255), (self.x * 255).round()
        if self.norm == LINF:
            most = int(self.eps * 255 + 1e-3)  # of 2.5 levels, two
            return torch.clamp(levels, clean - most, clean + most) / 255
        changes = (levels - clean).short().cpu().numpy()
        wanted = (images.cpu().double() * 255 - clean.cpu()).numpy()
        within = [levels_within_l2(*pair, self.eps) for pair in zip(changes, wanted, strict=True)]
        return (clean + torch.from_numpy(np.stack(within)).to(clean)) / 255 if within else levels / 255

    def distance(self, images: Tensor) -> Tensor:
        """How far `images` are from the clean ones in the norm of the budget, `[n]`."""
        change = (images - self.x).flatten(1)
        return change.abs().amax(1) if self.norm == LINF else change.norm(dim=1)


Run = Callable[[Victim], Tensor]
"""One run of an attack: images of the victim's shape within its budget, the hardest that it found."""


def hardest(victim: Victim, runs: Iterable[Run]) -> Tensor:
    """The image of lowest accuracy that any of `runs` finds, per image.

    The first run attacks every image, each later one those that some draw still gets right. An image is judged as it
    will be stored, in 8 bits: what rounding puts right again has survived.
    """
    adv, accuracy = victim.x.clone(), victim.accuracy(victim.x)
    untouched = torch.ones(len(victim), dtype=torch.bool, device=adv.device)
    for number, run in enumerate(runs):
        alive = torch.ones_like(untouched) if number == 0 else accuracy > 0
        which = alive.nonzero()[:, 0]
        if not len(which):
            break
        left = victim.select(which.cpu())
        found = run(left)
        got = left.accuracy(left.stored(found))
        take = (got < accuracy[which]) | ((got == accuracy[which]) & untouched[which])
        at = which[take]
        adv[at], accuracy[at], untouched[at] = found[take], got[take], False
    return adv


def _backward(total: Tensor, leaf: Tensor, name: str) -> Tensor:
    if total.requires_grad:
        (grad,) = torch.autograd.grad(total, leaf, allow_unused=True)
        if grad is not None:
            return grad
    raise no_gradient(name)


def _refuse_not_finite(name: str, **parts: Tensor) -> None:
    for what, values in parts.items():
        if not torch.isfinite(torch.stack(values.aminmax())).all():  # NaN passes through both
            raise RdpBenchError(f"source '{name}': the {what} of an attack is NaN or infinite")
