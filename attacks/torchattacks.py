"""Attacks of the torchattacks package by class name: `torchattacks:PGD(steps=20)`."""

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
        "FGSM", "BIM", "RFGSM", "PGD", "EOTPGD", "FFGSM", "TPGD", "MIFGSM", "UPGD", "DIFGSM", "TIFGSM", "Jitter",
        "NIFGSM", "PGDRS", "SINIFGSM", "VMIFGSM", "VNIFGSM", "SPSA", "PIFGSM", "PIFGSMPP", "APGD", "APGDT", "FAB",
        "AutoAttack", "Square", "GN",
    }),
    "l2": frozenset({"PGDL2", "PGDRSL2", "APGD", "APGDT", "FAB", "AutoAttack", "Square"}),
}  # fmt: skip
"""Classes whose results stay within eps, by norm. GN adds noise of its own size, which is cut to the budget."""

WITHOUT_BUDGET = {
    "CW": "it minimises the L2 norm and keeps no budget",
    "DeepFool": "it minimises the L2 norm and keeps no budget",
    "EADL1": "it minimises the L1 norm and keeps no budget",
    "EADEN": "it minimises an elastic-net norm and keeps no budget",
    "SparseFool": "it changes few pixels by any amount (L0)",
    "OnePixel": "it changes few pixels by any amount (L0)",
    "Pixle": "it moves pixels about, each by any amount (L0)",
    "JSMA": "it changes few pixels by any amount (L0)",
    "VANILA": "it returns the images as they are",
}
"""Classes without an L-infinity or L2 budget, and why: cut to eps they would look weaker than they are."""


@dataclass(frozen=True)
class TorchAttack(LibraryAttack):
    """A class of torchattacks; most have a step size of 2/255."""

    package: ClassVar[str] = "torchattacks"
    budgets: ClassVar[Mapping[str, frozenset[str]]] = BUDGETS
    refused: ClassVar[Mapping[str, str]] = {name: f"fits no budget: {why}" for name, why in WITHOUT_BUDGET.items()}

    @classmethod
    def library(cls) -> dict[str, Any]:
        """Classes that need a model and nothing else: MultiAttack and LGV want more."""
        import torchattacks

        classes = {n: k for n, k in vars(torchattacks).items() if isinstance(k, type) and hasattr(k, "forward")}
        return {n: k for n, k in classes.items() if _needs(k) == ["model"]}

    @classmethod
    def make(cls, kind: Any, network: torch.nn.Module, device: torch.device, params: dict[str, Any]) -> Any:  # noqa: ARG003
        """An attack on `network`, which tells it the device."""
        return kind(network, **params)


def _needs(kind: Any) -> list[str]:
    import inspect

    found = inspect.signature(kind).parameters.values()
    return [p.name for p in found if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]


attack.label_scheme("torchattacks", r"torchattacks:.+", "torchattacks:PGD(steps=20)", TorchAttack.adapt)
