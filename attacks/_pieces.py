"""The loss gradient of a batch, with the networks differentiated for some images at a time.

The graph of a network is the largest part of an attack's memory. What the networks see is made for the whole batch,
because the last bits of resizing may depend on where an image lies in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rdp_bench.attacks.parts.base import Run, View, look_by, loss_of, prediction
from rdp_bench.attacks.parts.diversity import QUIET, Diversity
from rdp_bench.protocols import AuxiliaryLogits, InPieces, StochasticLogits

if TYPE_CHECKING:
    from rdp_bench.attacks.parts.base import Outputs


def size(run: Run, images: Tensor) -> int | None:
    """Images to differentiate at a time; None: all at once, on a GPU or because a part needs them together."""
    members = run.source.members
    if images.device.type != "cpu":
        return None
    if not all(type(part) in QUIET or type(part) is Diversity for part in run.parts):
        return None
    if any(part.auxiliary for part in run.parts) and any(isinstance(member, AuxiliaryLogits) for member in members):
        return None
    if not all(isinstance(member, InPieces) and not isinstance(member, StochasticLogits) for member in members):
        return None
    found = [member.at_once(member.network_input(images.detach()[:1])) for member in members]  # type: ignore[attr-defined]
    if not found or None in found:
        return None
    # The graphs of all members are there at once.
    least = max(1, min(found) // len(members))
    return least if least < len(images) else None


def gradient(run: Run, leaf: Tensor, images: Tensor, at_once: int) -> Tensor:
    """The gradient at `leaf` of the loss of `images`, a function of it; labels that are not known yet are set."""
    seen = [_Seen(run, member, images) for member in run.source.members]
    labels = []
    for low in range(0, len(images), at_once):
        high = min(low + at_once, len(images))
        outputs = [each.outputs(low, high) for each in seen]
        labels.append(prediction(outputs) if run.labels is None else run.labels[low:high])
        leaves = [each for one in seen for each in one.leaves]
        grads = iter(torch.autograd.grad(loss_of(run, outputs, labels[-1]), leaves))
        for one in seen:
            one.keep(grads)
    run.labels = torch.cat(labels)
    inputs = [each for one in seen for each in one.inputs]
    (grad,) = torch.autograd.grad(inputs, leaf, [each for one in seen for each in one.grads])
    return grad


class _Recorder(View):
    """Keeps what a network would see; its outputs are numbers of images instead of logits."""

    def __init__(self, run: Run, member: Any) -> None:
        super().__init__(run, member)
        self.inputs: list[Tensor] = []

    def __call__(self, images: Tensor, zoom: float = 1.0, which: Tensor | None = None) -> Outputs:  # noqa: ARG002
        return self._kept(self.member.network_input(images, zoom))  # type: ignore[attr-defined]

    def gathered(
        self,
        images: Tensor,
        rows: Tensor,
        columns: Tensor,
        zoom: float = 1.0,
        which: Tensor | None = None,
        *,
        fuse: bool = True,
        reach: int | None = None,
    ) -> Outputs:
        if fuse:
            return self._kept(self.member.network_input(images, zoom, rows, columns))  # type: ignore[attr-defined]
        return super().gathered(images, rows, columns, zoom, which, fuse=fuse, reach=reach)

    def _kept(self, seen: Tensor) -> Outputs:
        first = sum(map(len, self.inputs))
        self.inputs.append(seen)
        return torch.arange(first, first + len(seen)), None


class _Seen:
    """What one member of the source sees of a batch: images of one size or of several, and which they are."""

    def __init__(self, run: Run, member: Any, images: Tensor) -> None:
        view = _Recorder(run, member)
        self.member = member
        self.where, _ = look_by(run, view, images)
        self.inputs = view.inputs
        self.grads: list[Any] = [None] * len(self.inputs)
        self.leaves: list[Tensor] = []
        self._rows: list[tuple[int, Tensor]] = []

    def outputs(self, low: int, high: int) -> Outputs:
        """Logits of images `low..high`, differentiable in `leaves`."""
        where, first = self.where[low:high], 0
        self.leaves, self._rows = [], []
        logits, order = [], []
        for number, inputs in enumerate(self.inputs):
            own = ((where >= first) & (where < first + len(inputs))).nonzero()[:, 0]
            if len(own):
                rows = where[own] - first
                leaf = inputs.detach()[rows].requires_grad_()
                self.leaves.append(leaf)
                self._rows.append((number, rows))
                logits.append(self.member.logits_of_input(leaf))
                order.append(own)
            first += len(inputs)
        return torch.cat(logits)[torch.cat(order).argsort()], None

    def keep(self, grads: Any) -> None:
        """Take the gradients of `leaves` from an iterator."""
        for number, rows in self._rows:
            grad: Tensor = next(grads)
            if self.grads[number] is None:
                self.grads[number] = _like(grad, len(self.inputs[number]))
            self.grads[number][rows] = grad


def _like(grad: Tensor, n: int) -> Tensor:
    """An empty tensor of `n` images with the memory layout of `grad`, which decides the order of later sums."""
    last = not grad.is_contiguous() and grad.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty((n, *grad.shape[1:]), dtype=grad.dtype, memory_format=layout)
