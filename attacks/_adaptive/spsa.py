"""SPSA: Uesato et al., "Adversarial Risk and the Dangers of Evaluating Against Weak Attacks", ICML 2018, Alg. 1."""

from __future__ import annotations

import torch
from torch import Tensor

from rdp_bench.attacks._adaptive.victim import Victim
from rdp_bench.attacks._kernels.losses import margin

BETAS = (0.9, 0.999)
"""Of Adam (Kingma and Ba 2015), which turns estimates into steps."""


@torch.no_grad()
def descend(victim: Victim, steps: int, samples: int, delta: float, step: float) -> Tensor:
    """The point of the largest margin loss after `steps` steps of Adam along estimated gradients.

    The estimate is the mean over `samples` random signs v of (J(x + delta v) - J(x - delta v)) / (2 delta) v.

    Args:
        victim: what is attacked, under an L-infinity budget.
        steps: number of steps.
        samples: pairs of evaluations of the source per step.
        delta: distance of the evaluations, in [0, 1].
        step: step size in [0, 1].
    """
    out, number = victim.x.clone(), torch.arange(len(victim))
    adv, first, second = victim.x.clone(), torch.zeros_like(victim.x), torch.zeros_like(victim.x)
    best, best_loss = victim.x.clone(), margin(victim.mean_logits(victim.x), victim.y)
    for count in range(1, steps + 1):
        gradient = estimate(victim, adv, samples, delta)
        first = BETAS[0] * first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * second + (1 - BETAS[1]) * gradient.square()
        move = first / (1 - BETAS[0] ** count) / ((second / (1 - BETAS[1] ** count)).sqrt() + 1e-8)
        adv = torch.clamp(adv + step * move, (victim.x - victim.eps).clamp(0, 1), (victim.x + victim.eps).clamp(0, 1))
        loss = margin(victim.mean_logits(adv), victim.y)
        better = loss > best_loss
        best = torch.where(better.view(-1, 1, 1, 1), adv, best)
        best_loss = torch.maximum(best_loss, loss)
        if not victim.random and (better & (loss > 0)).any():
            done, left = victim.finished(best, better & (loss > 0))
            out[number[done].to(out.device)] = best[done.to(out.device)]
            if not len(left):
                return out
            victim, number = victim.select(left), number[left]
            adv, first, second, best, best_loss = (
                each[left.to(out.device)] for each in (adv, first, second, best, best_loss)
            )
    out[number.to(out.device)] = best
    return out


def estimate(victim: Victim, at: Tensor, samples: int, delta: float) -> Tensor:
    """The estimated gradient of the margin loss, of the images' shape; one pair of evaluations at a time."""
    total = torch.zeros_like(at)
    for _ in range(samples):
        signs = torch.where(victim.own.uniform(*at.shape[1:]) < 0.5, -1.0, 1.0)
        ahead, behind = (margin(victim.mean_logits(at + side * delta * signs), victim.y) for side in (1, -1))
        total += (ahead - behind).view(-1, 1, 1, 1) * signs
    return total / (2 * delta * samples)
