"""Fast adaptive boundary attack towards a class: Croce and Hein, ICML 2020, Alg. 1, with the targets of Sec. 3.3."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rdp_bench.attacks._adaptive.victim import Victim
from rdp_bench.attacks._kernels.losses import TINY, towards
from rdp_bench.attacks._kernels.norms import project_l2
from rdp_bench.budgets import LINF, Norm

MOST_ROUNDS = 64
"""Of `to_plane`; each round but the last puts at least one more pixel at its bound."""


@dataclass(frozen=True)
class Constants:
    """The authors' settings."""

    alpha_max: float = 0.1
    """Most weight of the step from the clean image."""
    eta: float = 1.05
    """How far beyond the boundary a step goes."""
    beta: float = 0.9
    """What is left of the change of a misclassified point for the next step."""


def to_plane(x: Tensor, w: Tensor, c: Tensor, norm: Norm) -> Tensor:
    """The smallest change d of each image with w . d = c and x + d in [0, 1]; the nearest there is where none has it.

    Each pixel moves with the sign of c w by min(lambda u, room), with u = 1 (L-infinity) or |w| (L2) and the room up to
    the bound; w . d is then increasing, concave and piecewise linear in lambda. Newton's iteration from below meets c
    after finitely many rounds, without sorting the pixels.

    Args:
        x: images `[n, d]` in [0, 1].
        w: normals of the planes `[n, d]`.
        c: `[n]`.
        norm: of the change.
    """
    sign = torch.sign(w) * torch.where(c < 0, -1.0, 1.0)[:, None]
    room = torch.where(sign > 0, 1 - x, torch.where(sign < 0, x, 0))
    weight, wanted = w.abs(), c.abs()
    slope, farthest = weight if norm == LINF else weight.square(), weight * room
    at_bound, reached = room <= 0, torch.zeros_like(wanted)  # reached: by the pixels at their bounds
    for _ in range(MOST_ROUNDS):
        free = slope.masked_fill(at_bound, 0).sum(1)
        size = torch.where(free > 0, (wanted - reached) / free.clamp(min=1e-30), torch.inf)[:, None]
        before = at_bound
        at_bound = before | (room <= size if norm == LINF else weight * size >= room)
        if torch.equal(at_bound, before):
            break
        reached = farthest.masked_fill(~at_bound, 0).sum(1)
    step = torch.where(at_bound, room, size if norm == LINF else weight * size)
    return sign * torch.where(weight > 0, step, 0)


@torch.no_grad()
def boundary(victim: Victim, begin: Tensor, target: Tensor, steps: int, constants: Constants, *, stop: bool) -> Tensor:
    """The misclassified point nearest to each clean image, moved to the budget where it is beyond it.

    Args:
        victim: what is attacked.
        begin: where the iteration starts, `[n, 3, h, w]` in [0, 1].
        target: the class that each image approaches, int64 `[n]`.
        steps: number of steps.
        constants: of the method.
        stop: leave an image alone once a point within the budget is misclassified as it will be stored.
    """
    out = victim.x.clone()
    nearest, reach = victim.x.clone(), torch.full((len(victim),), torch.inf, device=victim.x.device)
    number = torch.arange(len(victim))
    point = begin
    for _ in range(steps):
        value, gradient, _ = victim.gradient(point, towards(target))
        point = _step(victim, point, value, gradient, constants)
        wrong = victim.mean_logits(point).argmax(1) != victim.y
        away = victim.distance(point)
        closer = wrong & (away < reach)
        nearest = torch.where(closer.view(-1, 1, 1, 1), point, nearest)
        reach = torch.where(closer, away, reach)
        back = victim.x + (point - victim.x) * constants.beta
        point = torch.where(wrong.view(-1, 1, 1, 1), back, point)
        found = closer & (reach <= victim.eps)
        if stop and not victim.random and found.any():
            done, left = victim.finished(nearest, found)
            out[number[done].to(out.device)] = nearest[done.to(out.device)]
            if not len(left):
                return out
            at = left.to(out.device)
            victim, number, point, target = victim.select(left), number[left], point[at], target[at]
            nearest, reach = nearest[at], reach[at]
    out[number.to(out.device)] = _within(victim, nearest)
    return out


def _step(victim: Victim, point: Tensor, value: Tensor, gradient: Tensor, constants: Constants) -> Tensor:
    """A convex combination of steps from the point and from the clean image to the linearised boundary, beyond both."""
    w, at, clean = gradient.flatten(1), point.flatten(1), victim.x.flatten(1)
    ours = to_plane(at, w, -value, victim.norm)
    theirs = to_plane(clean, w, (w * (at - clean)).sum(1) - value, victim.norm)
    far_ours, far_theirs = (_size(each, victim.norm).clamp(min=1e-8) for each in (ours, theirs))
    alpha = (far_ours / (far_ours + far_theirs)).clamp(max=constants.alpha_max)[:, None]
    moved = (at + constants.eta * ours) * (1 - alpha) + (clean + constants.eta * theirs) * alpha
    return moved.clamp(0, 1).view_as(point)


def random_start(victim: Victim) -> Tensor:
    """A random point at half the budget, for restarts."""
    shape = victim.x.shape[1:]
    noise = victim.own.uniform(*shape, low=-1.0, high=1.0) if victim.norm == LINF else victim.own.normal(*shape)
    size = _size(noise.flatten(1), victim.norm).view(-1, 1, 1, 1)
    return (victim.x + 0.5 * victim.eps * noise / (size + TINY)).clamp(0, 1)


def _size(change: Tensor, norm: Norm) -> Tensor:
    return change.abs().amax(1) if norm == LINF else change.norm(dim=1)


def _within(victim: Victim, images: Tensor) -> Tensor:
    """The images, those beyond the budget moved to it towards the clean ones."""
    if victim.norm == LINF:
        far = victim.distance(images).clamp(min=TINY)
        return victim.x + (images - victim.x) * (victim.eps / far).clamp(max=1).view(-1, 1, 1, 1)
    return project_l2(images, victim.x, victim.eps)
