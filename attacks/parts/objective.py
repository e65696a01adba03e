"""LOSS: what the attack ascends in place of the cross-entropy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from rdp_bench.attacks.parts.auxiliary import AuxiliaryHead
from rdp_bench.attacks.parts.base import Part, find, require
from rdp_bench.attacks.parts.labels import Targeted

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.attacks.parts.base import Outputs, Run

Name = Literal["ce", "margin", "cw", "dlr"]


@dataclass(frozen=True)
class Objective(Part):
    """The margin of the logits, its bounded form (Carlini and Wagner 2017, Eq. 6), or the ratio DLR."""

    id: ClassVar[str] = "objective"
    order: ClassVar[int] = 80  # inside of whatever changes the sign of the loss
    off: ClassVar[Any] = "ce"

    loss_function: Name = "margin"

    def rules(self) -> Mapping[str, bool]:
        """Only known losses."""
        return {f"loss_function is one of {get_args(Name)}": self.loss_function in get_args(Name)}

    def check(self, parts: Sequence[Part]) -> None:
        """The loss of auxiliary heads is a cross-entropy; `cw` is bounded where an untargeted attack has succeeded."""
        require({"aux_weight adds a cross-entropy; leave out loss_function": find(parts, AuxiliaryHead) is None})
        far = self.loss_function == "cw" and find(parts, Targeted) is not None
        require({"cw has no gradient far from a target; a targeted attack uses loss_function=margin": not far})

    def loss(self, run: Run, loss: Tensor, outputs: Sequence[Outputs], labels: Tensor) -> Tensor:  # noqa: ARG002
        """That of the members' mean logits, a sum over images."""
        import torch

        from rdp_bench.attacks._kernels.losses import LOSSES

        logits = [main for main, _ in outputs]
        return LOSSES[self.loss_function](torch.stack(logits).mean(0), labels).sum()
