"""State dicts as training scripts save them: in containers, with prefixes, counters and normalisation constants."""

import logging
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    State = OrderedDict[str, Tensor]

log = logging.getLogger(__name__)

CONTAINERS = (
    "state_dict_ema", "model_ema", "params_ema", "ema",
    "state_dict", "model_state_dict", "model_state", "model", "network", "net", "params",
)  # fmt: skip
"""Keys under which training scripts store the weights, averaged weights first (as in timm's loader)."""

COUNTERS = ("total_ops", "total_params", "n_averaged")
"""Buffers that thop, a counter of operations, adds to every module; `n_averaged` is that of torch's AveragedModel."""

AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")
"""Heads of torchvision's Inception networks that are used in training only."""


class Scalar:
    """Replaces a NumPy scalar beside the weights; its value is ignored."""

    def __init__(self, *_: object) -> None:
        pass


def unwrap(found: Any) -> "State | None":
    """Return the tensors by name in what a weight file contains; None if it has anything but tensors and numbers."""
    import torch

    seen: list[str] = []
    while isinstance(found, Mapping):
        inside = [key for key in CONTAINERS if isinstance(found.get(key), Mapping) and found[key]]
        if not inside:
            break
        if len(inside) > 1:
            log.warning("the file contains weights under %s; using '%s'", " and ".join(inside), inside[0])
        seen.append(inside[0])
        found = found[inside[0]]
    if not isinstance(found, Mapping):
        return None
    state: OrderedDict[str, Tensor] = OrderedDict()
    for name, value in found.items():
        if isinstance(value, torch.Tensor):
            state[str(name)] = value
        elif not isinstance(value, int | float | Scalar):
            return None
    return state or None


def fit(state: "Mapping[str, Tensor]", wanted: "Mapping[str, Tensor]") -> "State":
    """Return `state` under the names of `wanted`, without a common prefix, operation counters and batch counters.

    Args:
        state: the tensors of a file.
        wanted: the state of the network.

    Returns:
        The renamed tensors. Names that still differ are left for the caller to refuse.
    """
    state = OrderedDict(
        (name, tensor) for name, tensor in state.items() if name in wanted or name.rpartition(".")[2] not in COUNTERS
    )
    prefix = _prefix(state, wanted)
    short = [name.removeprefix(prefix) for name in state]
    if len(set(short)) == len(short):
        state = OrderedDict(zip(short, state.values(), strict=True))
    for name, tensor in wanted.items():
        # Missing in files older than PyTorch 0.4.1; no output depends on them.
        if name.endswith("num_batches_tracked") and name not in state and _beside(name, "running_var") in state:
            state[name] = tensor
    return state


def _beside(name: str, other: str) -> str:
    return f"{name.rpartition('.')[0]}.{other}".removeprefix(".")


def _prefix(state: "Mapping[str, Tensor]", wanted: "Mapping[str, Tensor]") -> str:
    """Return the most frequent prefix of names of `wanted` in `state`; empty unless more than half of them have it."""
    found: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in wanted:
                found["".join(f"{part}." for part in parts[:i])] += 1
    best = max(found, key=lambda prefix: (found[prefix], -len(prefix)), default="")
    needed = sum(not name.endswith("num_batches_tracked") for name in wanted) / 2
    return best if found[best] > max(found[""], needed) else ""


def without_auxiliary(state: "State", wanted: "Mapping[str, Tensor]") -> "State":
    """Return `state` without training heads that the network of `wanted` does not have."""
    return OrderedDict((n, t) for n, t in state.items() if n in wanted or not n.startswith(AUXILIARY))


def split_normalisation(state: "State", wanted: "Mapping[str, Tensor]") -> "tuple[State, dict[str, list[float]]]":
    """Split off the constants of a normalisation layer before the network: (other tensors, mean and std in [0, 1])."""
    rest, constants = OrderedDict(state), {}
    for name, tensor in state.items():
        kind = name.rpartition(".")[2]
        if name not in wanted and kind in ("mean", "std") and tensor.numel() == 3:
            values = [float(value) for value in rest.pop(name).flatten()]
            constants[kind] = [value / 255 for value in values] if max(values) > 2 else values
    return rest, constants


def same_constants(found: Sequence[float], card: Sequence[float]) -> bool:
    """Return whether two lists of constants are equal up to omitted digits (0.485, 0.4849)."""
    return all(abs(a - b) < 2e-3 for a, b in zip(found, card, strict=True))


def problems(state: "Mapping[str, Tensor]", wanted: "Mapping[str, Tensor]") -> list[str]:
    """Return why `state` does not fit a network with the state `wanted`; one problem of each kind comes first."""
    missing = [f"missing {name}" for name in wanted if name not in state]
    extra = [f"unexpected {name}" for name in state if name not in wanted]
    both = [name for name in wanted if name in state]
    shapes = [
        f"{name}: {list(state[name].shape)} instead of {list(wanted[name].shape)}"
        for name in both
        if state[name].shape != wanted[name].shape
    ]
    kinds = [
        f"{name}: {str(state[name].dtype).removeprefix('torch.')} instead of floats"
        for name in both
        if wanted[name].is_floating_point() and not state[name].is_floating_point()
    ]
    found = (missing, extra, shapes, kinds)
    return [one for kind in found for one in kind[:1]] + [one for kind in found for one in kind[1:]]
