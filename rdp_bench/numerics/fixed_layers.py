"""Convolutions and linear layers with fixed weights: on a CPU, one algorithm for every thread count and batch size.

torch computes a 1 x 1 convolution of fewer than 16 images on one thread by another algorithm than on several, and the
sums of its matrix products depend on the number of rows and threads: the last bits of a gradient differ, and then the
sign of a step. Here oneDNN's convolution computes both. torch's own operators run where oneDNN is missing, on a GPU,
under autocast, and where weights are trained.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

CLIP = 6.0
"""Upper end of ReLU6."""

KEPT = 4
"""Forms of a layer's weights that are kept at a time; each takes the memory of the weights."""


class Fixed(nn.Module):
    """What the layers share: weights `[out, in, ...]` that need no gradient, and the forms of them that were made."""

    weight: Any
    bias: Any
    groups: int = 1
    clip: bool = False  # whether ReLU6 follows

    def __getstate__(self) -> dict[str, Any]:
        # The weights of a copy may be changed, so it makes its own forms of them.
        return {**self.__dict__, "_made": {}}

    def _fits(self, x: Tensor) -> bool:
        return (
            AVAILABLE
            and type(x) is Tensor
            and x.device.type == self.weight.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and not self.weight.requires_grad
            and not torch.is_autocast_enabled("cpu")
        )

    def kept(self, what: tuple[Any, ...], make: Callable[[], Tensor]) -> Tensor:
        """A form of the weights, made again after they changed."""
        made: dict[Any, Tensor] = self._made  # type: ignore[assignment]
        name = (*what, self.weight._version, self.weight.data_ptr())
        found = made.get(name)
        if found is None:  # another thread may add or clear forms
            with torch.inference_mode(mode=False):  # for calls with a gradient, too
                found = make()
            if len(made) >= KEPT:
                made.clear()
            made[name] = found
        return found

    def pointwise(self, x: Tensor) -> Tensor:
        """The layer's 1 x 1 convolution of `[n, in, h, w]`, and ReLU6 if it clips; differentiable in `x`."""
        if x.requires_grad and torch.is_grad_enabled():
            out: Tensor = _Pointwise.apply(x, self)
            return out
        return onednn(x, self._kernel(), self.bias, groups=self.groups, clip=self.clip)

    def _kernel(self) -> Tensor:
        kernel: Tensor = self.weight if self.weight.dim() == 4 else self.weight[:, :, None, None]
        return kernel

    def gradient_kernel(self) -> Tensor:
        """The kernel of the gradient, `[in, out / groups, 1, 1]`."""
        each = self.weight.reshape(self.groups, self.weight.shape[0] // self.groups, -1)
        kernel: Tensor = each.mT.reshape(-1, each.shape[1], 1, 1).contiguous(memory_format=torch.channels_last)
        return kernel


class _Pointwise(torch.autograd.Function):
    """A 1 x 1 convolution, and ReLU6 of it if the layer clips; its gradient is one with the transposed kernel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Fixed) -> Tensor:
        ctx.layer = layer
        out = onednn(x, layer._kernel(), layer.bias, groups=layer.groups, clip=layer.clip)
        if layer.clip:
            ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        layer: Fixed = ctx.layer
        grad = grads[0].contiguous(memory_format=torch.channels_last)
        if layer.clip:
            grad = _unclipped(grad, *ctx.saved_tensors)
        kernel = layer.kept(("transposed",), layer.gradient_kernel)
        if torch.is_grad_enabled():  # create_graph: the gradient is differentiated itself
            return conv2d(grad, kernel, groups=layer.groups), None
        return onednn(grad, kernel, None, groups=layer.groups), None


class _Clipped(torch.autograd.Function):
    """ReLU6 of a convolution, in one operation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Convolution, padding: list[int], more: list[int]) -> Tensor:
        ctx.kernel = layer.kernel_for(more)
        ctx.where = layer.stride, padding, layer.dilation
        ctx.groups = layer.groups
        out = onednn(x, ctx.kernel, layer.bias, padding, layer.stride, layer.dilation, layer.groups, clip=True)
        ctx.save_for_backward(x, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        x, out = ctx.saved_tensors
        grad = _unclipped(grads[0], out)
        found = torch.ops.aten.convolution_backward(
            grad, x, ctx.kernel, None, *ctx.where, False, [0, 0], ctx.groups, [True, False, False]
        )
        return found[0], None, None, None


class Convolution(nn.Conv2d, Fixed):
    """`nn.Conv2d`, or timm's `Conv2dSame`, with ReLU6 behind it if `clip` is set."""

    def __init__(self, layer: nn.Conv2d, *, same: bool = False) -> None:
        super().__init__(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,  # type: ignore[arg-type]
            layer.dilation,  # type: ignore[arg-type]
            layer.groups, layer.bias is not None, device="meta",
        )  # fmt: skip
        self.same = same
        """Whether it pads as TensorFlow's SAME: by input size, and at the end one pixel more where it is odd."""
        self.clip = False
        self.weight, self.bias, self.training = layer.weight, layer.bias, layer.training
        self._made: dict[Any, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """`[n, in, h, w]` to `[n, out, h', w']`."""
        fits = self._fits(x)
        ends = [self._ends(size, dim) for dim, size in enumerate(x.shape[-2:])]
        if any(first != last for first, last in ends) and not (fits and self.groups > 1):
            x = pad(x, (*ends[1], *ends[0]))
            ends = [(0, 0), (0, 0)]
        # One pixel less at the start than at the end: a kernel with a row of zeros before its first one. For depthwise
        # kernels only: the gradient of others would depend on the thread count.
        more, padding = [last - first for first, last in ends], [last for _, last in ends]
        if fits and not (x.requires_grad and torch.is_grad_enabled()):
            return self._fused(x, padding, more)
        if fits and self.kernel_size == (1, 1) and self.stride == (1, 1) and not any(padding):
            return self.pointwise(x)
        if fits and self.clip:
            clipped: Tensor = _Clipped.apply(x, self, padding, more)
            return clipped
        out = conv2d(x, self.kernel_for(more), self.bias, self.stride, padding, self.dilation, self.groups)
        return Clip6.apply(out) if self.clip else out

    def kernel_for(self, more: list[int]) -> Tensor:
        """The kernel with `more` rows and columns of zeros before its first ones."""
        return self.kept(("extended", *more), lambda: self._extended(more)) if any(more) else self.weight

    def _fused(self, x: Tensor, padding: list[int], more: list[int]) -> Tensor:
        """Convolution and clip in one operation, with weights in the order that oneDNN reads them in."""
        where = (padding, list(self.stride), list(self.dilation), self.groups)

        def pack() -> Tensor:
            kernel: Tensor = torch.ops.mkldnn._reorder_convolution_weight(self._extended(more), *where, list(x.shape))
            return kernel

        return onednn(x, self.kept(("packed", *padding, x.shape), pack), self.bias, *where, clip=self.clip)

    def _ends(self, size: int, dim: int) -> tuple[int, int]:
        """Pixels of padding before the first and after the last row."""
        if not self.same:
            return self.padding[dim], self.padding[dim]  # type: ignore[return-value]
        stride, reach = self.stride[dim], self.kernel_size[dim]
        total = max((-(-size // stride) - 1) * stride + reach - size, 0)
        return total // 2, total - total // 2

    def _extended(self, more: list[int]) -> Tensor:
        if not any(more):
            return self.weight
        return pad(self.weight, (more[1], 0, more[0], 0)).contiguous(memory_format=torch.channels_last)


class Linear(nn.Linear, Fixed):
    """`nn.Linear` as a 1 x 1 convolution of images of one pixel."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias, self.training = layer.weight, layer.bias, layer.training
        self._made: dict[Any, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """`[n, in]` to `[n, out]`; tensors of other dimensions as torch does it."""
        if x.dim() != 2 or not self._fits(x):
            return super().forward(x)
        return self.pointwise(x[:, :, None, None])[:, :, 0, 0]


class Clip6(torch.autograd.Function):
    """In-place ReLU6 that saves its output for the backward pass; torch's saves a copy of its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = x.clamp_(0, CLIP)
        ctx.mark_dirty(x)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _unclipped(grads[0], *ctx.saved_tensors)


def _unclipped(grad: Tensor, out: Tensor) -> Tensor:
    """The gradient of ReLU6 by its output: it passes where 0 < x < 6, which is where 0 < clip(x) < 6."""
    gradient: Tensor = torch.ops.aten.hardtanh_backward(grad, out, 0.0, CLIP)
    return gradient


ONE, NONE = (1, 1), (0, 0)


def onednn(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    padding: Any = NONE,
    stride: Any = ONE,
    dilation: Any = ONE,
    groups: int = 1,
    *,
    clip: bool = False,
) -> Tensor:
    """A convolution by oneDNN, and ReLU6 of it with `clip`; not differentiable."""
    attribute, limits = ("hardtanh", [0.0, CLIP]) if clip else ("none", [])
    out: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, kernel, bias, padding, stride, dilation, groups, attribute, limits, ""
    )
    return out


def available() -> bool:
    """Whether this torch has oneDNN's convolution and what packs its weights."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    x = torch.zeros(1, 1, 1, 1)
    try:
        onednn(x, torch.ops.mkldnn._reorder_convolution_weight(x, NONE, ONE, ONE, 1, [1] * 4), None, clip=True)
    except (AttributeError, RuntimeError):
        return False
    return True


AVAILABLE = available()


def fix_layers(net: nn.Module, *same: type[nn.Conv2d]) -> nn.Module:
    """Replace the convolutions and linear layers in `net`, in place; of other types than torch's own they stay.

    Args:
        net: a network whose weights need no gradient.
        same: types of convolutions that pad as TensorFlow's SAME.
    """
    for name, child in net.named_children():
        if type(child) is nn.Linear:
            setattr(net, name, Linear(child))
        elif type(child) is nn.Conv2d and child.padding_mode == "zeros" and not isinstance(child.padding, str):
            setattr(net, name, Convolution(child))
        elif isinstance(child, same) and child.dilation == ONE:
            setattr(net, name, Convolution(child, same=True))
        else:
            fix_layers(child, *same)
    return net
