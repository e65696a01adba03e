"""The exact gradient through a chain of steps, with the memory of one step.

Autograd keeps what every step computed; twenty steps of a diffusion network fill a large GPU. Here the forward pass
keeps the states between the steps, and the backward pass computes one step at a time again (Chen et al. 2016, "Training
deep nets with sublinear memory cost").
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rdp_bench.rng import ImageRng

States = tuple[Tensor, ...]

Step = Callable[[int, States, States], States]
"""Number of the step, states, shared tensors -> states. Called again with the same arguments, it returns the same."""


def chain(step: Step, count: int, states: Sequence[Tensor], shared: Sequence[Tensor] = ()) -> States:
    """The states after `count` steps, differentiable once with respect to `states` and `shared`.

    Args:
        step: one step. What it computes from other tensors that need a gradient is treated as constant.
        count: the number of steps.
        states: float tensors that a step maps to tensors of the same shapes.
        shared: tensors that every step sees, such as a guide.
    """
    states, shared = tuple(states), tuple(shared)
    if not needs_gradient(*states, *shared):
        for i in range(count):
            states = step(i, states, shared)
        return states
    found: States = _Chain.apply(step, count, len(states), *states, *shared)
    return found


def needs_gradient(*tensors: Tensor) -> bool:
    """Whether autograd will ask for the gradient of any of the tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


class Noise:
    """The noise of each step from the images' streams: drawn in order, and kept if the steps are to be repeated.

    The streams themselves advance, so that the next call of a purifier draws new noise (EOT).
    """

    def __init__(self, rng: ImageRng, like: Tensor, *, keep: bool) -> None:
        self._rng, self._like, self._keep = rng, like, keep
        self._drawn: dict[Hashable, Tensor] = {}

    def __call__(self, what: Hashable) -> Tensor:
        """N(0, 1) of the shape and type of `like` for step `what`."""
        if what in self._drawn:
            return self._drawn[what]
        drawn = self._rng.normal(*self._like.shape[1:]).to(self._like)
        if self._keep:
            self._drawn[what] = drawn
        return drawn


class _Chain(torch.autograd.Function):
    """See `chain`."""

    @staticmethod
    def forward(ctx: Any, step: Step, count: int, split: int, *tensors: Tensor) -> States:
        states, shared = tensors[:split], tensors[split:]
        ctx.step, ctx.split, ctx.between = step, split, []
        ctx.save_for_backward(*tensors)
        for i in range(count):
            if i:
                ctx.between.append(states)
            states = step(i, states, shared)
        ctx.count = count
        # An input that is returned as it came would confuse autograd.
        return tuple(state.clone() if count == 0 else state for state in states)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph; a node that fails later is left out of a gradient without a word
            raise RuntimeError("the gradient of a purifier of many steps cannot be differentiated again (create_graph)")
        saved: States = ctx.saved_tensors
        shared = tuple(tensor.detach().requires_grad_() for tensor in saved[ctx.split :])
        totals: list[Tensor | None] = [None] * len(shared)
        for i in reversed(range(ctx.count)):
            before = ctx.between[i - 1] if i else saved[: ctx.split]
            leaves = tuple(state.detach().requires_grad_() for state in before)
            with torch.enable_grad():
                after = ctx.step(i, leaves, shared)
                # A state may be a constant, such as which images have stopped.
                used = [(state, grad) for state, grad in zip(after, grads, strict=True) if state.requires_grad]
                found = torch.autograd.grad(
                    [state for state, _ in used], (*leaves, *shared), [grad for _, grad in used], allow_unused=True
                )
            grads = tuple(
                torch.zeros_like(leaf) if grad is None else grad
                for leaf, grad in zip(leaves, found[: ctx.split], strict=True)
            )
            for j, grad in enumerate(found[ctx.split :]):
                if grad is not None:
                    earlier = totals[j]
                    totals[j] = grad if earlier is None else earlier + grad
        return (None, None, None, *grads, *totals)
