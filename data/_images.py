"""Preparation of an image file as uint8 `[3, size, size]`, before any attack.

The steps are:

1. Decode the first frame and apply its EXIF (or XMP) orientation.
2. Convert to 8-bit RGB: repeat grey, look up palettes, round 16-bit grey / 257, convert CMYK with Pillow without its
   profile, and drop alpha without compositing. Readers of ImageNet do the same with `convert("RGB")`, so a network gets
   the pixels on which it was trained.
3. Use an image of `size` x `size` pixel for pixel. Resize the shorter side of any other image to `size` (bicubic,
   antialiased) and the longer side in proportion, rounded down; then crop the centre square. torchvision's
   Resize(size, BICUBIC) and CenterCrop(size) on a Pillow image give the same bits.
"""

from __future__ import annotations

import os
import stat
from io import BytesIO
from typing import TYPE_CHECKING

from rdp_bench.errors import BadImageError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})
"""Suffixes of image files, in lower case; a search in a folder ignores case."""

# An explicit list, because Pillow would run Ghostscript on an EPS file named photo.png.
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
_ORIENTATION = 0x0112

LARGEST = 1 << 30
"""The largest image file in bytes. Files of images within Pillow's MAX_IMAGE_PIXELS are smaller."""


def read_file(path: Path, limit: int = LARGEST) -> bytes:
    """Return the bytes of a regular file, without waiting for the writer of a FIFO.

    Raises:
        BadImageError: the file is missing, unreadable, not a regular file, or larger than `limit` bytes.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        with open(os.open(path, flags), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise BadImageError(f"{path}: not a regular file (a FIFO, socket, device or folder)")
            if found.st_size > limit:
                raise BadImageError(f"{path}: {found.st_size:,} bytes, more than the {limit:,} that are read")
            return file.read(limit)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadImageError(f"{path}: cannot be read ({reason})") from error


def prepare(path: Path, size: int) -> NDArray[np.uint8]:
    """Return the image in `path` as uint8 `[3, size, size]`, RGB, prepared as described at the top of this module.

    Args:
        path: the image file.
        size: side of the result in pixels.

    Raises:
        BadImageError: as `decode`; or the image is so long and thin that resizing exceeds Pillow's MAX_IMAGE_PIXELS.
    """
    import numpy as np

    image = decode(path)
    if image.size != (size, size):
        image = _centre_square(image, size, path)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def resize(pixels: NDArray[np.uint8], size: int, where: str) -> NDArray[np.uint8]:
    """Return an image `[3, h, w]` as uint8 `[3, size, size]`, by step 3 at the top of this module."""
    import numpy as np
    from PIL.Image import fromarray

    image = _centre_square(fromarray(pixels.transpose(1, 2, 0)), size, where)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def reduce(image: Image, short: int) -> NDArray[np.uint8]:
    """Return an image uint8 `[3, h, w]`, resized (bicubic, antialiased) if its shorter side is above `short` pixels."""
    import numpy as np
    from PIL.Image import Resampling

    if (least := min(image.size)) > short:
        size = tuple(max(short, round(side * short / least)) for side in image.size)
        image = image.resize((size[0], size[1]), Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def decode(path: Path) -> Image:
    """Return the image in `path`, upright, 8-bit RGB, at its own size.

    Raises:
        BadImageError: the file is unreadable, not an image of a known format, truncated or damaged, has 32-bit pixels,
            or exceeds Pillow's MAX_IMAGE_PIXELS (a decompression bomb).
    """
    return decode_bytes(read_file(path), path)


def decode_bytes(content: bytes, path: Path | str) -> Image:
    """Decode `content` as `decode` does; errors name `path`."""
    from PIL import Image, UnidentifiedImageError

    if not content:
        raise BadImageError(f"{path}: the file is empty; fetch it again or remove it from the dataset")
    try:
        # Only verify() compares the checksums of a PNG. Without it, a flipped bit changes pixels and raises no error.
        # The image cannot be used after verify().
        with Image.open(BytesIO(content), formats=_FORMATS) as image:
            _refuse_bomb(image, path)
            image.verify()
        with Image.open(BytesIO(content), formats=_FORMATS) as image:
            image.load()
            return _rgb(_upright(image), image.format, path)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImageError(f"{path}: too large to decode safely ({error})") from error
    except UnidentifiedImageError as error:
        raise BadImageError(f"{path}: not an image of a known format ({', '.join(_FORMATS)})") from error
    except BadImageError:
        raise
    except Exception as error:  # Pillow's decoders raise many types of errors on damaged files
        reason = str(error) or type(error).__name__
        raise BadImageError(f"{path}: damaged or truncated ({reason}); fetch it again or remove it") from error


def decoder() -> str:
    """Return the versions of the libraries that decode images, such as `pillow 11.0.0, libjpeg 3.0.4`."""
    import PIL
    from PIL import features

    jpeg = features.version("libjpeg_turbo") or features.version("jpg")
    return f"pillow {PIL.__version__}, libjpeg {jpeg}"


def _refuse_bomb(image: Image, path: Path | str) -> None:
    # Pillow refuses only images above twice this limit, and warns below that.
    import PIL.Image

    limit = PIL.Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise BadImageError(
            f"{path}: too large to decode safely ({image.width} x {image.height}, allowed {limit} pixels)"
        )


def _upright(image: Image) -> Image:
    from PIL.Image import Transpose

    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a damaged tag gives no orientation: keep the pixels as stored
        return image
    turn = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }.get(orientation)
    return image if turn is None else image.transpose(turn)


def _rgb(image: Image, container: str | None, path: Path | str) -> Image:
    import numpy as np
    from PIL.Image import fromarray

    # Pillow reports 16-bit PNG and PGM files as 32-bit.
    if image.mode == "F" or (image.mode == "I" and container not in ("PNG", "PPM")):
        raise BadImageError(f"{path}: 32-bit pixels have no fixed range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        # 65535/257 = 255 exactly; adding 128 = 257//2 rounds to nearest. Pillow alone would clip at 255.
        deep = np.asarray(image).astype(np.int64)
        image = fromarray(((deep + 128) // 257).astype(np.uint8))
    # Otherwise Pillow warns that the transparency of a palette is lost, which is intended here.
    image.info.pop("transparency", None)
    return image if image.mode == "RGB" else image.convert("RGB")


def _centre_square(image: Image, size: int, path: Path | str) -> Image:
    import PIL.Image

    short, long = sorted(image.size)
    resized = size * long // short
    limit = PIL.Image.MAX_IMAGE_PIXELS
    if limit is not None and resized * size > limit:
        raise BadImageError(f"{path}: {image.width} x {image.height} is too long and thin to resize to {size}")
    width, height = (size, resized) if image.width <= image.height else (resized, size)
    image = image.resize((width, height), PIL.Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))
