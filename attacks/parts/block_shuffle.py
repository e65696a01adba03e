"""BSR: copies whose blocks are shuffled and rotated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rdp_bench.attacks.parts.base import Part

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.attacks.parts.base import Run, Transform


@dataclass(frozen=True)
class BlockShuffle(Part):
    """G = sum over copies T of grad J(T(x)), T shuffles and rotates blocks (Wang et al. 2024, Sec. 3.3, Alg. 1).

    The image is cut into `shuffle_blocks` strips of random lengths in each direction; rows and columns of blocks are
    permuted, and each block is rotated about its centre by an angle of N(0, `shuffle_angle`) cut at two standard
    deviations, bilinear, with mid-grey beyond its border. These are the constants of the authors' code for Inception
    networks (mi_bsr.py); their PyTorch version in TransferAttack rotates strips of a 3 x 3 grid by U(-24, 24) degrees.
    mi_bsr.py draws cuts and permutations once per run, when it builds its graph, and angles for each image and step;
    TransferAttack draws once per batch. Here every image has its own draw, anew in every step.
    """

    id: ClassVar[str] = "block-shuffle"
    order: ClassVar[int] = 47
    off: ClassVar[Any] = 0
    changes_first: ClassVar[bool] = True
    aliases: ClassVar = {"n": "shuffle_copies", "blocks": "shuffle_blocks", "angle": "shuffle_angle"}

    shuffle_copies: int = 20
    shuffle_blocks: int = 2
    shuffle_angle: float = 0.2
    """Standard deviation of the angle in radians."""

    def rules(self) -> Mapping[str, bool]:
        """Ranges of the fields."""
        return {
            "shuffle_copies is not negative and at most 1000": 0 <= self.shuffle_copies <= 1000,
            "shuffle_blocks is from 1 to 16": 1 <= self.shuffle_blocks <= 16,
            "shuffle_angle is from 0 to 3": 0 <= self.shuffle_angle <= 3,
        }

    @property
    def evaluations(self) -> int:
        """One per copy."""
        return self.shuffle_copies

    def copies(self, run: Run) -> Iterable[Transform]:
        """Shuffled images, drawn anew in every call."""
        from rdp_bench.attacks._kernels.blocks import rotated_blocks, strips, truncated_normal

        def shuffled(images: Tensor) -> Tensor:
            rows, columns = (strips(size, self.shuffle_blocks, run.rng) for size in images.shape[-2:])
            angles = self.shuffle_angle * truncated_normal(run.rng, self.shuffle_blocks, self.shuffle_blocks)
            return rotated_blocks(images, rows, columns, angles)

        return [shuffled] * self.shuffle_copies
