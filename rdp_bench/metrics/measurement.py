"""What a per-image measurement of purified images is. `measurements` lists those that exist. Loads no torch."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from rdp_bench.errors import DamagedError
from rdp_bench.keys import Record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    Values = NDArray[Any]  # one number per image


class Measurement:
    """Base of a measurement: how far each purified image is from the clean one.

    The store keeps `arrays`, one float32 number per image each; tables and results.csv show `values` of them.
    """

    name: ClassVar[str]
    """The metric in results.csv; also the name of the stored array, unless `array` names another."""
    title: ClassVar[str]
    """The name in tables and text."""
    unit: ClassVar[str]
    better: ClassVar[Literal["higher", "lower"]]
    array: ClassVar[str] = ""
    note: ClassVar[str] = ""
    """What a reader of a table must know about it: one sentence."""
    absent: ClassVar[str] = ""
    """Said by a table of a run that lacks it: why, and how to get it."""
    install: ClassVar[str] = ""
    """How to get what `facts` looks for; empty where nothing is needed."""

    @property
    def stored(self) -> str:
        """The name of its array in the store."""
        return self.array or self.name

    def facts(self) -> Record | None:
        """What its values depend on besides the images, for cache keys; None where it cannot be computed here."""
        return {}

    def measure(self, purified: "Tensor", clean: "Tensor", facts: Record) -> "Tensor":
        """The numbers to store, `[n]`.

        Args:
            purified: images `[n, 3, s, s]` in [0, 1].
            clean: the clean images, of the same size.
            facts: what `facts` returned when the run was planned.
        """
        raise NotImplementedError

    def values(self, stored: "Values") -> "Values":
        """What tables show, in `unit`, `[n]`, of the stored numbers `[n]`."""
        return stored.astype(float)

    def aggregate(self, values: "Values") -> float:
        """One number for many images: the mean."""
        return float(values.mean())

    def read(self, arrays: "Mapping[str, NDArray[np.generic]]") -> "Values":
        """`values` of its array.

        Raises:
            DamagedError: the array is not among `arrays`.
        """
        if self.stored not in arrays:
            raise DamagedError(f"no array '{self.stored}' of the measurement {self.name} is stored; run the grid again")
        return self.values(arrays[self.stored])
