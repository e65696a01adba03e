"""Defenses that fail when they are called, or stop the process: what an audit must survive, or name."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from rdp_bench import Purifier, defense
from rdp_bench.rng import ImageRng


class Exact(Purifier):
    """A defense whose gradient is said to be autograd's."""

    differentiable: ClassVar[bool] = True
    backward = "exact"


@defense("bad/call", source="made up")
@dataclass(frozen=True)
class BadCall(Exact):
    """Fails as `how` says; `attacked` defenses fail only where a gradient is wanted."""

    how: str = "raise"
    attacked: bool = False

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        if self.attacked and not x.requires_grad:
            return x
        if self.how == "raise":
            raise ValueError("no such thing")
        if self.how == "nan":
            return x * float("nan")
        if self.how == "size":
            return x[:, :, 1:]
        return x + 1.5


@defense("bad/memory", source="made up")
@dataclass(frozen=True)
class Memory(Exact):
    """Runs out of memory with more than `most` images."""

    most: int = 2

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x

    def resolved(self) -> dict[str, object]:
        return {}


@defense("bad/stop", source="made up")
@dataclass(frozen=True)
class Stop(Exact):
    """Ctrl-C at the first gradient while `file` is there, which is then deleted."""

    file: str = ""

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        if x.requires_grad and Path(self.file).exists():
            Path(self.file).unlink()
            os.kill(os.getpid(), signal.SIGINT)
        return x

    def resolved(self) -> dict[str, object]:
        return {}
