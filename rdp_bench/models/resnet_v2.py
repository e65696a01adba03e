"""TF-slim's ResNet-v2, which neither timm nor torchvision has: `resnet-v2-101` and `resnet-v2-152`.

Pre-activation bottlenecks (He et al. 2016, "Identity mappings") with slim's choices (tensorflow/models,
slim/nets/resnet_v2.py and resnet_utils.py): a block strides in its *last* unit, at the 3 x 3 convolution, where the
shortcut takes every other pixel; the 7 x 7 root convolution has a bias and no norm, its pooling TensorFlow's SAME
padding; one more norm at the end; 1001 classes, of which 0 is background.
"""

import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from rdp_bench.models.family import Family
from rdp_bench.weights.files import State
from rdp_bench.weights.legacy import read_mmdnn, read_tf_checkpoint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

UNITS = {"resnet-v2-101": (3, 4, 23, 3), "resnet-v2-152": (3, 8, 36, 3)}
"""Units of the four blocks, by the name of the architecture on a model card."""

EPSILON = 1.001e-5
"""slim uses 1e-5; TensorFlow's fused batch-norm raises it to the minimum of cuDNN."""


class Unit(nn.Module):
    """A bottleneck: norm and ReLU before each of its three convolutions, nothing after the sum."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.preact = nn.BatchNorm2d(channels, EPSILON)
        # Only where the number of channels grows, in the first unit of a block; never together with a stride.
        self.shortcut = nn.Conv2d(channels, 4 * width, 1) if channels != 4 * width else None
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width, EPSILON)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width, EPSILON)
        self.conv3 = nn.Conv2d(width, 4 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[n, channels, h, w]` to `[n, 4 * width, h / stride, w / stride]`, rounded up."""
        active = self.preact(x).relu_()
        short = x[..., :: self.stride, :: self.stride] if self.shortcut is None else self.shortcut(active)
        inner = self.norm1(self.conv1(active)).relu_()
        inner = self.norm2(self.conv2(inner)).relu_()
        out: Tensor = short + self.conv3(inner)
        return out


class ResNetV2(nn.Module):
    """The network, for images in [-1, 1]; it provides feature maps with the interface of timm."""

    def __init__(self, units: tuple[int, ...], classes: int = 1001) -> None:
        super().__init__()
        self.num_classes = classes
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3)
        self.blocks = nn.ModuleList()
        channels = 64
        for number, count in enumerate(units):
            last = 1 if number == len(units) - 1 else 2
            block = nn.Sequential()
            for unit in range(1, count + 1):
                block.append(Unit(channels, 64 << number, last if unit == count else 1))
                channels = 256 << number
            self.blocks.append(block)
        self.postnorm = nn.BatchNorm2d(channels, EPSILON)
        self.logits = nn.Conv2d(channels, classes, 1)
        self.feature_info = [{"module": name} for name in ("conv1", *(f"blocks.{i}" for i in range(len(units))))]

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[n, classes]` of `x` `[n, 3, h, h]` of any size; slim's is 299."""
        out: Tensor = self.logits(self.forward_features(x).mean((2, 3), keepdim=True)).flatten(1)
        return out

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last map before pooling, `[n, channels, h / 32, h / 32]`, rounded up."""
        out: Tensor = self.postnorm(self.forward_intermediates(x, [len(self.blocks)])[0]).relu_()
        return out

    def forward_intermediates(self, x: Tensor, indices: list[int], **_: bool) -> list[Tensor]:
        """Return the outputs of the root convolution (index 0) and the blocks (from 1), as far as `indices` needs."""
        maps = [self.conv1(x)]
        x = same_pool(maps[0])
        for block in self.blocks[: max(indices)]:
            x = block(x)
            maps.append(x)
        return [maps[index] for index in indices]


def same_pool(x: Tensor) -> Tensor:
    """Return 3 x 3 maxima with stride 2 of `[n, c, h, h]`, with TensorFlow's SAME padding.

    It pads one pixel on every side if h is odd, and only below and to the right if h is even.
    """
    return max_pool2d(x, 3, 2, padding=x.shape[-1] % 2, ceil_mode=True)


# --- weights under TensorFlow's names --------------------------------------------------------------------

_NAME = re.compile(
    r"resnet_v2_\d+/(?:block(?P<block>\d)/unit_(?P<unit>\d+)/bottleneck_v2/)?"
    r"(?P<layer>conv\d|preact|shortcut|postnorm|logits)(?P<norm>/BatchNorm)?"
    r"(?P<node>/Conv2D|/FusedBatchNorm\w*)?/(?P<part>\w+)"
)
_PART = {
    "weights": "weight", "scale": "weight", "gamma": "weight",
    "bias": "bias", "biases": "bias", "beta": "bias",
    "mean": "running_mean", "moving_mean": "running_mean",
    "var": "running_var", "moving_variance": "running_var",
}  # fmt: skip


def from_tensorflow(named: "Mapping[str, NDArray[np.float32]]") -> State:
    """Return the state dict for a checkpoint of slim, or for its conversion by MMdnn (ylhz/tf_to_pytorch_model).

    A variable is `resnet_v2_101/block1/unit_2/bottleneck_v2/conv1/weights`, `[h, w, in, out]`; MMdnn uses the name
    of the graph's node, `.../conv1/Conv2D/weights`, and the order `[out, in, h, w]`. Other names are dropped.
    """
    state: State = OrderedDict()
    for name, array in named.items():
        found = _NAME.fullmatch(name)
        if found is None or found["part"] not in _PART:
            continue
        layer = found["layer"].replace("conv", "norm") if found["norm"] else found["layer"]
        if found["block"]:
            layer = f"blocks.{int(found['block']) - 1}.{int(found['unit']) - 1}.{layer}"
        turned = array.transpose(3, 2, 0, 1) if array.ndim == 4 and not found["node"] else array
        part = _PART[found["part"]]
        state[f"{layer}.{part}"] = torch.tensor(turned)
        if part == "running_var":
            state[f"{layer}.num_batches_tracked"] = torch.tensor(0)
    return state


FAMILY = Family(
    UNITS,
    ResNetV2,
    {
        ".npy": lambda path: from_tensorflow(read_mmdnn(path)),
        ".ckpt": lambda path: from_tensorflow(read_tf_checkpoint(path)),
    },
)
