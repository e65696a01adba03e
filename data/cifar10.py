"""CIFAR-10 from files of your own: 32 x 32 pixels, ten classes. `_cifar10` reads the layouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from rdp_bench.data._cifar10 import CLASS_NAMES, COUNTS, SIDE, Records, open_records
from rdp_bench.data._images import resize
from rdp_bench.errors import UsageError
from rdp_bench.registry import dataset

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataset("cifar10", source="Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images")
@dataclass(frozen=True)
class Cifar10:
    """CIFAR-10 in a folder or file that you have, as in cifar10(PATH).

    The layouts are class folders of PNG files, the binary version (`test_batch.bin`) and parquet as on the Hugging Face
    hub. All of them give the same pixels and labels. Ids are numbers in the published order, or names of PNG files.

    Attributes:
        path: the folder, or one `.bin` or `.parquet` file.
        split: the test images or the training images of a folder.
        size: side of the images in pixels; above 32, they are enlarged before any attack (bicubic).
    """

    path: str = ""
    split: Literal["test", "train"] = "test"
    size: int = SIDE

    classes: ClassVar[int] = len(CLASS_NAMES)
    class_names: ClassVar[tuple[str, ...]] = CLASS_NAMES

    def __post_init__(self) -> None:
        if self.size < SIDE:
            raise UsageError(f"dataset 'cifar10': size must be at least {SIDE}, found {self.size}")

    @property
    def name(self) -> str:
        """The name in tables."""
        return "cifar10" if self.split == "test" else "cifar10-train"

    @property
    def ids(self) -> Sequence[str]:
        """A unique name per image."""
        return self._records.ids

    @property
    def labels(self) -> Sequence[int]:
        """The class of each image, 0..9 in the order of `CLASS_NAMES`."""
        return self._records.labels

    @property
    def note(self) -> str:
        """The number of images, if it is not that of the published set."""
        whole, found = COUNTS[self.split], len(self.ids)
        return "" if found == whole else f"{found:,} images, not the {whole:,} of CIFAR-10's {self.split} set"

    def image(self, index: int) -> NDArray[np.uint8]:
        """Return image `index` as uint8 `[3, size, size]`, RGB.

        Raises:
            BadImageError: the image is damaged or is not 32 x 32 pixels.
        """
        pixels = self._records.image(index)
        return pixels if self.size == SIDE else resize(pixels, self.size, self.ids[index])

    @cached_property
    def _records(self) -> Records:
        if not self.path:
            raise UsageError("dataset 'cifar10' needs its folder or file: cifar10(PATH)")
        return open_records(Path(self.path).expanduser(), self.split)
