"""Arrays: images and labels from one .npz file, as a plugin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rdp_bench import dataset

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataset("mine/arrays", source="files of my own")
@dataclass(frozen=True)
class Arrays:
    """Images `[n, 3, s, s]` (uint8, RGB) and labels `[n]` in an .npz file."""

    file: str = "photos.npz"
    name: str = "mine/arrays"

    @cached_property
    def _arrays(self) -> dict[str, NDArray[Any]]:
        import numpy as np

        with np.load(self.file) as found:
            return dict(found)

    @property
    def size(self) -> int:
        """Side of an image in pixels."""
        return int(self._arrays["images"].shape[-1])

    @property
    def labels(self) -> Sequence[int]:
        """The class of each image, counted from 0."""
        return [int(label) for label in self._arrays["labels"]]

    @property
    def ids(self) -> Sequence[str]:
        """A unique name per image."""
        return [f"{i:05d}" for i in range(len(self._arrays["labels"]))]

    def image(self, index: int) -> NDArray[np.uint8]:
        """Return image `index` as uint8 `[3, s, s]`."""
        image: NDArray[np.uint8] = self._arrays["images"][index]
        return image
