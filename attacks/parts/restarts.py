"""RESTARTS: the attack again, on the images that are still right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rdp_bench.attacks.parts.base import Part, find, require
from rdp_bench.attacks.parts.labels import Targeted
from rdp_bench.attacks.parts.random_start import RandomStart


@dataclass(frozen=True)
class Restarts(Part):
    """Runs from several random starts; of the points, the first that is misclassified as it will be stored is kept."""

    id: ClassVar[str] = "restarts"
    order: ClassVar[int] = 6
    off: ClassVar[Any] = 1

    restarts: int = 5

    def rules(self) -> Mapping[str, bool]:
        """A count."""
        return {"restarts is 1 to 10000": 1 <= self.restarts <= 10_000}

    def check(self, parts: Sequence[Part]) -> None:
        """Runs must differ, and succeed by leaving the label."""
        require(
            {
                "restarts need random_start=true": find(parts, RandomStart) is not None,
                "restarts do not go with copies that mix other images": not any(part.draws_mates for part in parts),
                "restarts need targeted=false": find(parts, Targeted) is None,
            }
        )

    @property
    def evaluations(self) -> int:
        """At most all of them."""
        return self.restarts
