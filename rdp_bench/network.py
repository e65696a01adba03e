"""timm networks as pixel-space classifiers, prepared for input gradients. Imported only when torch is needed."""

import hashlib
import logging
import pickle
import warnings
from collections import OrderedDict
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from rdp_bench.errors import BadModelError, unknown
from rdp_bench.models import NUMERICS, Card, Member

log = logging.getLogger(__name__)


class PixelClassifier(nn.Module):
    """A network behind its own preprocessing; see `protocols.Classifier`."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, card: Card, weights_hash: str) -> None:
        super().__init__()
        self.net = net
        self.card = card
        self.name = card.name
        self.weights_hash = weights_hash
        self.register_buffer("mean", torch.tensor(card.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(card.std).view(1, 3, 1, 1))
        self.classes = int(getattr(net, "num_classes", 1000)) - card.label_offset
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor, zoom: float = 1.0) -> Tensor:
        """Logits `[n, classes]` of `x` `[n, 3, h, h]` in [0, 1]; see `protocols.Classifier`."""
        return self._logits(resize(x, self._size(zoom), self.card.interpolation, self.card.crop))

    def taken(self, x: Tensor, rows: Tensor, columns: Tensor, zoom: float = 1.0) -> Tensor:
        """`forward` of `take_pixels(x, rows, columns)`, but for rounding, without ever making that image.

        Taking pixels is as linear and separable as resizing is: one pair of matrices an image does both.
        Grey is zero here, so padding is what no pixel reaches.
        """
        matrix = _resize_matrix(
            rows.shape[1], self._size(zoom), self.card.interpolation, self.card.crop, torch.device(x.device)
        )
        down, across = (_take_matrix(matrix, index.to(x.device), x.shape[-1]) for index in (rows, columns))
        n, c, h, w = x.shape
        # The products over all channels at once need no copies of the matrices.
        x = torch.bmm((x - 0.5).view(n, c * h, w), across.mT).view(n, c, h, -1)
        return self._logits(down[:, None] @ x + 0.5)

    def _size(self, zoom: float) -> int:
        return self.card.input_size if self.card.fixed_size else round(self.card.input_size * zoom)

    def _logits(self, x: Tensor) -> Tensor:
        x = ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.net(x)
        return logits[:, self.card.label_offset :]

    def record(self) -> dict[str, Any]:
        """Identity for cache keys; the same as `Member.record` of its card."""
        return {"weights": self.weights_hash, "numerics": NUMERICS}


@lru_cache(maxsize=64)
def _resize_matrix(old: int, new: int, mode: str, crop: float, device: torch.device) -> Tensor:
    whole = round(new / crop)
    eye = torch.eye(old)[None, None]
    # Down the columns only; no antialiasing, as in the TF pipelines these networks were trained with.
    matrix = interpolate(eye, size=(whole, old), mode=mode, align_corners=False)[0, 0]
    margin = (whole - new) // 2
    return matrix[margin : margin + new].contiguous().to(device)


def resize(x: Tensor, size: int, mode: str = "bicubic", crop: float = 1.0) -> Tensor:
    """The central `crop` of square images `[n, 3, h, h]`, resized to `[n, 3, size, size]`.

    Resizing is linear and separable: R x R^T. Two matrix products cost less than `interpolate` and its
    backward pass, and their sums have a fixed order on every device.
    """
    old = x.shape[-1]
    if old == size and crop == 1:
        return x
    matrix = _resize_matrix(old, size, mode, crop, x.device)
    return matrix @ x @ matrix.T


def _take_matrix(matrix: Tensor, index: Tensor, size: int) -> Tensor:
    """`matrix` `[new, old]` after taking `old` entries of `size`, for each row of `index` `[n, old]`; -1 takes none."""
    n, new = len(index), len(matrix)
    where = torch.where(index < 0, size, index)[:, None].expand(n, new, -1)
    out = matrix.new_zeros(n, new, size + 1).scatter_add_(2, where, matrix.expand(n, -1, -1))
    return out[:, :, :size]


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


def fold_batch_norm(net: nn.Module, example: Tensor) -> int:
    """Put each batch-norm that directly follows a convolution into its weights; returns how many.

    Pairs are found by running `example` `[1, 3, h, w]`; the network must be in eval mode. Where the result
    differs by more than rounding (a convolution whose output is used twice), nothing is changed.
    """
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
        before = net(example)
    for hook in hooks:
        hook.remove()
    made.clear()
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


def replace_relu6(net: nn.Module) -> None:
    """Exchange every in-place `nn.ReLU6` for `Clip6`."""
    for name, child in net.named_children():
        if isinstance(child, nn.ReLU6) and child.inplace:
            setattr(net, name, Clip6())
        else:
            replace_relu6(child)


_loaded: dict[tuple[str, str, str], PixelClassifier] = {}


def load(member: Member, device: str) -> PixelClassifier:
    """The classifier of `member` on `device`, prepared; kept for the length of the process.

    Raises:
        BadModelError: weights that cannot be read or do not fit the architecture.
    """
    name = (member.card.name, str(member.file), device)
    if name not in _loaded:
        _loaded[name] = _load(member).to(device)
    return _loaded[name]


def _load(member: Member) -> PixelClassifier:
    import timm

    card = member.card
    arch = card.arch.removeprefix("timm:")
    try:
        if member.file is None:
            net = timm.create_model(arch, pretrained=True, **card.kwargs)
        else:
            net = timm.create_model(arch.partition(".")[0], pretrained=False, **card.kwargs)
    except Exception as error:  # timm and its hub raise many kinds; each means "no weights"
        raise BadModelError(
            f"model {card.name}: timm could not provide '{arch}' ({type(error).__name__}: {error}). Without network, "
            f"put its weights as {card.name}.safetensors into a folder and pass it as --models-dir"
        ) from error
    if member.file is not None:
        fill(net, read_weights(member.file), card, member.file)
        weights_hash = member.weights_hash()
    else:
        weights_hash = _state_hash(net)
    net.requires_grad_(False).eval()
    net.to(memory_format=torch.channels_last)
    count = fold_batch_norm(
        net, torch.rand(1, 3, card.input_size, card.input_size, generator=torch.Generator().manual_seed(0))
    )
    replace_relu6(net)
    log.info("%s: %d batch-norms folded", card.name, count)
    return PixelClassifier(net, card, weights_hash)


def read_weights(path: Path) -> "OrderedDict[str, Tensor]":
    """Tensors of a `.safetensors` file, or of a `.pth`/`.pt` one read with `weights_only`; never a pickle.

    Raises:
        BadModelError: not such a file, damaged, or holding anything but tensors.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a refusal is reported below, in our words
                found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each reader has its own kinds; all mean the same
        why = "holds more than tensors" if isinstance(error, pickle.UnpicklingError) else "damaged, or no weight file"
        raise BadModelError(
            f"{path.name}: refused ({why}). Only plain tensors are read: .safetensors, or .pth that torch loads "
            "with weights_only"
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    if not isinstance(found, dict) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        raise BadModelError(f"{path}: expected a dictionary of tensors, found {type(found).__name__}")
    return OrderedDict(found)


def fill(net: nn.Module, state: "OrderedDict[str, Tensor]", card: Card, path: Path) -> None:
    """Load `state` into `net`; every tensor must fit.

    Raises:
        BadModelError: names or shapes differ; the message lists the first ones.
    """
    wanted = net.state_dict()
    if card.in_order and not set(state) & set(wanted):
        if len(state) != len(wanted):
            raise BadModelError(f"{path}: holds {len(state)} tensors, {card.arch} has {len(wanted)}")
        state = OrderedDict(zip(wanted, state.values(), strict=True))
    missing, extra = [n for n in wanted if n not in state], [n for n in state if n not in wanted]
    shapes = [
        f"{n}: {list(state[n].shape)} instead of {list(wanted[n].shape)}"
        for n in wanted
        if n in state and state[n].shape != wanted[n].shape
    ]
    problems = [f"missing {n}" for n in missing] + [f"unexpected {n}" for n in extra] + shapes
    if problems:
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        raise BadModelError(f"{path} does not fit {card.arch}: {shown}")
    if not all(torch.isfinite(tensor).all() for tensor in state.values() if tensor.is_floating_point()):
        raise BadModelError(f"{path}: holds NaN or infinite weights")
    net.load_state_dict(state)


def timm_card(label: str, *, pretrained: bool) -> Card:
    """The card of `timm:<name>`, from timm's own record of the model."""
    import timm
    from timm.data.config import resolve_data_config

    name = label.removeprefix("timm:")
    arch = name.partition(".")[0]
    if not timm.is_model(arch):
        raise unknown("timm model", arch, timm.list_models())
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if config is None or (pretrained and not config.has_weights):
        raise BadModelError(f"timm has no pretrained weights for '{name}'; see timm.list_pretrained('{arch}*')")
    data: dict[str, Any] = resolve_data_config(pretrained_cfg=asdict(config))  # type: ignore[no-untyped-call]
    return Card(
        name=label,
        summary=f"timm {name}",
        arch=name,
        weights="hub",
        input_size=int(data["input_size"][-1]),
        interpolation=data["interpolation"] if data["interpolation"] in ("bilinear", "bicubic") else "bicubic",
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        fixed_size=bool(config.fixed_input_size),
        licence=str(config.license or ""),
    )


def _state_hash(net: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()
