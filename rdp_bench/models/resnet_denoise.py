"""ResNet-152 with feature denoising, adversarially trained by its authors: `resnet152-denoise`.

Xie et al. 2019, "Feature Denoising for Improving Adversarial Robustness", Sec. 4.2 and 6, and their released code's
choices (facebookresearch/ImageNet-Adversarial-Training): bottlenecks that stride at the 3 x 3 convolution, no bias
before a norm, TensorFlow's SAME padding, and a denoising block after the last bottleneck of each group. Their
input is BGR and ours is RGB; `from_tensorpack` reverses the channels of the first convolution.
"""

import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from rdp_bench.models.family import Family
from rdp_bench.models.resnet_v2 import EPSILON, same_pool
from rdp_bench.weights.files import State
from rdp_bench.weights.legacy import read_npz

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

UNITS = {"resnet152-denoise": (3, 8, 36, 3)}
"""Bottlenecks of the four groups, by the name of the architecture on a model card."""


class SameConv(nn.Conv2d):
    """A convolution without bias, with TensorFlow's SAME padding: an odd pixel is added below and to the right."""

    def __init__(self, before: int, after: int, size: int, stride: int = 1) -> None:
        super().__init__(before, after, size, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[n, before, h, w]` to `[n, after, h / stride, w / stride]`, rounded up."""
        sides = []
        for length in (x.shape[-1], x.shape[-2]):
            total = max((-(-length // self.stride[0]) - 1) * self.stride[0] + self.kernel_size[0] - length, 0)
            sides += [total // 2, total - total // 2]
        return super().forward(pad(x, sides) if any(sides) else x)


class Bottleneck(nn.Module):
    """A bottleneck with a norm after each convolution, and ReLU after the first two and after the sum."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = SameConv(channels, width, 1)
        self.norm1 = nn.BatchNorm2d(width, EPSILON)
        self.conv2 = SameConv(width, width, 3, stride)
        self.norm2 = nn.BatchNorm2d(width, EPSILON)
        self.conv3 = SameConv(width, 4 * width, 1)
        self.norm3 = nn.BatchNorm2d(4 * width, EPSILON)
        self.wider = channels != 4 * width
        if self.wider:
            self.convshortcut = SameConv(channels, 4 * width, 1, stride)
            self.normshortcut = nn.BatchNorm2d(4 * width, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[n, channels, h, w]` to `[n, 4 * width, h / stride, w / stride]`, rounded up."""
        short = self.normshortcut(self.convshortcut(x)) if self.wider else x
        inner = self.norm1(self.conv1(x)).relu_()
        inner = self.norm2(self.conv2(inner)).relu_()
        out: Tensor = (short + self.norm3(self.conv3(inner))).relu_()
        return out


class Denoising(nn.Module):
    """Adds a non-local mean of the features (embedded Gaussian) after a 1 x 1 convolution (Fig. 4, Eq. 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.theta = SameConv(channels, channels // 2, 1)
        self.phi = SameConv(channels, channels // 2, 1)
        self.conv = SameConv(channels, channels, 1)
        self.norm = nn.BatchNorm2d(channels, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[n, channels, h, w]` to the same shape."""
        theta, phi = self.theta(x).flatten(2), self.phi(x).flatten(2)
        share = (theta.mT @ phi / theta.shape[1] ** 0.5).softmax(-1)  # [n, h w, h w]: attention weights
        mean = (x.flatten(2) @ share.mT).view(x.shape)
        out: Tensor = x + self.norm(self.conv(mean))
        return out


class ResNetDenoise(nn.Module):
    """The network, for RGB images in [-1, 1]."""

    def __init__(self, units: tuple[int, ...], classes: int = 1000) -> None:
        super().__init__()
        self.num_classes = classes
        self.conv0 = SameConv(3, 64, 7, 2)
        self.norm0 = nn.BatchNorm2d(64, EPSILON)
        self.groups, self.denoise = nn.ModuleList(), nn.ModuleList()
        channels = 64
        for number, count in enumerate(units):
            group = nn.Sequential()
            for unit in range(count):
                group.append(Bottleneck(channels, 64 << number, 2 if number and not unit else 1))
                channels = 256 << number
            self.groups.append(group)
            self.denoise.append(Denoising(channels))
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[n, classes]` of `x` `[n, 3, h, h]`; the authors' size is 224."""
        x = same_pool(self.norm0(self.conv0(x)).relu_())
        for group, denoise in zip(self.groups, self.denoise, strict=True):
            x = denoise(group(x))
        out: Tensor = self.linear(x.mean((2, 3)))
        return out


# --- weights under tensorpack's names --------------------------------------------------------------------

_NAME = re.compile(
    r"(?:group(?P<group>\d)(?:/block(?P<block>\d+)|_denoise)/)?"
    r"(?P<layer>conv\d?|convshortcut|embedding_theta|embedding_phi|linear)(?P<norm>/bn)?"
    r"/(?P<part>W|b|gamma|beta|mean/EMA|variance/EMA)(?::0)?"
)
_PART = {
    "W": "weight", "b": "bias", "gamma": "weight", "beta": "bias",
    "mean/EMA": "running_mean", "variance/EMA": "running_var",
}  # fmt: skip


def from_tensorpack(named: "Mapping[str, NDArray[np.float32]]") -> State:
    """Return the state dict for the variables of the authors' network as tensorpack saved them.

    A variable is `group0/block2/conv1/W`, `[h, w, in, out]`, its norm `group0/block2/conv1/bn/gamma`, a denoising
    block's `group0_denoise/embedding_theta/W`. Other names (global_step, learning_rate) are dropped.
    """
    state: State = OrderedDict()
    for name, array in named.items():
        found = _NAME.fullmatch(name)
        if found is None:
            continue
        layer = found["layer"].removeprefix("embedding_")
        layer = layer.replace("conv", "norm") if found["norm"] else layer
        if found["block"]:
            layer = f"groups.{found['group']}.{found['block']}.{layer}"
        elif found["group"]:
            layer = f"denoise.{found['group']}.{layer}"
        turned = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        if name.startswith("conv0/W"):
            turned = turned[:, ::-1]  # BGR -> RGB
        part = _PART[found["part"]]
        state[f"{layer}.{part}"] = torch.tensor(turned.copy())
        if part == "running_var":
            state[f"{layer}.num_batches_tracked"] = torch.tensor(0)
    return state


FAMILY = Family(UNITS, ResNetDenoise, {".npz": lambda path: from_tensorpack(read_npz(path))})
