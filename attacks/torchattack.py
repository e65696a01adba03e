"""Attacks of the torchattack package (without s) by class name: `torchattack:BSR(num_scale=10)`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rdp_bench.attacks.library import LibraryAttack
from rdp_bench.registry import attack

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

BUDGETS = {
    "linf": frozenset({
        "FGSM", "IFGSM", "PGD", "MIFGSM", "NIFGSM", "DIFGSM", "TIFGSM", "SINIFGSM", "VMIFGSM", "VNIFGSM", "MIG", "BSR",
        "DeCoWA", "GRA",
    }),
    "l2": frozenset({"PGDL2"}),
}  # fmt: skip
"""Classes whose results stay within eps, by norm."""

_LAYERS = "hooks into layers of one torchvision or timm network by name; run it as a plugin on that network"
_GENERATOR = "needs the weights of a trained generator; run it as a plugin"
_NO_BUDGET = "fits no budget: it minimises the change and keeps no eps"

REFUSED = {
    "Admix": "mixes the images of a batch, and images are attacked one at a time; use the attack 'admix'",
    **dict.fromkeys(("BFA", "DANAA", "DR", "FDA", "FIA", "ILPD", "NAA"), _LAYERS),
    **dict.fromkeys(("ATT", "BPA", "PNAPatchOut", "SGM", "TGR", "VDC"), _LAYERS),
    **dict.fromkeys(("BIA", "CDA", "GAMA", "LTP"), _GENERATOR),
    **dict.fromkeys(("DeepFool", "GeoDA"), _NO_BUDGET),
    "SSA": "takes images of 224 pixels only; use the attack 'ssa'",
    "L2T": "calls CUDA whatever the device; run it as a plugin",
    "MuMoDIG": "needs the package kornia; run it as a plugin",
    "SSP": "downloads the weights of VGG-16; use the attack 'ssp'",
}
"""Classes that no cell can run, and why."""


@dataclass(frozen=True)
class TorchattackClass(LibraryAttack):
    """A class of torchattack; its step size is eps / steps unless `alpha` is given."""

    package: ClassVar[str] = "torchattack"
    budgets: ClassVar[Mapping[str, frozenset[str]]] = BUDGETS
    refused: ClassVar[Mapping[str, str]] = REFUSED

    @classmethod
    def library(cls) -> dict[str, Any]:
        """Every attack of the package."""
        import torchattack

        found = {name: getattr(torchattack, name, None) for name in {*REFUSED, *BUDGETS["linf"], *BUDGETS["l2"]}}
        return {name: kind for name, kind in found.items() if kind is not None}

    @classmethod
    def make(cls, kind: Any, network: torch.nn.Module, device: torch.device, params: dict[str, Any]) -> Any:
        """An attack on `network`, which normalises its input itself."""
        return kind(network, device=device, **params)


attack.label_scheme("torchattack", r"torchattack:.+", "torchattack:BSR(num_scale=10)", TorchattackClass.adapt)
