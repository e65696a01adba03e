"""What an architecture of this package consists of; `families.py` lists them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from rdp_bench.weights.files import State


@dataclass(frozen=True)
class Family:
    """Architectures that differ only in their numbers of units, and the older formats of their released weights.

    Attributes:
        units: the numbers of units, by the name of the architecture on a model card.
        build: returns the network with random weights for given numbers of units.
        readers: for each suffix of a released file, a function that returns its tensors under this package's names.
    """

    units: Mapping[str, tuple[int, ...]]
    build: Callable[[tuple[int, ...]], nn.Module]
    readers: Mapping[str, Callable[[Path], State]]

    def create(self, arch: str) -> nn.Module:
        """Return the network of an architecture with random weights."""
        return self.build(self.units[arch])
