"""The precision of networks: float32, or lower where that is faster and results stay the same within noise.

`tf32` multiplies with 10 bits of mantissa on NVIDIA GPUs, in all networks. `bfloat16` computes the gradients of an
attack's source and the networks of learned defenses in bfloat16, whose sums are float32; targets stay float32, because
a rounded logit changes the decision that is counted. So do score networks: their steps would add up the rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

_active = ["float32"]


@contextmanager
def using(precision: str) -> Iterator[None]:
    """Compute with `precision` ("float32", "tf32" or "bfloat16") inside, and as before afterwards."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = precision == "tf32"
    _active.append(precision)
    try:
        yield
    finally:
        _active.pop()
        cudnn.allow_tf32, matmul.allow_tf32 = before


def lowers() -> bool:
    """Whether some networks are computed in a lower precision."""
    return _active[-1] == "bfloat16"


def lowered(device: torch.device) -> AbstractContextManager[object]:
    """Around a network that may be computed in the lower precision, if there is one."""
    if not lowers():
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)
