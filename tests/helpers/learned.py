"""Small networks of the learned defenses, and files of their weights."""

import io
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from rdp_bench import Learned, plugins
from rdp_bench.protocols import Purifier
from rdp_bench.registry import defense
from rdp_bench.rng import ImageRng
from rdp_bench.weights import files as weight_files

plugins.load()
TINY: dict[str, dict[str, Any]] = {
    "rdp": {"width": 4, "blocks": 1, "unshuffle": 2},
    "rdp-reconstruction": {"width": 4, "blocks": 1, "unshuffle": 2},
    "nrp": {"width": 4, "growth": 2, "blocks": 1, "unshuffle": 2},
    "nrp-resg": {"width": 4, "blocks": 1, "unshuffle": 1},
    "hgd": {"width": 2},
    "comdefend": {"widths": [4, 3]},
    "sr": {"width": 4, "blocks": 1},
    "denoiser": {"widths": [4, 6], "blocks": 1},
}


def made(text: str) -> Any:
    value = defense.resolve(text).value
    assert isinstance(value, Purifier)
    return value


def image_rng(n: int, seed: str = "") -> ImageRng:
    return ImageRng([f"{seed}{i}" for i in range(n)])


def photo(n: int = 1, size: int = 33, seed: int = 0) -> Tensor:
    noise = torch.rand(n, 3, 7, 7, generator=torch.Generator().manual_seed(seed))
    return (interpolate(noise, size=(size, size), mode="bicubic").clamp(0, 1) * 255).round() / 255


def stirred(net: nn.Module, seed: int = 0) -> nn.Module:
    """`net` with weights large enough that each of them matters, and batch-norms that do something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            elif tensor.is_floating_point():
                size = 0.1 if tensor.ndim < 2 else tensor[0].numel() ** -0.5
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * size)
    return net.eval()


def build(kind: str, **net: Any) -> nn.Module:
    """The untrained network of a built-in defense."""
    entry = defense.make(kind)
    assert isinstance(entry, Learned)
    return entry.build(**net)


def tiny(kind: str, seed: int = 0) -> nn.Module:
    return stirred(build(kind, **TINY[kind]), seed)


def ours(path: Path, kind: str, seed: int = 0) -> nn.Module:
    """A file as our trainer writes it, and the network in it."""
    net = tiny(kind, seed)
    weight_files.save(path, net.state_dict(), {"defense": kind, "net": TINY[kind], "card": {"steps": 3}}, half=False)
    return net


def conv(old: int, new: int, side: int = 3, bias: bool = True) -> int:
    return old * new * side**2 + new * bias


def comdefend_arrays(path: Path, widths: list[int], seed: int, pack: bool = True) -> list[np.ndarray]:
    """A file as the authors' TensorFlow wrote it: weights `[3, 3, in, out]` and biases in turn."""
    rng = np.random.default_rng(seed)
    arrays: list[np.ndarray] = []
    for old, new in pairwise(widths):
        arrays.append((rng.standard_normal((3, 3, old, new)) * (1.5 / (9 * old)) ** 0.5).astype(np.float32))
        arrays.append((rng.standard_normal(new) * 0.1).astype(np.float32))
    listed = np.empty(len(arrays), object)
    listed[:] = arrays
    file = io.BytesIO()
    np.save(file, listed, allow_pickle=True)
    if pack:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as box:
            box.writestr("w.npy", file.getvalue())
    else:
        path.write_bytes(file.getvalue())
    return arrays


def shuffled(x: Tensor) -> Tensor:
    """Channels to pixels, one by one: four neighbours in reading order are one colour's."""
    n, channels, height, width = x.shape
    out = torch.zeros(n, channels // 4, 2 * height, 2 * width)
    for c in range(channels // 4):
        for a in range(2):
            for b in range(2):
                out[:, c, a::2, b::2] = x[:, 4 * c + 2 * a + b]
    return out


class Trap:
    """A pickle that runs code where it is loaded carelessly."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)
