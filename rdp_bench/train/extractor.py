"""The frozen feature extractor F: feature maps of classifiers, at the scale that they have for whole images."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rdp_bench.errors import UsageError
from rdp_bench.models.zoo import find
from rdp_bench.protocols import Features

WHOLE = 299
"""Image size of the benchmark in pixels."""


class Extractor:
    """Feature maps of one of several classifiers; `turn` selects it.

    A crop is resized as a whole image is for the classifier (128 of 299 pixels are 96 of 224), or, if `native`, not.
    """

    def __init__(
        self, labels: Sequence[str], levels: Sequence[int], device: str, models_dir: Path | None, native: bool = False
    ) -> None:
        self.members: list[Any] = [find(label, models_dir).load(device) for label in labels]
        for member in self.members:
            name = member.name
            if not isinstance(member, Features):
                raise UsageError(f"--features {name}: it has no method `features`; name another network")
            card = getattr(member, "card", None)
            if native and (card is None or card.fixed_size):
                why = "takes images of one size" if card else "does not say what size of image it takes"
                raise UsageError(f"--features {name}: it {why}, so --scale native is not possible")
        self.native = native
        self.levels = tuple(levels)
        self.turn = 0

    @property
    def member(self) -> Any:
        """The classifier whose turn it is."""
        return self.members[self.turn % len(self.members)]

    def _zoom(self, x: Tensor, member: Any) -> float:
        whole: int = member.card.input_size if self.native else WHOLE
        return x.shape[-1] / whole

    def __call__(self, x: Tensor) -> list[Tensor]:
        """Maps `[n, c, h', w']` of `x` `[n, 3, h, h]` in [0, 1] at every level; without levels, the last."""
        with _exact(x):
            maps: list[Tensor] = self.member.features(x.float(), self.levels, self._zoom(x, self.member))
        return maps

    def logits(self, x: Tensor) -> Tensor:
        """Logits `[n, classes]` of `x` `[n, 3, h, h]` in [0, 1]."""
        with _exact(x):
            logits: Tensor = self.member(x.float(), self._zoom(x, self.member))
        return logits

    def joint(self, x: Tensor) -> Tensor:
        """The mean of all members' logits."""
        with _exact(x):
            return torch.stack([member(x.float(), self._zoom(x, member)) for member in self.members]).mean(0)


def _exact(x: Tensor) -> AbstractContextManager[Any]:
    """F and its resizing in float32, whatever the trained networks use: it makes their inputs and measures them."""
    return torch.autocast(x.device.type, enabled=False)
