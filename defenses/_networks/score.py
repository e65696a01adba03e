"""The one interface of score networks: what diffusion- and score-based purifiers ask, whatever the network predicts.

A network that knows its noise level says one thing in three forms. With x = x0 + sigma e it gives D = E[x0 | x]; the
noise is e = (x - D) / sigma, and the score of the noisy density is (D - x) / sigma^2 (Vincent 2011; Karras et al. 2022,
Eq. 3). Diffusion models use another unit: VP states sqrt(abar) (2 x0 - 1) + sqrt(1 - abar) e of images in [-1, 1].
`Denoising` and `NoisePredicting` convert between the two.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rdp_bench.defenses._networks.schedule import abars, noise_to_signal


class Prediction(NamedTuple):
    """The noise in a VP state `[n, 3, h, w]`, and for networks that learned it, the place of the variance."""

    eps: Tensor
    variance: Tensor | None = None  # from -1 (posterior variance) to 1 (beta), in log space


class ScoreNetwork(nn.Module):
    """Base of score networks. An image's result must not depend on the others in its batch."""

    multiple = 1  # of which heights and widths are
    size: int | None = None  # the only height and width it was trained for; None: any
    highest: float | None = None  # the highest noise level that it was trained for, in [0, 1] units; None: any
    levels = True  # whether it is told its noise level

    def predict(self, x: Tensor, step: int, abar: float) -> Prediction:
        """The noise in VP states.

        Args:
            x: states of images in [-1, 1], `[n, 3, h, w]`.
            step: the noise step of all of them, 0 to 999; what a network trained on steps is told.
            abar: what the states have; what a network trained on noise levels is told.
        """
        raise NotImplementedError

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | x], not clamped, `[n, 3, h, w]`.

        Args:
            x: images in [0, 1] plus noise, `[n, 3, h, w]`.
            sigma: the standard deviation of the noise of each, `[n]`.
        """
        raise NotImplementedError

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The gradient of the log density of noisy images; arguments as for `denoise`."""
        return (self.denoise(x, sigma) - x) / sigma.view(-1, 1, 1, 1) ** 2


class Denoising(ScoreNetwork):
    """Base of networks that define `denoise`."""

    def predict(self, x: Tensor, step: int, abar: float) -> Prediction:  # noqa: ARG002 - it is told the level
        """See `ScoreNetwork`."""
        signal, noise = math.sqrt(abar), math.sqrt(1 - abar)
        seen = x / (2 * signal) + 0.5
        clean = 2 * self.denoise(seen, x.new_full((len(x),), noise_to_signal(abar))) - 1
        return Prediction((x - signal * clean) / noise)


class NoisePredicting(ScoreNetwork):
    """Base of networks that predict the noise at one of `STEPS` steps; they define `outputs`."""

    def outputs(self, x: Tensor, step: Tensor) -> Tensor:
        """`[n, 3, h, w]`, or six channels of which the last three place the variance; `step` is int64 `[n]`."""
        raise NotImplementedError

    def predict(self, x: Tensor, step: int, abar: float) -> Prediction:  # noqa: ARG002 - it is told the step
        """See `ScoreNetwork`."""
        out = self.outputs(x, torch.full((len(x),), step, dtype=torch.long, device=x.device))
        return Prediction(out[:, :3], out[:, 3:] if out.shape[1] == 6 else None)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """See `ScoreNetwork`: at the step whose noise level is nearest."""
        table = torch.tensor([noise_to_signal(abar) for abar in abars()], dtype=torch.float64, device=x.device)
        step = (table - sigma.double()[:, None]).abs().argmin(1)
        abar = 1 / (1 + 4 * sigma**2).view(-1, 1, 1, 1)
        out = self.outputs(abar.sqrt() * (2 * x - 1), step)[:, :3]
        return x - sigma.view(-1, 1, 1, 1) * out
