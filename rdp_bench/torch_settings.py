"""Settings of torch that code elsewhere can change, and that would change numbers without any key that says so.

They are this process's or this thread's. A run computes with torch's own defaults, whatever a script has set before it
(`usual`); what the code of an entry or plugin changes is restored.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

KINDS = "cpu", "cuda"
"""Devices for which autocast is on or off."""


def _autocast() -> tuple[str, ...]:
    return tuple(kind for kind in KINDS if torch.is_autocast_enabled(kind))


def _set_autocast(kinds: tuple[str, ...]) -> None:
    for kind in KINDS:
        torch.set_autocast_enabled(kind, kind in kinds)


_BACKENDS: list[Any] = [
    owner
    for owner in (torch.backends, *(getattr(torch.backends.mkldnn, name, None) for name in ("matmul", "conv", "rnn")))
    if hasattr(owner, "fp32_precision")
]
"""Owners of torch 2.9's switches for float32 on a CPU, those that the others inherit from first."""


def _products() -> tuple[str | None, ...]:
    try:
        older: str | None = torch.get_float32_matmul_precision()
    except RuntimeError:  # the older and the newer switches contradict each other
        older = None
    return older, *map(_precision, _BACKENDS)


def _precision(owner: Any) -> str:
    found = str(owner.fp32_precision)
    return "none" if found == "ieee" else found  # the same, written by torch's older switch


def _set_products(values: tuple[str | None, ...]) -> None:
    if values[0] is not None:
        torch.set_float32_matmul_precision(values[0])
    for owner, value in zip(_BACKENDS, values[1:], strict=True):
        if _precision(owner) != value:
            owner.fp32_precision = value


def _set_device(value: str) -> None:
    torch.set_default_device(None if value == "cpu" else value)


def _folder() -> str:
    try:
        return str(Path.cwd())
    except OSError:  # it was deleted
        return ""


def _enter(folder: str) -> None:
    if folder:
        os.chdir(folder)


def _set_deterministic(value: bool) -> None:
    torch.use_deterministic_algorithms(value, warn_only=torch.is_deterministic_algorithms_warn_only_enabled())


_SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "torch's default type": (torch.get_default_dtype, torch.set_default_dtype),
    "torch's default device": (lambda: str(torch.get_default_device()), _set_device),
    "the gradient mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "autocast": (_autocast, _set_autocast),
    "torch's number of threads": (torch.get_num_threads, torch.set_num_threads),
    "torch's deterministic mode": (torch.are_deterministic_algorithms_enabled, _set_deterministic),
    "the precision of matrix products": (_products, _set_products),
    "the current folder": (_folder, _enter),
}
"""Name in messages -> how it is read and set."""

USUAL = {
    "torch's default type": torch.float32,
    "torch's default device": "cpu",
    "the gradient mode": True,
    "autocast": (),
    "torch's deterministic mode": False,
    "the precision of matrix products": ("highest", *("none" for _ in _BACKENDS)),
}
"""Torch's defaults of those that change numbers. Devices are always named, so the default one is the CPU."""


def read() -> dict[str, Any]:
    """The settings as they are, by name."""
    return {name: get() for name, (get, _) in _SETTINGS.items()}


def restore(wanted: dict[str, Any]) -> list[str]:
    """Set what differs from `wanted`; returns its names."""
    found = read()
    changed = [name for name, value in wanted.items() if found[name] != value]
    for name in changed:
        _SETTINGS[name][1](wanted[name])
    return changed


def tf32_switches() -> list[tuple[Any, str, tuple[Any, Any]]]:
    """Torch's switches for TF32: owner, attribute, and its values for no and yes.

    Code that set `fp32_precision` (torch 2.9 and newer) makes the older attribute an error; else the older one is
    used, because much code reads it.
    """
    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    old = [(cudnn, "allow_tf32", (False, True)), (matmul, "allow_tf32", (False, True))]
    try:
        for owner, name, _ in old:
            getattr(owner, name)
    except RuntimeError:
        return [(owner, "fp32_precision", ("ieee", "tf32")) for owner in (cudnn.conv, cudnn.rnn, matmul)]
    return old


@contextmanager
def usual() -> Iterator[None]:
    """Compute inside with torch's defaults, and leave everything as it was.

    Tensors that are made in torch's inference mode could never be differentiated, so it is left, too.
    """
    cudnn: Any = torch.backends.cudnn
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(mode=False))
        if str(torch.get_default_device()) != "cpu":  # of a context, which cannot be set from inside
            stack.enter_context(torch.device("cpu"))
        before = read()
        flags = [(cudnn, name, getattr(cudnn, name)) for name in ("benchmark", "deterministic")]
        flags += [(owner, name, getattr(owner, name)) for owner, name, _ in tf32_switches()]
        restore(USUAL)
        try:
            yield
        finally:
            for owner, name, value in flags:
                setattr(owner, name, value)
            restore(before)
