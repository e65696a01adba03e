"""PNG files of our own are read by others, pixel for pixel."""

import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from rdp_bench.picture import to_png


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (7, 1), (299, 299), (64, 33)])
@pytest.mark.parametrize("kind", ["noise", "flat", "ramp"])
def test_pillow_reads_what_was_written(shape: tuple[int, int], kind: str) -> None:
    image = {
        "noise": np.random.default_rng(0).integers(0, 256, (3, *shape), np.uint8),
        "flat": np.full((3, *shape), 255, np.uint8),
        "ramp": (np.arange(3 * shape[0] * shape[1]) % 256).astype(np.uint8).reshape(3, *shape),
    }[kind]
    content = to_png(image)
    with Image.open(BytesIO(content)) as checked:
        checked.verify()  # the checksum of every chunk
    with Image.open(BytesIO(content)) as read:
        assert (read.mode, read.format) == ("RGB", "PNG")
        np.testing.assert_array_equal(np.asarray(read).transpose(2, 0, 1), image)


def test_a_photograph_takes_about_what_pillows_files_take() -> None:
    dice = np.random.default_rng(0)
    smooth = np.linspace(30, 220, 299)[None, :, None] + np.linspace(0, 20, 299)[None, None, :]
    image = np.clip(smooth + dice.choice([-16, 16], (3, 299, 299)), 0, 255).astype(np.uint8)
    file = BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(file, "PNG")
    assert len(to_png(image)) < 1.1 * len(file.getvalue()) < len(zlib.compress(image.tobytes(), 0))
