"""Adversarial inputs made while training, by self-supervised feature distortion (RDP Eq. 1)."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from rdp_bench.attacks.ssp import distort
from rdp_bench.train.extractor import Extractor
from rdp_bench.train.options import Options


def adversarial(options: Options, features: Extractor, clean: Tensor, rng: Generator) -> Tensor:
    """Inputs x' for `clean` `[n, 3, h, h]`.

    * `paper`: SSP at eps from pure noise, for every image that is not left clean.
    * `wide`: of the images that are not left clean, four sevenths at eps and three at U(0, eps). Half of the batches
      smooth the gradient as TI-FGSM does; these, and half of the others, start near the image instead of from noise,
      so that the purifier meets fine and coarse perturbations of every size. Not the paper's; the cards say so.

    Each image is left clean with the probability `options.clean_share`.
    """
    noise = torch.randn(clean.shape, generator=rng, device=clean.device)
    eps, n = options.eps / 255, len(clean)
    attacked = 1 - options.clean_share
    if options.attack == "paper":
        share = torch.ones(n, 1, 1, 1, device=clean.device)
        if attacked < 1:
            share = (torch.rand(n, 1, 1, 1, generator=rng, device=clean.device) < attacked).float()
        return _distorted(options, features, clean, noise, eps * share, 0.01)
    unit = torch.rand(n, 2, generator=rng, device=clean.device)
    whole = unit[:, 0] < attacked * 4 / 7
    share = torch.where(whole, 1.0, torch.where(unit[:, 0] < attacked, unit[:, 1], 0.0)).view(n, 1, 1, 1)
    coarse, near = torch.rand(2, generator=rng, device=clean.device).lt(0.5).tolist()
    start = clean + noise * eps * share / 2 if near or coarse else noise
    step = 0.01 * share * (eps / (16 / 255))
    return _distorted(options, features, clean, start, eps * share, step, _blur if coarse else None)


def _distorted(
    options: Options,
    features: Extractor,
    clean: Tensor,
    start: Tensor,
    eps: Tensor,
    step: Tensor | float,
    direction: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """`clean` after SSP, for the images of an eps above 0; the others are left as they are."""
    at = eps.flatten().nonzero()[:, 0]
    if not len(at):
        return clean.clone()
    steps = step[at] if isinstance(step, Tensor) else step
    found = distort(features, clean[at], start[at], eps[at], options.attack_steps, steps, direction=direction)
    return clean.index_copy(0, at, found)


def _blur(grad: Tensor) -> Tensor:
    from rdp_bench.attacks._kernels.smoothing import smooth

    return smooth(grad, 7)
