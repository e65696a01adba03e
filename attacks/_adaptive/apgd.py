"""Auto-PGD: Croce and Hein, "Reliable evaluation of adversarial robustness", ICML 2020, Alg. 1."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from rdp_bench.attacks._adaptive.victim import Point, Victim
from rdp_bench.attacks._kernels.losses import TINY, Loss, targeted_dlr
from rdp_bench.budgets import LINF

MOMENTUM = 0.75
"""Weight of the new step; the rest is of the last move."""

RISING = 0.75
"""The step is halved where at most this share of a period's steps raised the loss."""


def checkpoints(steps: int) -> list[int]:
    """The steps after which step sizes are reviewed.

    Periods start at 22 % of the steps and get 3 % shorter each, down to 6 %.

    >>> checkpoints(100)
    [22, 41, 57, 70, 80, 87, 93, 99]
    """
    period, shorter, least = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    found, at = [], period
    while at <= steps:
        found.append(at)
        period = max(period - shorter, least)
        at += period
    return found


def start(victim: Victim) -> Tensor:
    """A random point of the budget's border: of each image's noise the largest entry, or the norm, is eps."""
    shape = victim.x.shape[1:]
    if victim.norm == LINF:
        noise = victim.own.uniform(*shape, low=-1.0, high=1.0)
        size = noise.abs().amax((1, 2, 3), keepdim=True)
    else:
        noise = victim.own.normal(*shape)
        size = _norm(noise)
    return (victim.x + victim.eps * noise / (size + TINY)).clamp_(0, 1)


@dataclass
class _State:
    """What every image carries from step to step; all with the images on the first axis."""

    number: Tensor
    """Index of the image in the batch that the run began with, int64 on the CPU."""
    adv: Tensor
    previous: Tensor
    gradient: Tensor
    best: Tensor
    """The point of the highest loss."""
    best_gradient: Tensor
    best_loss: Tensor
    fooled: Tensor
    """The last point that was misclassified."""
    wrong: Tensor
    """Whether there was one."""
    step: Tensor
    """Step size `[n, 1, 1, 1]`, in the unit of eps."""
    last_loss: Tensor
    rises: Tensor
    """Steps of this period that raised the loss."""
    reviewed_loss: Tensor
    """`best_loss` at the last review."""
    halved: Tensor
    """Whether the last review halved the step."""
    low: Tensor
    """Smallest values within the budget under L-infinity, of the images' shape."""
    high: Tensor
    """The largest."""

    def select(self, which: Tensor) -> None:
        """Keep the images at `which` only."""
        for each in fields(self):
            held: Tensor = getattr(self, each.name)
            setattr(self, each.name, held[which.to(held.device)])


@torch.no_grad()
def ascend(victim: Victim, begin: Tensor, loss: Loss | Tensor, steps: int, *, stop: bool = False) -> Tensor:
    """The last misclassified point of each image, or the one of the highest loss where there is none.

    Args:
        victim: what is attacked. Where it is random, a point is misclassified only if no draw is right, and images
            that `stop` has not left alone end at the point of the highest mean loss.
        begin: where the iteration starts, `[n, 3, h, w]` in [0, 1].
        loss: what is ascended; or for `targeted_dlr`, the target class of each image, int64 `[n]`.
        steps: number of steps; one gradient more is evaluated.
        stop: leave an image alone once it is misclassified as it will be stored.
    """
    out = begin.clone()
    state = _begin(victim, begin, victim.gradient(begin, _loss(loss)))
    reviews, period_start = checkpoints(steps), 0
    for number in range(1, steps + 1):
        if stop:
            victim, left = _drop_fooled(victim, state, out)
            if not len(victim):
                return out
            loss = loss[left.to(loss.device)] if isinstance(loss, Tensor) else loss
        moved = _move(victim, state, MOMENTUM if number > 1 else 1.0)
        state.previous, state.adv = state.adv, moved
        _note(state, victim.gradient(moved, _loss(loss)))
        if number in reviews:
            _review(state, number - period_start)
            period_start = number
    out[state.number.to(out.device)] = _result(victim, state)
    return out


def _loss(given: Loss | Tensor) -> Loss:
    return targeted_dlr(given) if isinstance(given, Tensor) else given


def _begin(victim: Victim, begin: Tensor, point: Point) -> _State:
    n = len(victim)
    return _State(
        number=torch.arange(n), adv=begin.clone(), previous=begin.clone(),
        gradient=point.gradient, best=begin.clone(),
        best_gradient=point.gradient.clone(), best_loss=point.value.clone(),
        fooled=begin.clone(), wrong=point.broken.clone(),
        step=torch.full((n, 1, 1, 1), 2 * victim.eps, device=begin.device),
        # The authors compare the first step's loss with an empty row of their history.
        last_loss=torch.zeros_like(point.value), rises=torch.zeros(n, device=begin.device),
        reviewed_loss=point.value.clone(), halved=torch.ones(n, dtype=torch.bool, device=begin.device),
        low=(victim.x - victim.eps).clamp_(0, 1), high=(victim.x + victim.eps).clamp_(0, 1),
    )  # fmt: skip


def _move(victim: Victim, state: _State, weight: float) -> Tensor:
    """One step: z = P(x_t + eta g); x_{t+1} = P(x_t + a (z - x_t) + (1 - a)(x_t - x_{t-1})).

    Sums are in the order of the authors' code, so that equal starts give equal bits: a sign amplifies any difference.
    """
    adv = state.adv
    if victim.norm == LINF:
        # Not `sign_`: the gradient may be a view of one number, or belong to a user's code.
        z = state.gradient.sign().mul_(state.step).add_(adv)
        moved = torch.clamp(z, state.low, state.high, out=z).sub_(adv).mul_(weight).add_(adv)
        back = state.previous.sub_(adv).mul_(1 - weight)  # in the memory of what nobody reads again
        return torch.clamp(moved.sub_(back), state.low, state.high, out=moved)
    x, eps = victim.x, victim.eps
    z = _into_ball(adv + state.step * _unit(state.gradient), x, eps)
    return _into_ball(adv + (z - adv) * weight + (adv - state.previous) * (1 - weight), x, eps)


def _into_ball(images: Tensor, x: Tensor, eps: float) -> Tensor:
    change = images - x
    return (x + _unit(change) * _norm(change).clamp(max=eps)).clamp_(0, 1)


def _unit(images: Tensor) -> Tensor:
    return images / (_norm(images) + TINY)


def _norm(images: Tensor) -> Tensor:
    """L2 norms `[n, 1, 1, 1]`."""
    return images.square().flatten(1).sum(1).sqrt().view(-1, 1, 1, 1)


def _note(state: _State, point: Point) -> None:
    """Take in the loss, gradient and prediction at the new point."""
    state.gradient = point.gradient
    _put(state.fooled, point.broken, state.adv)
    state.wrong |= point.broken
    better = point.value > state.best_loss
    _put(state.best, better, state.adv)
    _put(state.best_gradient, better, point.gradient)
    state.best_loss = torch.where(better, point.value, state.best_loss)
    state.rises += point.value > state.last_loss
    state.last_loss = point.value


def _review(state: _State, period: int) -> None:
    """Halve steps that oscillate or that gained nothing, and go back to the best point with them."""
    stuck = ~state.halved & (state.reviewed_loss >= state.best_loss)
    state.halved = (state.rises <= RISING * period) | stuck
    state.reviewed_loss = state.best_loss
    state.step = torch.where(state.halved.view(-1, 1, 1, 1), state.step / 2, state.step)
    state.gradient = state.gradient.clone()
    _put(state.adv, state.halved, state.best)
    _put(state.gradient, state.halved, state.best_gradient)
    state.rises = torch.zeros_like(state.rises)


def _put(into: Tensor, where: Tensor, new: Tensor) -> None:
    """Write the images of `new` at `where` (bool `[n]`) into `into`."""
    which = where.nonzero()[:, 0]
    if len(which) == len(into):
        into.copy_(new)
    elif len(which):
        into.index_copy_(0, which, new.index_select(0, which))


def _result(victim: Victim, state: _State) -> Tensor:
    if victim.random:
        return state.best
    return torch.where(state.wrong.view(-1, 1, 1, 1), state.fooled, state.best)


def _drop_fooled(victim: Victim, state: _State, out: Tensor) -> tuple[Victim, Tensor]:
    """Move images that stay misclassified when they are stored from `state` to `out`; returns who is left."""
    done, left = victim.finished(state.fooled, state.wrong)
    if len(done):
        out[state.number[done].to(out.device)] = state.fooled[done.to(out.device)]
        state.select(left)
        victim = victim.select(left)
    # Those that rounding puts right again are asked once more when another point of theirs is misclassified.
    state.wrong = torch.zeros_like(state.wrong)
    return victim, left
