"""Salman et al., "Denoised Smoothing: A Provable Defense for Pretrained Classifiers", NeurIPS 2020."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from rdp_bench.defenses._score import ScoreBased
from rdp_bench.registry import defense

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from rdp_bench.defenses._networks.score import ScoreNetwork
    from rdp_bench.rng import ImageRng


@defense("denoised-smoothing", source="Salman et al. 2020; microsoft/denoised-smoothing")
@dataclass(frozen=True)
class DenoisedSmoothing(ScoreBased):
    """Adds noise of level `sigma` and removes it by a denoiser: ours, or one of the authors' DnCNNs.

    The authors train a DnCNN for one sigma, by MSE or by what the classifier makes of its output ("stability"):
    `weights=FILE` with the sigma it was trained for. Ours knows its noise level. The paper certifies the majority over
    many noisy images; a run's majority vote is `--defense-samples`.
    """

    sigma: float = 0.25  # the authors' denoisers: .12, .25, .5 and 1

    def __post_init__(self) -> None:
        """Reject levels of nothing."""
        if not 0 < self.sigma <= 10:
            raise ValueError(f"sigma is above 0 and at most 10, found {self.sigma}")

    def strongest(self) -> float:
        """See `ScoreBased`."""
        return self.sigma

    def net(self, device: torch.device | str) -> ScoreNetwork:
        """See `ScoreBased`; a denoiser of one level will do."""
        return cast("ScoreNetwork", self.file.net(device))

    def run(self, net: ScoreNetwork, x: Tensor, rng: ImageRng) -> Tensor:
        """See `ScoreBased`."""
        noisy = x + self.sigma * rng.normal(*x.shape[1:]).to(x)
        return net.denoise(noisy, x.new_full((len(x),), self.sigma))
