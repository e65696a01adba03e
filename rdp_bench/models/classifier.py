"""Networks as classifiers in pixel space, prepared for input gradients. Imported only when torch is needed."""

import hashlib
import logging
from collections import OrderedDict
from contextlib import nullcontext
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rdp_bench.errors import BadModelError, UsageError, unknown_name
from rdp_bench.keys import canonical_json
from rdp_bench.models import families
from rdp_bench.models.card import ABOUT, NUMERICS, Card, convert_first
from rdp_bench.models.fold_batch_norm import fold_batch_norm, fuse_relu6, norm_pairs
from rdp_bench.numerics import memory, pieces
from rdp_bench.numerics.fixed_layers import fix_layers
from rdp_bench.numerics.precision import lowered
from rdp_bench.numerics.resizing import resize, resize_gathered
from rdp_bench.weights import files as weight_files
from rdp_bench.weights import state_dict
from rdp_bench.weights.files import State
from rdp_bench.weights.kept import Kept
from rdp_bench.weights.legacy import legacy_format

log = logging.getLogger(__name__)


ZOOMED = 20
"""Images of the usual size whose memory a CPU takes to classify enlarged ones, which are as fast a few at a time."""


class PixelClassifier(nn.Module):
    """A network with its preprocessing; see `protocols.Classifier`."""

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
        self._sizes = {card.input_size: card.input_size}
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor, zoom: float = 1.0) -> Tensor:
        """Return logits `[n, classes]` of `x` `[n, 3, h, h]` in [0, 1]; see `protocols.Classifier`."""
        size = self._size(zoom)
        at_once = len(x) if torch.is_grad_enabled() else max(1, round(ZOOMED / (size / self.card.input_size) ** 2))
        if x.device.type == "cpu" and size > 1.5 * self.card.input_size and len(x) > at_once:
            return torch.cat([self.forward(part, zoom) for part in torch.split(x, at_once)])
        return self.logits_of_input(self.network_input(x, zoom))

    def logits_of_gathered(self, x: Tensor, rows: Tensor, columns: Tensor, zoom: float = 1.0) -> Tensor:
        """Return `forward(gather_pixels(x, rows, columns), zoom)` up to rounding, without creating that image."""
        return self.logits_of_input(self.network_input(x, zoom, rows, columns))

    def network_input(
        self, x: Tensor, zoom: float = 1.0, rows: Tensor | None = None, columns: Tensor | None = None
    ) -> Tensor:
        """Return `x` in the size that the network sees; see `protocols.InPieces`."""
        if x.device.type == "cpu":
            memory.limit()  # here, where no graph is there yet
        how = self._size(zoom), self.card.interpolation, self.card.crop
        return resize(x, *how) if rows is None or columns is None else resize_gathered(x, rows, columns, *how)

    def at_once(self, seen: Tensor) -> int | None:
        """Return how many images of `seen` to differentiate at a time; None: all."""
        return pieces.size(seen, self.card.input_size, pieces.CRAFTED) if self.independent else None

    def features(self, x: Tensor, levels: tuple[int, ...] = (2,), zoom: float = 1.0) -> list[Tensor]:
        """Return the feature maps of `x` at `levels`.

        Args:
            x: images `[n, 3, h, h]` in [0, 1].
            levels: numbers of the maps in timm's order; 0 is the first and largest. Empty means the last map before
                pooling, which timm does not number if a convolution follows the stages.
            zoom: see `protocols.Classifier`.

        Raises:
            UsageError: the network provides no feature maps, or does not have such a level.
        """
        net: Any = self.net
        stages = getattr(net, "feature_info", None)
        if stages is None or not hasattr(net, "forward_intermediates"):
            raise UsageError(f"timm gives no feature maps of {self.name}; use another network")
        if levels and max(levels) >= len(stages):
            raise UsageError(f"{self.name} has feature levels 0 to {len(stages) - 1}, asked for {max(levels)}")
        x = resize(x, self._size(zoom), self.card.interpolation, self.card.crop)
        x = ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        with lowered(x.device) if x.requires_grad and torch.is_grad_enabled() else nullcontext():
            maps: list[Tensor] = (
                net.forward_intermediates(x, indices=sorted(levels), stop_early=True, intermediates_only=True)
                if levels
                else [net.forward_features(x)]
            )
        return [each.to(x.dtype) for each in maps]

    @cached_property
    def independent(self) -> bool:
        """Whether a CPU gives an image the same bits whatever the rest of the batch is."""
        return pieces.independent(self.net)

    def _size(self, zoom: float) -> int:
        """Return the side of the network's input for a zoomed image: the nearest that the network accepts."""
        own = self.card.input_size
        wanted = own if self.card.fixed_size else round(own * zoom)
        if wanted not in self._sizes:
            found = self._sizes[wanted] = nearest_size(self.net, wanted, own)
            if found != wanted:
                log.warning(
                    "%s accepts no input of %d pixels; zoomed images are resized to %d", self.name, wanted, found
                )
        return self._sizes[wanted]

    def logits_of_input(self, seen: Tensor) -> Tensor:
        """Return logits of what `network_input` gave, or of some of it."""
        x = ((seen - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        # A decision that is counted is never rounded; a gradient may be.
        crafting = x.requires_grad and torch.is_grad_enabled()
        whole = crafting or not self.independent
        at_once = None if whole else pieces.size(x, self.card.input_size)
        with lowered(x.device) if crafting else nullcontext():
            logits = pieces.computed(self.net, pieces.filled(x), at_once)
        return logits[: len(x), self.card.label_offset :].to(x.dtype)

    def record(self) -> dict[str, Any]:
        """Return the identity for cache keys, as in `zoo.ModelRef.record`."""
        return {"weights": self.weights_hash, "numerics": NUMERICS}


STEP = 64
"""The largest multiple that timm networks require of their input."""


def nearest_size(net: nn.Module, wanted: int, own: int) -> int:
    """Return the side nearest to `wanted` that `net` accepts, or `own` if there is none nearby.

    Some networks (HRNet, DLA) raise an error unless the side is a multiple of 32, others at every side but their own.
    Only shapes are computed, on the meta device. If this fails even at `own`, the result is `wanted`.

    Args:
        net: the network.
        wanted: the side in pixels.
        own: the network's own input size.
    """
    tensors = {name: tensor.to("meta") for name, tensor in (*net.named_parameters(), *net.named_buffers())}

    def takes(side: int) -> bool:
        try:
            with torch.no_grad():
                torch.func.functional_call(net, tensors, (torch.empty(1, 3, side, side, device="meta"),))
        except Exception:  # whatever a network raises
            return False
        return True

    if takes(wanted) or not takes(own):
        return wanted
    near = sorted(range(max(1, wanted - STEP // 2), wanted + STEP // 2 + 1), key=lambda side: abs(side - wanted))
    return next((side for side in near if takes(side)), own)


def unfolded_state(classifier: PixelClassifier) -> dict[str, Tensor]:
    """Return the weights of a prepared network under timm's names; a folded batch-norm becomes a shift only."""
    card = classifier.card
    net = create(card).eval()
    names = {module: name for name, module in net.named_modules()}
    pairs, _ = norm_pairs(net, torch.zeros(1, 3, card.input_size, card.input_size))
    trained = {name: tensor.detach().cpu() for name, tensor in classifier.net.state_dict().items()}
    state = {name: trained.get(name, tensor) for name, tensor in net.state_dict().items()}
    for conv, norm in pairs:
        before, after = names[conv], names[norm]
        if f"{after}.weight" in trained:
            continue  # was not folded
        state[f"{after}.running_mean"] = torch.zeros_like(norm.bias)
        state[f"{after}.running_var"] = torch.ones_like(norm.bias)
        state[f"{after}.weight"] = torch.ones_like(norm.bias)
        state[f"{after}.bias"] = trained[f"{before}.bias"]
        if f"{before}.bias" in state:
            state[f"{before}.bias"] = torch.zeros_like(norm.bias)
        # The divisor of the norm is multiplied into the weights, so that no rounding remains.
        state[f"{before}.weight"] = trained[f"{before}.weight"] * (1 + norm.eps) ** 0.5
    return {name: tensor.detach().contiguous() for name, tensor in state.items()}


_loaded: Kept[PixelClassifier] = Kept(weighed=True)


def load(card: Card, file: Path | None, weights_hash: str, device: str) -> PixelClassifier:
    """Return the prepared classifier of a card on `device`; it is kept in this process under the hash of its weights.

    Args:
        card: the model card.
        file: the weight file; None for timm's hub.
        weights_hash: the hash of the weights when the run was planned.
        device: a torch device.

    Raises:
        BadModelError: the weights do not have this hash, cannot be read, or do not fit.
    """
    if file is None:
        found = from_hub(card, device)
        if found.weights_hash != weights_hash:
            raise BadModelError(f"model {card.name}: {weight_files.CHANGED}")
        return found
    facts = {name: value for name, value in asdict(card).items() if name not in ABOUT}
    name = (f"{canonical_json(facts)} {weights_hash}", card.name, device)
    return _loaded.get(name, card.name, lambda: _load(card, file, weights_hash).to(device))


def from_hub(card: Card, device: str) -> PixelClassifier:
    """Return the classifier of a card with the weights of timm's hub."""
    name = (card.arch, card.name, device)
    return _loaded.get(name, card.name, lambda: _load(card, None, "").to(device))


def create(card: Card, *, pretrained: bool = False) -> nn.Module:
    """Return the network of a card, ours or timm's, with random weights unless timm downloads them (`pretrained`)."""
    if family := families.find(card.arch):
        return family.create(card.arch)
    import timm

    arch = card.arch.removeprefix("timm:")
    net: nn.Module = timm.create_model(
        arch if pretrained else arch.partition(".")[0], pretrained=pretrained, **card.kwargs
    )
    return net


def read(path: Path, model: str) -> State:
    """Return the tensors of a weight file: `.safetensors`, or one that torch loads with `weights_only`.

    Args:
        path: the file.
        model: the model's name, for the error.

    Raises:
        BadModelError: the file is damaged, holds anything but tensors, or has a format that must be converted first.
    """
    if kind := legacy_format(path):
        raise BadModelError(f"model {model}: {path.name} holds {kind}. {convert_first(path, model)}")
    return weight_files.read_tensors(path)


def _load(card: Card, file: Path | None, weights_hash: str) -> PixelClassifier:
    try:
        net = create(card, pretrained=file is None)
    except Exception as error:  # timm and its hub raise many types of errors; each means "no weights"
        raise BadModelError(
            f"model {card.name}: timm could not provide '{card.arch}' ({type(error).__name__}: {error}). Without "
            f"a network, put its weights as {card.name.removeprefix('timm:')}.safetensors into a folder and pass it as "
            "--models-dir"
        ) from error
    if file is not None:
        with weight_files.unchanged(file, weights_hash):
            load_state(net, read(file, card.name), card, file)
    else:
        weights_hash = _state_hash(net)
    return prepared(net, card, weights_hash)


def prepared(net: nn.Module, card: Card, weights_hash: str) -> PixelClassifier:
    """Return the classifier of a network with its weights: layers folded and fixed, in channels-last."""
    net.requires_grad_(False).eval()
    weight_files.channels_last(net)
    example = torch.rand(1, 3, card.input_size, card.input_size, generator=torch.Generator().manual_seed(0))
    count = fold_batch_norm(net, example)
    fuse_relu6(fix_layers(net, *_padded_as_tensorflow()), example)
    log.info("%s: %d batch-norms folded", card.name, count)
    return PixelClassifier(net, card, weights_hash)


def _padded_as_tensorflow() -> tuple[type[nn.Conv2d], ...]:
    from timm.layers.conv2d_same import Conv2dSame

    return (Conv2dSame,)


def load_state(net: nn.Module, state: State, card: Card, path: Path) -> None:
    """Load `state` into `net`, by name or, if the card says so, in order; every tensor must match.

    A layout that timm converts for its own downloads, such as torchvision's VGG, is converted by timm's filter. The
    constants of a normalisation layer before the network must be the card's.

    Args:
        net: the network.
        state: the tensors of the file.
        card: the model card.
        path: the file, for errors.

    Raises:
        BadModelError: names, shapes, dtypes or the normalisation differ.
    """
    wanted = net.state_dict()
    state, constants = state_dict.split_normalisation(state_dict.fit(state, wanted), wanted)
    for name, found in constants.items():
        if not state_dict.same_constants(found, getattr(card, name)):
            shown = ", ".join(f"{value:.4g}" for value in found)
            raise BadModelError(
                f"{path}: its images are normalised by {name} {shown}, those of {card.name} by "
                f"{', '.join(f'{value:.4g}' for value in getattr(card, name))}. Name the model whose normalisation is "
                "the file's, or register the network by a plugin"
            )
    if card.in_order and not set(state) & set(wanted):
        if len(state) != len(wanted):
            raise BadModelError(f"{path}: contains {len(state)} tensors, {card.arch} has {len(wanted)}")
        state = OrderedDict(zip(wanted, state.values(), strict=True))
    elif state_dict.problems(state, wanted):
        state = state_dict.without_auxiliary(state, wanted)
        if state_dict.problems(state, wanted) and (converted := _by_timm(net, card, state)) is not None:
            state = converted
    try:
        weight_files.load_strict(net, state, card.arch, path)
    except BadModelError as error:
        if not set(state) & TORCHVISION:
            raise
        raise BadModelError(
            f"{error}. The names are torchvision's, and timm does not convert them for this network: register "
            "torchvision's own network by a plugin (docs/extend), or convert the file"
        ) from error


TORCHVISION = {"features.0.0.weight", "conv_proj.weight"}
"""Names of the first convolution that only torchvision's networks have, from MobileNetV2 on."""


def _by_timm(net: nn.Module, card: Card, state: State) -> State | None:
    """Return `state` after the filter of timm's loader for this architecture; None if there is none or it fails.

    timm passes the filter only to its loader, so the network is created again here with a loader that records it.
    """
    if families.find(card.arch):
        return None
    import timm
    from timm.models import _builder as builder

    kept: list[Any] = []
    usual = getattr(builder, "load_pretrained", None)
    if usual is None:
        return None
    try:
        setattr(builder, "load_pretrained", lambda *_, filter_fn=None, **__: kept.append(filter_fn))  # noqa: B010
        with torch.device("meta"):
            timm.create_model(
                card.arch.removeprefix("timm:").partition(".")[0],
                pretrained=True,
                pretrained_cfg_overlay={"state_dict": {}},
                **card.kwargs,
            )
    except Exception as error:  # any error of timm; the file is then refused as it is
        log.info("%s: timm has no filter (%s)", card.name, error)
    finally:
        builder.load_pretrained = usual
    for convert in filter(None, kept):
        for arguments in ((dict(state), net), (dict(state),)):  # filters take one or both
            try:
                return OrderedDict(convert(*arguments))
            except Exception as error:
                log.info("%s: timm's filter fails on the file (%s: %s)", card.name, type(error).__name__, error)
    return None


def timm_card(label: str, *, pretrained: bool) -> Card:
    """Return the card of `timm:NAME` from timm's configuration.

    Raises:
        UsageError: timm has no such model.
        BadModelError: `pretrained` is set and timm has no weights for it.
    """
    import timm
    from timm.data.config import resolve_data_config

    name = label.removeprefix("timm:")
    arch = name.partition(".")[0]
    if not timm.is_model(arch):
        raise unknown_name("timm model", arch, timm.list_models())
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
