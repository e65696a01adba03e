"""A far device on a machine without one: tensors that say they are elsewhere and are computed here.

A `Far` tensor wraps one of the CPU and calls its device "meta". Whatever touches it must be far as well, as on a GPU:
a tensor that was left behind, or made without `device=`, is an error, and so is `.numpy()` without `.cpu()`.
Arithmetic is the CPU's own, so results must be equal bit for bit. What only CUDA has (its kernels, streams, memory,
autocast) is not shown by this.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = "meta"  # torch's autograd asks the drivers of all others for a stream

_COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
_INDEXED = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default}


class Far(Tensor):
    """A tensor of the CPU under the name of another device."""

    near: Tensor

    def __new__(cls, near: Tensor) -> Self:
        self = Tensor._make_wrapper_subclass(
            cls,
            near.shape,
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            layout=near.layout,
            device="cpu",
            dispatch_device=True,
        )
        self.near = near
        return self

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"Far({self.near!r})"

    def tolist(self) -> Any:
        """As CUDA's tensors do it; torch refuses it for all subclasses."""
        waits["tolist"] += 1
        return self.near.tolist()

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func` on what is wrapped."""
        return _run(func, args, kwargs or {})


waits: Counter[str] = Counter()
"""Calls for which a GPU would wait for the host or the host for it, by operator, since `device` was entered."""

calls: Counter[str] = Counter()
"""Operators called on tensors of the device, about one kernel each where they compute, by name."""

_WAITING = {
    torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default, torch.ops.aten.is_nonzero.default, torch.ops.aten._unique2.default,
}  # fmt: skip


def _count(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
    if not any(isinstance(each, Far) for each in tensors) and func not in _COPIES:
        return
    calls[str(func)] += 1
    if func in _COPIES:
        there = isinstance(args[0], Far)
        to = isinstance(args[1], Far) if func is torch.ops.aten.copy_.default else _goes_far(there, kwargs)
        if there != to:
            waits[f"{func} between devices"] += 1
    elif func in _WAITING:
        waits[str(func)] += 1
    elif func in _INDEXED:
        for index in args[1]:
            if index is not None and (not isinstance(index, Far) or index.dtype == torch.bool):
                waits[f"{func} by {'a mask' if index.dtype == torch.bool else 'an index of the host'}"] += 1


def _goes_far(there: bool, kwargs: dict[str, Any]) -> bool:
    return there if kwargs.get("device") is None else torch.device(kwargs["device"]).type == DEVICE


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if func is torch.ops.prim.device.default:
        return torch.device(DEVICE)
    _count(func, args, kwargs)
    tied = (args[0], *args[2:]) if func in _INDEXED else args  # CUDA takes indices from the CPU
    tensors = [each for each in tree_flatten((tied, kwargs))[0] if isinstance(each, Tensor)]
    there = any(isinstance(each, Far) for each in tensors)
    if there and func not in _COPIES:
        for each in tensors:
            if not isinstance(each, Far) and each.dim():  # one number may come from the CPU
                raise RuntimeError(f"{func}: expected all tensors on one device, found {DEVICE} and {each.device}")
    given = dict(kwargs)
    if given.get("device") is not None:
        there = torch.device(given["device"]).type == DEVICE
        given["device"] = torch.device("cpu")
    near_args, near_kwargs = tree_map(lambda each: each.near if isinstance(each, Far) else each, (args, given))
    found = func(*near_args, **near_kwargs)
    if not there:
        return found
    wrapped = tree_map(lambda each: Far(each) if isinstance(each, Tensor) else each, found)
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


class _Operators(TorchDispatchMode):
    """Sees what makes tensors out of nothing, as `torch.zeros(..., device=...)`."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class _FromData(TorchFunctionMode):
    """Lists become tensors without an operator that could be seen: make them here, and move them."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[1], list):
            args = (args[0], torch.tensor(args[1]), *args[2:])
        if func in (torch.tensor, torch.as_tensor) and torch.device(given.get("device") or "cpu").type == DEVICE:
            return func(*args, **(given | {"device": "cpu"})).to(DEVICE)
        return func(*args, **given)


@contextmanager
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Within it, `DEVICE` holds numbers."""
    real: Callable[..., Any] = torch.autocast
    monkeypatch.setattr(
        torch, "autocast", lambda kind, *args, **kw: real("cpu" if kind == DEVICE else kind, *args, **kw)
    )
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    waits.clear()
    calls.clear()
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # `.to` cannot turn a Parameter into a `Far` one
    try:
        with _FromData(), _Operators():
            yield DEVICE
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
