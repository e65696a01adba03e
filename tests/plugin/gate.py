"""An attack that waits for a token before each batch: a test says how far a run gets, whatever the machine's speed."""

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rdp_bench import attack
from rdp_bench.protocols import Source
from rdp_bench.rng import ImageRng


@attack("gate/sign", source="made up")
@dataclass(frozen=True)
class Gated:
    """Random signs of eps, once there is a token."""

    folder: str = ""  # of tokens, each a file; empty: never wait

    def __call__(self, source: Source, x: Tensor, y: Tensor, eps: float, rng: ImageRng) -> Tensor:
        while self.folder and not self._taken():
            time.sleep(0.05)
        return (x + eps * rng.uniform(*x.shape[1:], low=-1.0, high=1.0).sign()).clamp(0, 1)

    def _taken(self) -> bool:
        for token in Path(self.folder).glob("*.token"):
            with contextlib.suppress(FileNotFoundError):  # another worker was faster
                token.unlink()
                return True
        return False

    def resolved(self, eps_255: float) -> dict[str, Any]:
        return {}  # the folder changes no pixel

    def gradients(self, eps_255: float) -> int:
        return 40
