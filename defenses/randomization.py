"""Random resizing and padding: Xie et al., "Mitigating Adversarial Effects Through Randomization", ICLR 2018."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rdp_bench.protocols import Defense, Purifier
from rdp_bench.registry import defense

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.rng import ImageRng


@defense("r&p", source="Xie et al. 2018; cihangxie/NIPS2017_adv_challenge_defense")
@dataclass(frozen=True)
class Randomization(Purifier):
    """Resizes to 310-330 pixels, pads grey to 331 at a random place, mirrors half the time.

    The sizes are for images of 299 pixels and scale with others. Every image draws its own pattern (the
    authors' code shares one in a batch, so that a result depended on its neighbours). `patterns` above 1
    has the classifier look that often and averages its softmax.
    """

    random = True
    differentiable = True
    backward = "exact"
    scale = 331 / 299

    patterns: int = 1  # the paper's; 30 in the NIPS-2017 submission

    def __post_init__(self) -> None:
        """Reject a number of patterns outside 1 to 10000."""
        if not 1 <= self.patterns <= 10_000:
            raise ValueError(f"patterns is 1 to 10000, found {self.patterns}")

    @property
    def passes(self) -> int:
        """How many patterns the classifier sees."""
        return self.patterns

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        """One pattern: `[n, c, s, s]` to `[n, c, t, t]` with t = round(331/299 s)."""
        import torch

        least, size = round(310 / 299 * x.shape[3]), round(331 / 299 * x.shape[3])
        edge = rng.integers(least, max(least + 1, size))  # 310..330 at 299
        top, left = rng.integers(0, size - edge + 1), rng.integers(0, size - edge + 1)
        mirror = rng.integers(0, 2)

        if x.device.type == "cpu" or (x.requires_grad and torch.is_grad_enabled()):
            return _one_by_one(x, size, torch.stack([edge, top, left, mirror], 1).tolist())
        return _at_once(x, size, torch.stack([edge, top, left, mirror]).to(x.device))


def _one_by_one(x: Tensor, size: int, patterns: list[list[int]]) -> Tensor:
    """Each image by its pattern: edge, top, left and mirror. The fastest on a CPU, and its gradient is torch's."""
    from torch.nn.functional import interpolate

    out = x.new_full((*x.shape[:2], size, size), 0.5)  # grey: 0 in the authors' [-1, 1]
    for i, (e, t, k, flip) in enumerate(patterns):
        resized = interpolate(x[i : i + 1], size=(e, e), mode="nearest")[0]
        # The authors mirror before they resize. Nearest-neighbour resizing does not commute with that: mirrored
        # images are theirs shifted by up to one column.
        out[i, :, t : t + e, k : k + e] = resized.flip(2) if flip else resized
    return out


def _at_once(x: Tensor, size: int, patterns: Tensor) -> Tensor:
    """`_one_by_one` as one gather; edge, top, left and mirror are int64 `[4, n]` on the device of `x`."""
    import torch

    from rdp_bench.attacks._kernels.gather import gather_pixels

    edge, top, left, mirror = patterns[:, :, None]
    at = torch.arange(size, device=x.device)
    row, column = at - top, at - left
    maps = []
    for place, source, old in (
        (row, row, x.shape[2]),
        (column, torch.where(mirror > 0, edge - 1 - column, column), x.shape[3]),
    ):
        outside = (place < 0) | (place >= edge)
        scale = (old / edge.double()).float()  # as `interpolate` computes it; the quotient differs at 256 pixels
        maps.append((source.float() * scale).floor().long().masked_fill_(outside, -1))
    return gather_pixels(x, *maps)


@defense("r&p-30", source="Xie et al. 2018; cihangxie/NIPS2017_adv_challenge_defense")
def randomization_30() -> Defense:
    """R&P as submitted to NIPS 2017: 30 patterns an image, softmax outputs averaged."""
    # Theirs adds .4 of an auxiliary head's softmax to each pattern's; timm's conversions have no such head.
    return Randomization(patterns=30)
