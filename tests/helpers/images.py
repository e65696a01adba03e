"""Images and tables of labels for tests of data sets."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rdp_bench.data._images import prepare

Pixels = NDArray[np.uint8]


def noise(seed: int = 0, height: int = 8, width: int = 8) -> Pixels:
    """Random `[height, width, 3]`: no two rows, columns or channels alike."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def save(path: Path, pixels: Pixels | None = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise() if pixels is None else pixels).save(path, **options)
    return path


def hwc(path: Path, size: int = 8) -> Pixels:
    """The prepared image with its channels last, as Pillow has them."""
    image = prepare(path, size)
    assert image.shape == (3, size, size)
    assert image.dtype == np.uint8
    return image.transpose(1, 2, 0)


def table(path: Path, *rows: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path
