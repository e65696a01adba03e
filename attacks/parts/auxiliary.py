"""AUX: the loss at a source's auxiliary head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rdp_bench.attacks.parts.base import Part
from rdp_bench.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.attacks.parts.base import Outputs, Run


@dataclass(frozen=True)
class AuxiliaryHead(Part):
    """Adds the cross-entropy at the auxiliary heads of Inception networks (dongyp13/Translation-Invariant-Attacks)."""

    id: ClassVar[str] = "auxiliary"
    order: ClassVar[int] = 70
    off: ClassVar[Any] = 0.0
    auxiliary: ClassVar[bool] = True

    aux_weight: float = 0.4
    """Factor of the auxiliary loss."""

    def loss(self, run: Run, loss: Tensor, outputs: Sequence[Outputs], labels: Tensor) -> Tensor:
        """With the weighted cross-entropy of the mean logits of all auxiliary heads."""
        import torch
        from torch.nn.functional import cross_entropy

        heads = [aux for _, aux in outputs if aux is not None]
        if not heads:
            raise UsageError(f"source '{run.source.name}' has no auxiliary head; leave out aux_weight")
        mean = heads[0] if len(heads) == 1 else torch.stack(heads).mean(0)
        return loss + self.aux_weight * cross_entropy(mean, labels, reduction="sum")
