"""uint8 images `[3, h, w]` as files and data URIs. Pillow is loaded inside functions."""

import base64
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image


def to_pillow(image: "NDArray[np.uint8]") -> "Image":
    """The image as Pillow has it."""
    import numpy as np
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))


def to_png(image: "NDArray[np.uint8]") -> bytes:
    """A PNG file, pixel for pixel."""
    file = io.BytesIO()
    to_pillow(image).save(file, "PNG")
    return file.getvalue()


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
