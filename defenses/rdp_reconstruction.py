"""RDP's reconstruction branch, for the paper's Figure 7: it reconstructs the attacked image and purifies nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rdp_bench.defenses._learned import Learned
from rdp_bench.registry import defense

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.rng import ImageRng

LATENTS = ("natural", "random")


@defense("rdp-reconstruction", source="Bai et al. 2021, Figure 7; weights: rdp-bench train rdp", version=2)
@dataclass(frozen=True)
class Reconstruction(Learned):
    """RDP's reconstruction branch R, for Figure 7; not a defense.

    R takes the image and P's latent V. `latent=random` replaces V by noise N(m, s^2), where m and s are the mean and
    the standard deviation of V per channel and image. This removes V's spatial information and keeps the scale that R
    was trained with; content that remains came through R's own latent.
    """

    latent: str = "natural"

    kind: ClassVar[str] = "rdp-reconstruction"
    network: ClassVar[str] = "rdp_bench.defenses._networks.rdp:Reconstruction"
    purifies: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Reject other latents."""
        if self.latent not in LATENTS:
            raise ValueError(f"latent is {' or '.join(LATENTS)}, found {self.latent}")

    @property
    def random(self) -> bool:
        """Whether the latent is drawn."""
        return self.latent == "random"

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        """The rebuilt images for `x` `[n, 3, h, w]`, of the same size, clamped to [0, 1]."""
        return self.forward(x, rng.normal if self.random else None).clamp(0, 1)
