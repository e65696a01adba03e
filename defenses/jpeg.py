"""JPEG compression: Guo et al., "Countering Adversarial Images using Input Transformations", ICLR 2018."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rdp_bench.protocols import Purifier
from rdp_bench.registry import defense

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from rdp_bench.rng import ImageRng


@defense("jpeg", source="Guo et al. 2018; facebookarchive/adversarial_image_defenses")
@dataclass(frozen=True)
class Jpeg(Purifier):
    """Saves each image as JPEG, quality 75, and reads it back."""

    has_smooth: ClassVar[bool] = True

    quality: int = 75  # lib/defenses.py; the TensorFlow ports of this defense use 95: `jpeg(quality=95)`

    def __post_init__(self) -> None:
        """Reject a quality outside 1 to 100."""
        check_quality(self.quality)

    def resolved(self) -> dict[str, Any]:
        """Every parameter, and the codec: versions of libjpeg round differently."""
        return {**super().resolved(), "codec": codec()}

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:  # noqa: ARG002 - nothing is drawn
        """`x` `[n, 3, h, w]`, encoded and decoded with chroma at half resolution (4:2:0)."""
        return jpeg_round_trip(x, self.quality)

    def smooth(self, x: Tensor, rng: ImageRng) -> Tensor:  # noqa: ARG002 - nothing is drawn
        """JPEG with a soft rounding of its coefficients."""
        from rdp_bench.defenses._smooth_jpeg import smooth_jpeg

        return smooth_jpeg(x, self.quality)


def check_quality(quality: int) -> None:
    """Raise `ValueError` unless `quality` is 1 to 100."""
    if not 1 <= quality <= 100:
        raise ValueError(f"quality is 1 to 100, found {quality}")


def codec() -> str:
    """The library that encodes and decodes JPEG here, and its version."""
    from PIL import features

    if turbo := features.version("libjpeg_turbo"):
        return f"libjpeg-turbo {turbo}"
    return f"libjpeg {features.version('jpg')}"


def jpeg_round_trip(x: Tensor, quality: int) -> Tensor:
    """Encode and decode images `[n, 3, h, w]` in [0, 1] with Pillow's own settings, 4:2:0.

    The codec takes 8 bits: pixels are rounded (the authors truncate; on 8-bit images it is the same).
    """
    from concurrent.futures import ThreadPoolExecutor
    from io import BytesIO

    import numpy as np
    import torch
    from PIL import Image
    from PIL.JpegImagePlugin import JpegImageFile

    def code(planes: NDArray[np.uint8], coded: NDArray[np.uint8]) -> None:
        # Pillow itself weaves the three planes into pixels and back: faster than a permutation here.
        file = BytesIO()
        Image.merge("RGB", [Image.fromarray(p) for p in planes]).save(file, format="JPEG", quality=quality)
        file.seek(0)
        for plane, band in zip(coded, JpegImageFile(file).split(), strict=True):
            plane[:] = band

    images = (x.detach() * 255).round_().to(torch.uint8).cpu().numpy()  # a quarter of the bytes to move
    out = np.empty_like(images)
    threads = min(len(images), torch.get_num_threads())
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:  # the codec frees the interpreter lock
            list(pool.map(code, images, out))
    else:
        for image, coded in zip(images, out, strict=True):
            code(image, coded)
    return torch.from_numpy(out).to(x.device).to(x.dtype).div_(255)
