"""The iteration of gradient-sign attacks, as the papers write it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rdp_bench.attacks import _pieces
from rdp_bench.attacks.parts.ball import Ball
from rdp_bench.attacks.parts.base import Part, Run, find, identity, look, loss_of, prediction
from rdp_bench.attacks.parts.steps import Steps
from rdp_bench.errors import no_gradient
from rdp_bench.protocols import samples_of
from rdp_bench.rng import ImageRng

if TYPE_CHECKING:
    from rdp_bench.attacks.parts.base import Mates, Transform
    from rdp_bench.protocols import Classifier, Source


def craft(
    parts: Sequence[Part],
    source: Source,
    x: Tensor,
    y: Tensor,
    eps: float,
    rng: ImageRng,
    mates: Mates | None = None,
) -> Tensor:
    """Adversarial images within `eps` of `x` and in [0, 1].

    Args:
        parts: of the attack, in their order.
        source: what is attacked.
        x: clean images `[n, 3, h, w]` in [0, 1].
        y: labels int64 `[n]`; for an attack that approaches the data set's targets, those.
        eps: budget in [0, 1], or an L2 norm.
        rng: one stream per image.
        mates: draws other images of the data set; None: parts that need them take those of `x`.
    """
    ball, steps = find(parts, Ball) or Ball(), find(parts, Steps) or Steps()
    written = eps * ball.unit
    run = begin(parts, source, x, y, eps, steps.size(written) / ball.unit, rng)
    run.mates = mates
    adv = x.clone()
    for part in parts:
        adv = part.start(run, adv)
    for part in parts:
        run.labels = part.goal(run, run.labels)
    step = ball.stepper(run)
    for part in reversed(parts):
        step = partial(part.step, run, step)
    with ExitStack() as stack:
        for part in parts:
            stack.enter_context(part.around(run))
        return ascend(run, adv, step, steps.count(written))


def begin(
    parts: Sequence[Part],
    source: Source,
    x: Tensor,
    labels: Tensor | None,
    eps: float | Tensor,
    alpha: float | Tensor,
    rng: ImageRng | None = None,
) -> Run:
    """A run before its first step; `rng` may be left out where no part is random."""
    streams = ImageRng([""] * len(x), x.device) if rng is None else rng
    return Run(parts, source, x, eps, alpha, streams, labels, torch.zeros_like(x), x)


def ascend(run: Run, adv: Tensor, step: Callable[[Tensor, Tensor], Tensor], count: int) -> Tensor:
    """`adv` after `count` times `step`, which may write into it, along the gradient that the parts of `run` make."""
    gradient = partial(loss_gradient, run)
    for part in reversed(run.parts):
        gradient = partial(part.gradient, run, gradient)
    for _ in range(count):
        run.point = adv
        run.g = gradient(adv)
        adv = step(adv, run.g)
    return adv


def loss_gradient(run: Run, at: Tensor) -> Tensor:
    """Sum over copies, and over draws of the source's defense (EOT), of the loss gradient at `at`."""
    total: Tensor | None = None
    for transform in [each for each in _copies(run) for _ in range(samples_of(run.source))]:
        leaf = at.detach().requires_grad_()
        images = transform(leaf)
        if (size := _pieces.size(run, images)) is not None:
            grad = _pieces.gradient(run, leaf, images, size)
            total = grad if total is None else total + grad
            continue
        outputs = [look(run, member, images) for member in run.source.members]
        if run.labels is None:
            run.labels = prediction(outputs)
        loss = loss_of(run, outputs, run.labels)
        if not loss.requires_grad:
            raise no_gradient(run.source.name)
        (grad,) = torch.autograd.grad(loss, leaf)
        # Not in place: the gradient of a mean or sum is one number seen many times.
        total = grad if total is None else total + grad
    assert total is not None
    return total


def _copies(run: Run) -> list[Transform]:
    found: list[Transform] = [identity]
    for part in run.parts:
        found = [_then(first, second) for first in found for second in part.copies(run)]
    return found


def _then(first: Transform, second: Transform) -> Transform:
    return second if first is identity else first if second is identity else lambda images: second(first(images))


class Function:
    """A function from images to logits `[n, classes]` as a source of one member, itself."""

    name = "function"

    def __init__(self, logits: Callable[[Tensor], Tensor]) -> None:
        self.logits = logits
        self.members: Sequence[Classifier] = (self,)

    @property
    def classes(self) -> int:
        """Unknown: for attacks that draw no class."""
        raise NotImplementedError

    def __call__(self, x: Tensor, zoom: float = 1.0) -> Tensor:  # noqa: ARG002
        """Logits of `x`."""
        return self.logits(x)

    def record(self) -> dict[str, Any]:
        """Nothing: what it crafts is stored by none."""
        return {}
