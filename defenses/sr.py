"""SR: Mustafa et al., "Image Super-Resolution as a Defense Against Adversarial Attacks", TIP 2020."""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rdp_bench.defenses._learned import Learned, upsample_nearest
from rdp_bench.defenses.wavelet import Wavelet
from rdp_bench.protocols import Backward
from rdp_bench.registry import defense

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.rng import ImageRng
    from rdp_bench.weights.files import State

RENAMED = (
    (r"head\.0", "head"),
    (r"body\.(\d+)\.body\.0", r"body.\1.conv1"),
    (r"body\.(\d+)\.body\.2", r"body.\1.conv2"),
    (r"tail\.0\.0", "up.0"),
    (r"tail\.1", "tail"),
)
"""Names of EDSR's layers: in its authors' file, and here."""


@defense("sr", source="Mustafa et al. 2020; aamir-mustafa/super-resolution-adversarial-defense, edsr_baseline_x2-*.pt")
@dataclass(frozen=True)
class SuperResolution(Learned):
    """Denoises wavelets as `wavelet` does, then doubles the resolution with EDSR.

    The classifier gets the image at twice its size: the authors say that at 299 pixels "will for sure not work".
    `resize` brings it back, as users of theirs do whose classifiers cannot take more.
    """

    sigma: float = 0.04  # see `wavelet`
    jpeg: int = 95
    resize: bool = False

    differentiable: ClassVar[bool] = False
    backward: ClassVar[Backward] = "stand-in"
    has_smooth: ClassVar[bool] = True
    kind: ClassVar[str] = "sr"
    network: ClassVar[str] = "rdp_bench.defenses._networks.edsr:EDSR"

    def __post_init__(self) -> None:
        """Reject what `wavelet` rejects."""
        self.denoiser()

    @property
    def scale(self) -> float:
        """Two, unless resized back."""
        return 1.0 if self.resize else 2.0

    def denoiser(self) -> Wavelet:
        """The wavelet denoiser."""
        return Wavelet(self.sigma, self.jpeg)

    def resolved(self) -> dict[str, Any]:
        """Every parameter, the hash of the weights, and the codec if one is used."""
        return {**super().resolved(), "codec": self.denoiser().resolved()["codec"]}

    def convert_author_weights(self, state: State) -> tuple[dict[str, Any], State]:
        """EDSR-PyTorch's file: its two fixed layers hold the means that are constants here."""
        ours: State = OrderedDict()
        for name, tensor in state.items():
            layer, _, kind = name.rpartition(".")
            for theirs, new in RENAMED:
                layer = re.sub(f"^{theirs}$", new, layer)
            if layer not in ("sub_mean", "add_mean"):
                ours[f"{layer}.{kind}"] = tensor
        blocks = {name.split(".")[1] for name in ours if re.match(r"body\.\d+\.conv1", name)}
        return {"blocks": len(blocks)}, ours

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        """`x` `[n, 3, h, w]` to `[n, 3, 2h, 2w]`, or back at its own size, in [0, 1]."""
        return self._enlarged(self.denoiser().purify(x, rng))

    def stand_in(self, x: Tensor, rng: ImageRng) -> Tensor:  # noqa: ARG002 - nothing is drawn
        """Nearest-neighbour upsampling to the same size, for gradients."""
        return upsample_nearest(x, int(self.scale))

    def smooth(self, x: Tensor, rng: ImageRng) -> Tensor:
        """The network itself, after the denoiser's closer stand-in."""
        return self._enlarged(self.denoiser().smooth(x, rng))

    def _enlarged(self, x: Tensor) -> Tensor:
        from torch.nn.functional import interpolate

        large = self.forward(x).clamp(0, 1)
        if not self.resize:
            return large
        return interpolate(large, x.shape[-2:], mode="bicubic", antialias=True).clamp(0, 1)
