"""SIA: copies whose blocks are transformed independently."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rdp_bench.attacks.parts.base import Part

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.attacks.parts.base import Run, Transform


@dataclass(frozen=True)
class Structure(Part):
    """G = sum over copies T of grad J(T(x)), T changes the blocks of a grid (Wang et al. 2023, Alg. 1).

    The image is cut at random rows and columns into `structure_blocks` x `structure_blocks` blocks. Each gets one of
    ten changes (`_kernels.block_changes`), drawn uniformly. Constants follow xiaosen-wang/SIT, which draws once
    per batch; here every image has its own draw.
    """

    id: ClassVar[str] = "structure"
    order: ClassVar[int] = 48
    off: ClassVar[Any] = 0
    changes_first: ClassVar[bool] = True
    aliases: ClassVar = {"n": "structure_copies", "blocks": "structure_blocks"}

    structure_copies: int = 20
    structure_blocks: int = 3

    def rules(self) -> Mapping[str, bool]:
        """Ranges of the fields."""
        return {
            "structure_copies is not negative and at most 1000": 0 <= self.structure_copies <= 1000,
            "structure_blocks is from 1 to 16": 1 <= self.structure_blocks <= 16,
        }

    @property
    def evaluations(self) -> int:
        """One per copy."""
        return self.structure_copies

    def copies(self, run: Run) -> Iterable[Transform]:
        """Images of changed blocks, drawn anew in every call."""
        from rdp_bench.attacks._kernels.block_changes import change_blocks

        def changed(images: Tensor) -> Tensor:
            return change_blocks(images, self.structure_blocks, run.rng)

        return [changed] * self.structure_copies
