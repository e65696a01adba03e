"""SSA: copies whose spectrum is scaled at random."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rdp_bench.attacks.parts.base import Part

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.attacks.parts.base import Run, Transform


@dataclass(frozen=True)
class Spectrum(Part):
    """G = sum over copies T of grad J at T(x), T(x) = IDCT(DCT(x + e) * M) (Long et al. 2022, Eq. 8-9, Alg. 1).

    e is N(0, `spectrum_sigma` / 255), M is U(1 - rho, 1 + rho) per coefficient. The gradient is that with respect to
    the transformed image, as in their code (yuyang-long/SSA). The coefficients of e are drawn, not e: an orthonormal
    transform of white Gaussian noise is such noise, and copies of an image then share DCT(x).
    """

    id: ClassVar[str] = "spectrum"
    version: ClassVar[int] = 2
    order: ClassVar[int] = 46
    off: ClassVar[Any] = 0
    changes_first: ClassVar[bool] = True
    aliases: ClassVar = {"n": "spectrum_copies", "rho": "spectrum_rho", "sigma": "spectrum_sigma"}

    spectrum_copies: int = 20
    spectrum_rho: float = 0.5
    spectrum_sigma: float = 16.0
    """Standard deviation of the noise, in /255."""

    def rules(self) -> Mapping[str, bool]:
        """Ranges of the fields."""
        return {
            "spectrum_copies is not negative and at most 1000": 0 <= self.spectrum_copies <= 1000,
            "spectrum_rho is from 0 to 1": 0 <= self.spectrum_rho <= 1,
            "spectrum_sigma is from 0 to 255": 0 <= self.spectrum_sigma <= 255,
        }

    @property
    def evaluations(self) -> int:
        """One per copy."""
        return self.spectrum_copies

    def copies(self, run: Run) -> Iterable[Transform]:
        """Images with a random spectrum, drawn anew in every call."""
        from rdp_bench.attacks._kernels.cosine import dct, inverse_dct

        known: list[tuple[Tensor, Tensor]] = []  # images and their coefficients; held, so that no other has their place

        def coefficients(x: Tensor) -> Tensor:
            if not known or known[0][0].data_ptr() != x.data_ptr() or known[0][0].shape != x.shape:
                known[:] = [(x, dct(x))]
            return known[0][1]

        def transformed(images: Tensor) -> Tensor:
            x, shape = images.detach(), images.shape[1:]
            noise = self.spectrum_sigma / 255 * run.rng.normal(*shape)
            scale = run.rng.uniform(*shape, low=1 - self.spectrum_rho, high=1 + self.spectrum_rho)
            return images + (inverse_dct((coefficients(x) + noise) * scale) - x)

        return [transformed] * self.spectrum_copies
