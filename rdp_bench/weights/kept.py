"""Networks that a process keeps. Code of entries can reach them, and what it changes must not change other results."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from rdp_bench import torch_settings

log = logging.getLogger(__name__)

N = TypeVar("N", bound=nn.Module)
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Kept(Generic[N]):
    """Networks by key, as they were loaded: one that other code changed is loaded again."""

    def __init__(self, *, weighed: bool) -> None:
        """With `weighed`, weights are compared by the sum of their bits (milliseconds), else by torch's counters alone.

        Torch does not count what is written through `data`.
        """
        self._weighed = weighed
        self._networks: dict[Hashable, tuple[N, list[Any]]] = {}

    def get(self, key: Hashable, name: str, make: Callable[[], N]) -> N:
        """The network of a key; `make` loads it, and `name` is what a warning calls it."""
        if key in self._networks:
            found, before = self._networks[key]
            if self._content(found) == before:
                return found
            log.warning(
                "%s was changed by other code in this process (weights, hooks or mode); it is loaded again", name
            )
        with torch_settings.usual():  # whoever asks first: others may differentiate it
            found = make()
        self._networks[key] = found, self._content(found)
        return found

    def clear(self) -> None:
        """Forget all."""
        self._networks.clear()

    def _content(self, net: N) -> list[Any]:
        """What other code could change: weights, hooks, modes and methods."""
        tensors = [*net.parameters(), *net.buffers()]
        content: list[Any] = [(id(tensor), _count(tensor)) for tensor in tensors]
        if self._weighed and tensors:
            content += torch.stack([_sum(tensor) for tensor in tensors]).tolist()
        for module in net.modules():
            about = vars(module)
            hooks = [list(value) for name, value in about.items() if name.endswith("hooks") and value]
            content.append((type(module), module.training, about.get("forward"), hooks))
        return content


def _count(tensor: Tensor) -> int:
    """How often a tensor was written in place, as far as torch counts it."""
    return 0 if tensor.is_inference() else tensor._version


def _sum(tensor: Tensor) -> Tensor:
    """The sum of a tensor's bits, modulo 2^64, so that no order of sums matters; 0 of a copy in an order of oneDNN."""
    if tensor.layout != torch.strided or tensor.itemsize not in _BITS:
        return torch.zeros((), dtype=torch.int64, device=tensor.device)
    return tensor.detach().view(_BITS[tensor.itemsize]).sum(dtype=torch.int64)
