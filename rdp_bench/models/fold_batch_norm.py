"""A network whose weights need no gradient, made faster and left the same: batch-norms folded, ReLU6 in place."""

from typing import Any

import torch
from torch import Tensor, nn


def norm_pairs(net: nn.Module, example: Tensor) -> tuple[list[tuple[nn.Conv2d, nn.BatchNorm2d]], Tensor]:
    """Every batch-norm of `net` that directly follows a convolution, with it; and the network's output."""
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def after_conv(module: nn.Module, _: Any, out: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        made[id(out)] = (module, out)  # keeps `out` alive, so its id stays its own

    def before_norm(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        if id(args[0]) in made and module.affine and module.track_running_stats:
            pairs.append((made[id(args[0])][0], module))

    hooks = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(after_conv))
        elif isinstance(module, nn.BatchNorm2d):
            hooks.append(module.register_forward_pre_hook(before_norm))
    with torch.no_grad():
        out = net(example)
    for hook in hooks:
        hook.remove()
    return pairs, out


def fold_batch_norm(net: nn.Module, example: Tensor) -> int:
    """Put each batch-norm that directly follows a convolution into its weights; returns how many.

    Pairs are found by running `example` `[1, 3, h, w]`; the network must be in eval mode. Where the result
    differs by more than rounding (a convolution whose output is used twice), nothing is changed.
    """
    pairs, before = norm_pairs(net, example)
    owners = {id(child): (parent, name) for parent in net.modules() for name, child in parent.named_children()}
    convs, norms = [conv for conv, _ in pairs], [norm for _, norm in pairs]
    if len(set(convs)) < len(convs) or len(set(norms)) < len(norms):
        return 0  # a shared layer
    undo = []
    for conv, norm in pairs:
        parent, name = owners[id(norm)]
        undo.append((conv, conv.weight, conv.bias, parent, name, norm))
        conv.weight, conv.bias = _folded(conv, norm)
        setattr(parent, name, getattr(norm, "act", nn.Identity()))
    with torch.no_grad():
        after = net(example)
    if not torch.allclose(before, after, rtol=1e-3, atol=1e-3 * float(before.abs().max())):
        for conv, weight, bias, parent, name, norm in undo:
            conv.weight, conv.bias = weight, bias
            setattr(parent, name, norm)
        return 0
    return len(pairs)


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[nn.Parameter, nn.Parameter]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    # In double: the product of weight and scale is then rounded once.
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    bias = 0.0 if conv.bias is None else conv.bias.double()
    weight = conv.weight.double() * scale[:, None, None, None]
    shift = norm.bias.double() + (bias - norm.running_mean.double()) * scale
    return nn.Parameter(weight.float(), False), nn.Parameter(shift.float(), False)


class _Clip6(torch.autograd.Function):
    """ReLU6 in place that keeps its output for the backward pass, where torch's keeps a copy of its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = x.clamp_(0, 6)
        ctx.mark_dirty(x)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (out,) = ctx.saved_tensors
        # The gradient passes where 0 < x < 6, which is where 0 < clip(x) < 6.
        gradient: Tensor = torch.ops.aten.hardtanh_backward(grads[0], out, 0.0, 6.0)
        return gradient


class Clip6(nn.Module):
    """ReLU6 for networks whose weights need no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        """min(max(x, 0), 6), in place."""
        out: Tensor = _Clip6.apply(x)
        return out


def replace_relu6(net: nn.Module) -> None:
    """Exchange every in-place `nn.ReLU6` for `Clip6`."""
    for name, child in net.named_children():
        if isinstance(child, nn.ReLU6) and child.inplace:
            setattr(net, name, Clip6())
        else:
            replace_relu6(child)
