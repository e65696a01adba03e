"""The other branch of RDP, to be looked at (the paper's Figure 7): it rebuilds the attack and purifies nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rdp_bench.defenses._learned import Learned
from rdp_bench.registry import defense

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.rng import ImageRng

LATENTS = ("natural", "random")


@defense("rdp-reconstruction", source="Bai et al. 2021, Figure 7; weights: rdp-bench train rdp")
@dataclass(frozen=True)
class Reconstruction(Learned):
    """What RDP's reconstructor R makes of an image and of P's latent V; no defense, though of its shape.

    `latent=random` puts noise in V's place: N(m, s^2), m and s being V's own mean and standard deviation in each
    channel of each image. All that V says about where things are is lost, and R still gets numbers of the size
    that it knows. What is left of the content came through R's own latent.
    """

    latent: str = "natural"

    kind: ClassVar[str] = "rdp-reconstruction"
    network: ClassVar[str] = "rdp_bench.defenses._networks.rdp:Reconstruction"
    purifies: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse any other latent."""
        if self.latent not in LATENTS:
            raise ValueError(f"latent is {' or '.join(LATENTS)}, found {self.latent}")

    @property
    def random(self) -> bool:
        """Two calls differ where the latent is drawn."""
        return self.latent == "random"

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        """The rebuilt images for `x` `[n, 3, h, w]`, of the same size, clamped to [0, 1]."""
        return self.forward(x, rng.normal if self.random else None).clamp(0, 1)
