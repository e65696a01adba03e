"""ComDefend: Jia et al., "An Efficient Image Compression Model to Defend Adversarial Examples", CVPR 2019."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rdp_bench.defenses._learned import Learned
from rdp_bench.errors import BadModelError
from rdp_bench.protocols import Backward
from rdp_bench.registry import defense
from rdp_bench.weights import files

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.rng import ImageRng
    from rdp_bench.weights.files import State


@defense(
    "comdefend", source="Jia et al. 2019; jiaxiaojunQAQ/Comdefend, enc20_0.0001.npy and dec20_0.0001.npy", version=2
)
@dataclass(frozen=True)
class ComDefend(Learned):
    """Compresses an image to twelve bits a pixel and reconstructs it, 32 x 32 pixels at a time.

    As in the authors' Resnet_imagenet.py, the image is resized to 224 pixels first; here it then goes back to its own
    size.
    Their script feeds blue, green, red to networks trained on red, green, blue: `order` says which, auto is theirs
    for their files and rgb for ours. They also add noise before the threshold, sigma 1, which flips 0.2 % of the bits
    and which they call optional: `noise=1`. Their output's truncation to 8 bits is left out.
    """

    size: int = 224  # their Resnet_imagenet.py; 0: the image's own, mirrored up to whole patches
    patch: int = 32  # compression_imagenet.py; 0: the whole image at once
    order: str | None = None
    noise: float = 0.0

    differentiable: ClassVar[bool] = False
    backward: ClassVar[Backward] = "identity"
    kind: ClassVar[str] = "comdefend"
    network: ClassVar[str] = "rdp_bench.defenses._networks.comdefend:ComDefend"

    def __post_init__(self) -> None:
        """Reject sizes that are no multiple of the patch, unknown orders, negative noise."""
        if max(self.size, self.patch) > 10_000:
            raise ValueError(f"size and patch are at most 10000 pixels, found {self.size} and {self.patch}")
        if min(self.size, self.patch) < 0 or (self.patch and self.size % self.patch):
            raise ValueError(f"size is a multiple of patch, both at least 0, found {self.size} and {self.patch}")
        if self.order not in (None, "rgb", "bgr"):
            raise ValueError(f"order is rgb, bgr or auto, found {self.order}")
        if self.noise < 0:
            raise ValueError(f"noise is at least 0, found {self.noise}")

    @property
    def random(self) -> bool:
        """Whether noise is added."""
        return self.noise > 0

    @cached_property
    def paths(self) -> tuple[Path, ...]:
        """The file of this package, or the authors' two files; `weights` names the encoder's."""
        first = files.find(self.kind, self.weights)
        if first.suffix != ".npy":
            return (first,)
        before, encoder, after = first.name.rpartition("enc")
        if not encoder:
            raise BadModelError(f"{first}: expected the encoder's file, enc*.npy; the decoder's is dec*.npy beside it")
        return first, files.find(self.kind, str(first.with_name(f"{before}dec{after}")))

    @property
    def swapped(self) -> bool:
        """Whether the networks get the channels in the order blue, green, red."""
        return (self.order or ("bgr" if str(self.weights).endswith(".npy") else "rgb")) == "bgr"

    def resolved(self) -> dict[str, Any]:
        """Every parameter; `order` is resolved to rgb or bgr."""
        return {**super().resolved(), "order": "bgr" if self.swapped else "rgb"}

    def read(self) -> tuple[dict[str, Any], State]:
        """See `Learned.read`; the authors' arrays are weights `[h, w, in, out]` and biases, alternating."""
        import torch

        from rdp_bench.weights.object_arrays import read_arrays

        if len(self.paths) == 1:
            return super().read()
        state: State = OrderedDict()
        for part, path in zip(("com", "rec"), self.paths, strict=True):
            for i, array in enumerate(read_arrays(path)):
                name = f"{part}.{i // 2 * 2}.{'bias' if i % 2 else 'weight'}"
                tensor = torch.from_numpy(array)
                state[name] = tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor
        return {}, state

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        """Reconstructions of `x` `[n, 3, h, h]`, of the same size, in [0, 1]."""
        from torch.nn.functional import interpolate, pad

        from rdp_bench.defenses._networks.comdefend import BITS, cut, join
        from rdp_bench.numerics import pieces
        from rdp_bench.numerics.precision import lowered

        net, own = self.net(x.device), x.shape[-1]
        x = x.detach().flip(1) if self.swapped else x.detach()
        if self.size not in (0, own):
            x = interpolate(x, self.size, mode="bicubic", antialias=True).clamp(0, 1)
        elif self.patch and own % self.patch:
            more = -own % self.patch
            x = pad(x, (0, more, 0, more), mode="reflect" if more < own else "replicate")
        side = self.patch or x.shape[-1]
        noise = cut(rng.normal(BITS, *x.shape[2:]) * self.noise, side) if self.noise else 0.0
        patches, images = cut(x, side), None if self.noise or not pieces.independent(net) else pieces.size(x)
        at_once = images and images * len(patches) // len(x)
        with lowered(x.device):
            out = join(pieces.computed(lambda part: net(part, noise).to(x.dtype), patches, at_once), len(x))
        if self.size not in (0, own):
            out = interpolate(out, own, mode="bicubic", antialias=True).clamp(0, 1)
        out = out[..., :own, :own]
        return out.flip(1) if self.swapped else out
