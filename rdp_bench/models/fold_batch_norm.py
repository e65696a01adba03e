"""Optimisation of a network whose weights need no gradient: batch-norms and ReLU6 are folded into convolutions."""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rdp_bench.numerics import fixed_layers

C = TypeVar("C", bound=nn.Module)
D = TypeVar("D", bound=nn.Module)


def _followed(net: nn.Module, example: Tensor, first: type[C], second: type[D]) -> tuple[list[tuple[C, D]], Tensor]:
    """Return the pairs of modules in which a `second` gets the output of a `first`, and the output for `example`."""
    made: dict[int, tuple[C, Tensor]] = {}
    pairs: list[tuple[C, D]] = []

    def after(module: nn.Module, _: Any, out: Tensor) -> None:
        assert isinstance(module, first)
        made[id(out)] = (module, out)  # keeps `out` alive, so its id stays its own

    def before(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(module, second)
        if id(args[0]) in made:
            pairs.append((made[id(args[0])][0], module))

    hooks = []
    for module in net.modules():
        if isinstance(module, first):
            hooks.append(module.register_forward_hook(after))
        elif isinstance(module, second):
            hooks.append(module.register_forward_pre_hook(before))
    with torch.no_grad():
        out = net(example)
    for hook in hooks:
        hook.remove()
    return pairs, out


def norm_pairs(net: nn.Module, example: Tensor) -> tuple[list[tuple[nn.Conv2d, nn.BatchNorm2d]], Tensor]:
    """Return (convolution, batch-norm) pairs of `net` where the norm directly follows, and the output for `example`."""
    pairs, out = _followed(net, example, nn.Conv2d, nn.BatchNorm2d)
    return [(conv, norm) for conv, norm in pairs if norm.affine and norm.track_running_stats], out


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
    if not _close(before, after):
        for conv, weight, bias, parent, name, norm in undo:
            conv.weight, conv.bias = weight, bias
            setattr(parent, name, norm)
        return 0
    return len(pairs)


def _close(before: Tensor, after: Tensor) -> bool:
    """Whether the outputs differ by rounding only."""
    return torch.allclose(before, after, rtol=1e-3, atol=1e-3 * float(before.abs().max()))


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[nn.Parameter, nn.Parameter]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    # In double precision, so that the product of weight and scale is rounded once.
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    bias = 0.0 if conv.bias is None else conv.bias.double()
    weight = conv.weight.double() * scale[:, None, None, None]
    shift = norm.bias.double() + (bias - norm.running_mean.double()) * scale
    return nn.Parameter(weight.float(), False), nn.Parameter(shift.float(), False)


class Clip6(nn.Module):
    """ReLU6 for networks whose weights need no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        """min(max(x, 0), 6), in place."""
        out: Tensor = fixed_layers.Clip6.apply(x)
        return out


def fuse_relu6(net: nn.Module, example: Tensor) -> None:
    """Replace every in-place `nn.ReLU6`: by the `clip` of the convolution that it directly follows, or by `Clip6`.

    Args:
        net: a network whose convolutions are `fixed_layers.Convolution`; changed in place.
        example: an input `[1, 3, h, w]`; the pairs are found by running it.
    """
    pairs, before = _followed(net, example, fixed_layers.Convolution, nn.ReLU6)
    convs, clips = [conv for conv, _ in pairs], [clip for _, clip in pairs]
    fused = {clip: conv for conv, clip in pairs if convs.count(conv) == clips.count(clip) == 1 and clip.inplace}
    places = [(parent, name, child) for parent in net.modules() for name, child in parent.named_children()]
    for parent, name, child in places:
        if child in fused:
            fused[child].clip = True
            setattr(parent, name, nn.Identity())
        elif isinstance(child, nn.ReLU6) and child.inplace:
            setattr(parent, name, Clip6())
    with torch.no_grad():
        after = net(example)
    if not _close(before, after):  # something between the two reads the output of the convolution
        for parent, name, child in places:
            if child in fused:
                fused[child].clip = False
                setattr(parent, name, Clip6())
