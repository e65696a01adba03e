"""JPEG compression: Guo et al., "Countering Adversarial Images using Input Transformations", ICLR 2018."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rdp_bench.protocols import Purifier
from rdp_bench.registry import defense

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.draws import Draws


@defense("jpeg", source="Guo et al. 2018; facebookarchive/adversarial_image_defenses")
@dataclass(frozen=True)
class Jpeg(Purifier):
    """Saves each image as JPEG, quality 75, and reads it back."""

    quality: int = 75  # lib/defenses.py; the TensorFlow ports of this defense use 95: `jpeg(quality=95)`

    def __post_init__(self) -> None:
        """Refuse a quality that JPEG does not have."""
        check_quality(self.quality)

    def purify(self, x: Tensor, draws: Draws) -> Tensor:  # noqa: ARG002 - nothing is drawn
        """What the codec makes of `x` `[n, 3, h, w]`, chroma at half resolution (4:2:0)."""
        return jpeg_round_trip(x, self.quality)


def check_quality(quality: int) -> None:
    """Raise `ValueError` unless `quality` is one of libjpeg's."""
    if not 1 <= quality <= 100:
        raise ValueError(f"quality is 1 to 100, found {quality}")


def jpeg_round_trip(x: Tensor, quality: int) -> Tensor:
    """Encode and decode images `[n, 3, h, w]` in [0, 1] with Pillow's own settings, 4:2:0.

    The codec takes 8 bits: pixels are rounded (the authors truncate; on 8-bit images it is the same).
    """
    from concurrent.futures import ThreadPoolExecutor
    from io import BytesIO

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from PIL import Image

    def code(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        file = BytesIO()
        Image.fromarray(image).save(file, format="JPEG", quality=quality)
        return np.asarray(Image.open(file))

    bytes_ = (x.detach() * 255).round_().to("cpu", torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # the codec frees the interpreter lock
        coded = torch.from_numpy(np.stack(list(pool.map(code, bytes_))))
    return coded.to(x.device).permute(0, 3, 1, 2).contiguous().to(x.dtype).div_(255)
