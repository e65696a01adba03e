"""Admix: copies with a share of other images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rdp_bench.attacks.parts.base import Part

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.attacks.parts.base import Run, Transform


@dataclass(frozen=True)
class Admix(Part):
    """G = sum over m1 mates x' of grad J(x + share * x'), before SI's scaling (Wang et al. 2021, Eq. 4, Alg. 1).

    Their images are in [-1, 1]; here x' - .5 is added. The m1 mates of an image are drawn for each gradient from the
    other images of the data set, and every scale of SI shows the same ones; the authors' code shuffles the batch
    as attacked so far, where an image may meet itself.
    """

    id: ClassVar[str] = "admix"
    version: ClassVar[int] = 2
    order: ClassVar[int] = 45
    off: ClassVar[Any] = 0
    changes_first: ClassVar[bool] = True
    aliases: ClassVar = {"m1": "admix_mates", "share": "admix_share"}
    draws_mates: ClassVar[bool] = True

    admix_mates: int = 3
    """m1, how many mixed copies."""
    admix_share: float = 0.2
    """eta, the weight of a mate."""

    def rules(self) -> Mapping[str, bool]:
        """Ranges of the fields."""
        return {
            "admix_mates is not negative and at most 1000": 0 <= self.admix_mates <= 1000,
            "admix_share is above 0 and at most 1": 0 < self.admix_share <= 1,
        }

    @property
    def evaluations(self) -> int:
        """One per mixed copy."""
        return self.admix_mates

    def copies(self, run: Run) -> Iterable[Transform]:
        """Images with a share of another one; every call draws others."""
        return [_mixed(run, self.admix_share) for _ in range(self.admix_mates)]


def _mixed(run: Run, share: float) -> Transform:
    """Adds the same mates whenever it is called; they are drawn when it is first."""
    from rdp_bench.attacks._kernels.gather import GREY

    drawn: list[Tensor] = []

    def mixed(images: Tensor) -> Tensor:
        if not drawn:
            drawn.append(share * ((run.mates(run.rng) if run.mates else _others(run)) - GREY))
        return images + drawn[0]

    return mixed


def _others(run: Run) -> Tensor:
    """For each image of the batch another image of the batch; the image itself where it is alone."""
    import torch

    n = len(run.x)
    if n == 1:
        return run.x
    return run.x[(torch.arange(n) + run.rng.integers(1, n)) % n]
