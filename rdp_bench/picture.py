"""uint8 images `[3, h, w]` as files and data URIs. Pillow is loaded inside functions."""

import base64
import io
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image


_SUB, _RGB = 1, 2
"""Of the PNG specification: the filter of a row, and the colour type."""


def to_pillow(image: "NDArray[np.uint8]") -> "Image":
    """The image as Pillow has it."""
    import numpy as np
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))


def to_png(image: "NDArray[np.uint8]") -> bytes:
    """A PNG file, pixel for pixel.

    Rows are stored as differences between neighbouring pixels (filter "Sub" of the PNG specification), and only runs
    are searched for repetitions: a perturbation repeats nothing, and a full search takes seven times as long for 1 %.
    """
    import zlib

    import numpy as np

    _, height, width = image.shape
    rows = np.ascontiguousarray(image.transpose(1, 2, 0)).reshape(height, 3 * width)
    filtered = np.empty((height, 1 + 3 * width), np.uint8)
    filtered[:, 0] = _SUB
    filtered[:, 1:4] = rows[:, :3]
    np.subtract(rows[:, 3:], rows[:, :-3], out=filtered[:, 4:])
    packer = zlib.compressobj(1, zlib.DEFLATED, strategy=zlib.Z_RLE)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, _RGB, 0, 0, 0),
        b"IDAT": packer.compress(filtered.data) + packer.flush(),
        b"IEND": b"",
    }
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, content in chunks.items():
        parts += [struct.pack(">I", len(content)), kind, content, struct.pack(">I", zlib.crc32(kind + content))]
    return b"".join(parts)


def to_jpeg_uri(picture: "Image", quality: int) -> str:
    """A `data:` URI for pages. Chroma is not subsampled: that would smear the perturbations that are to be seen."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def resized(image: "NDArray[np.uint8]", size: int) -> "NDArray[np.uint8]":
    """A square image brought to `size` pixels (Lanczos); the same array if it has that size."""
    import numpy as np
    from PIL import Image

    if image.shape[-1] == size:
        return image
    return np.asarray(to_pillow(image).resize((size, size), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
