"""LOSS: what the attack ascends in place of the cross-entropy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from rdp_bench.attacks.parts.auxiliary import AuxiliaryHead
from rdp_bench.attacks.parts.base import Part, find, require

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
        """The loss of auxiliary heads is a cross-entropy."""
        require({"aux_weight adds a cross-entropy; leave out loss_function": find(parts, AuxiliaryHead) is None})

    def loss(self, run: Run, loss: Tensor, outputs: Sequence[Outputs], labels: Tensor) -> Tensor:  # noqa: ARG002
        """That of the members' mean logits, a sum over images."""
        import torch

        from rdp_bench.attacks._kernels.losses import LOSSES

        logits = [main for main, _ in outputs]
        return LOSSES[self.loss_function](torch.stack(logits).mean(0), labels).sum()
