"""Optimisation of a network whose weights need no gradient: batch-norms are folded, ReLU6 works in place."""

from typing import Any

import torch
from torch import Tensor, nn


def norm_pairs(net: nn.Module, example: Tensor) -> tuple[list[tuple[nn.Conv2d, nn.BatchNorm2d]], Tensor]:
    """Return (convolution, batch-norm) pairs of `net` where the norm directly follows, and the output for `example`."""
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
    """Fold each batch-norm that directly follows a convolution into its weights.

    If the result differs by more than rounding (the output of a convolution is used twice), the network is restored.

    Args:
        net: the network, in eval mode; changed in place.
        example: an input `[1, 3, h, w]`; the pairs are found by running it.

    Returns:
        How many batch-norms were folded.
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
    # In double precision, so that the product of weight and scale is rounded once.
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    bias = 0.0 if conv.bias is None else conv.bias.double()
    weight = conv.weight.double() * scale[:, None, None, None]
    shift = norm.bias.double() + (bias - norm.running_mean.double()) * scale
    return nn.Parameter(weight.float(), False), nn.Parameter(shift.float(), False)


class _Clip6(torch.autograd.Function):
    """In-place ReLU6 that saves its output for the backward pass; torch's saves a copy of its input."""

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
    """Replace every in-place `nn.ReLU6` by `Clip6`."""
    for name, child in net.named_children():
        if isinstance(child, nn.ReLU6) and child.inplace:
            setattr(net, name, Clip6())
        else:
            replace_relu6(child)
