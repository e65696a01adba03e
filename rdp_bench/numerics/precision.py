"""The precision of networks: float32, or lower where that is faster and results stay the same within noise.

`tf32` multiplies with 10 bits of mantissa on NVIDIA GPUs, in all networks. `bfloat16` computes the gradients of an
attack's source and the networks of learned defenses in bfloat16, whose sums are float32; targets stay float32, because
a rounded logit changes the decision that is counted. So do score networks: their steps would add up the rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from rdp_bench import torch_settings

_active = ["float32"]


@contextmanager
def using(precision: str) -> Iterator[None]:
    """Compute with `precision` ("float32", "tf32" or "bfloat16") inside, and as before afterwards."""
    _active.append(precision)
    try:
        with _tf32(allowed=precision == "tf32"):
            yield
    finally:
        _active.pop()


def allow_tf32(*, allowed: bool) -> None:
    """Whether convolutions and matrix products of a GPU may use TF32."""
    for owner, name, values in torch_settings.tf32_switches():
        setattr(owner, name, values[allowed])


@contextmanager
def exact_float32() -> Iterator[None]:
    """Compute inside as a run does by default: float32 and one order of sums, on a GPU too."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        with using("float32"):
            yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before


def exactly() -> AbstractContextManager[None]:
    """Around what is no network: float32, also in a run with TF32."""
    return _tf32(allowed=False)


@contextmanager
def _tf32(*, allowed: bool) -> Iterator[None]:
    found = torch_settings.tf32_switches()
    before = [getattr(owner, name) for owner, name, _ in found]
    for owner, name, values in found:
        setattr(owner, name, values[allowed])
    try:
        yield
    finally:
        for (owner, name, _), value in zip(found, before, strict=True):
            setattr(owner, name, value)


def lowers() -> bool:
    """Whether some networks are computed in a lower precision."""
    return _active[-1] == "bfloat16"


def lowered(device: torch.device) -> AbstractContextManager[object]:
    """Around a network that may be computed in the lower precision, if there is one."""
    if not lowers():
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)
