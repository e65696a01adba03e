"""The purified images that a run stores, and their distance to the clean ones."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from rdp_bench.cache.store import Store
from rdp_bench.errors import RdpBenchError
from rdp_bench.metrics.psnr import psnr
from rdp_bench.results.record import CellResult
from rdp_bench.results.rows import CellKey, Run, display_name
from rdp_bench.specs import CLEAN, UNDEFENDED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Image = NDArray[np.uint8]

COLUMNS = (
    "image", "source", "target", "eps", "attack", "defense", "correct", "predicted", "psnr", "mean_absolute_error",
)  # fmt: skip
"""Of the CSV files of image figures; the last two columns are relative to the clean image."""


@dataclass(frozen=True)
class SampleImages:
    """The stored images of a run's first source and target at its largest eps."""

    run: Run
    store: Store

    @cached_property
    def _cells(self) -> dict[CellKey, CellResult]:
        return {cell.key: cell for cell in self.run.cells}

    @cached_property
    def _read(self) -> "dict[CellKey, Image]":
        return {}

    @property
    def attacks(self) -> list[str]:
        """In the run's order."""
        return self.run.attacks

    @property
    def defenses(self) -> list[str]:
        """In the run's order, without the undefended row."""
        return [name for name in self.run.axis("defenses") if name != UNDEFENDED]

    @cached_property
    def source(self) -> str:
        """The first one."""
        return next((name for name in self.run.axis("sources") if name != "-"), "-")

    @cached_property
    def target(self) -> str:
        """The first one."""
        return self.run.axis("targets")[0]

    @cached_property
    def eps(self) -> float:
        """The largest one, in /255 or the run's norm."""
        return max((cell_key.eps for cell_key in self._cells), default=0.0)

    @property
    def crafted(self) -> str:
        """How the attacks were made, for a caption."""
        on = "" if self.source == "elsewhere" else "on "
        return f"crafted {on}{display_name(self.source)}, ε = {self.run.eps(self.eps)}"

    def place(self, attack: str, defense: str = UNDEFENDED) -> CellKey:
        """The cell of an attack and a defense."""
        if attack == CLEAN:
            return CellKey.clean(self.target, defense)
        return CellKey(self.source, attack, self.eps, self.target, defense)

    def images(self, attack: str, defense: str = UNDEFENDED) -> "Image":
        """The stored images `[k, 3, h, w]`, at the defense's output size.

        Raises:
            RdpBenchError: there are none; the message says why.
        """
        cell_key = self.place(attack, defense)
        if cell_key not in self._read:
            self._read[cell_key] = sample(self.store, self._cells.get(cell_key))
        return self._read[cell_key]

    def perturbations(self, attack: str) -> "NDArray[np.integer[Any]]":
        """What the attack added to every image of the run, `[n, 3, h, w]` in /255.

        Raises:
            RdpBenchError: the set is missing.
        """
        cell = self._cells.get(self.place(attack))
        if cell is None or not cell.adv_key:
            raise RdpBenchError("not run yet")
        return self.store.open("adv", cell.adv_key).read()["delta"]  # type: ignore[return-value]

    def right(self, attack: str, defense: str, index: int) -> bool | None:
        """Whether the target was right on an image; None if it was not evaluated."""
        wrong = self.run.wrong_first_sample(self.place(attack, defense))
        return None if wrong is None else not wrong[index]

    def line(self, attack: str, defense: str, index: int, clean: "Image", image: "Image") -> dict[str, Any]:
        """The CSV row of one image."""
        cell_key = self.place(attack, defense)
        said = self.run.predicted.get(cell_key)
        right = self.right(attack, defense, index)
        return {
            "image": index + 1,
            **{name: getattr(cell_key, name) for name in ("source", "target", "attack", "defense")},
            "eps": self.run.eps(cell_key.eps),
            "correct": "" if right is None else str(right).lower(),
            "predicted": "" if said is None else int(said[index]),
            "psnr": f"{psnr_of(clean, image):.4f}",
            "mean_absolute_error": f"{error(clean, image).mean():.4f}",
        }


def sample(store: Store, cell: CellResult | None) -> "Image":
    """The stored images `[k, 3, h, w]` of a cell.

    Raises:
        RdpBenchError: there are none; the message says why.
    """
    if cell is None or cell.status != "done":
        raise RdpBenchError(cell.reason if cell and cell.reason else "not run yet")
    key = cell.sample_key or ""
    if not store.folder("sample", key).is_dir():
        raise RdpBenchError(
            f"the cache {store.root} does not contain them; name that of the run with --cache, or run the grid again"
        )
    return store.open("sample", key).read()["purified"]  # type: ignore[return-value]


def error(a: "Image", b: "Image") -> "NDArray[np.float64]":
    """Absolute difference in /255, mean over the channels: `[h, w]`."""
    wrong: NDArray[np.float64] = np.abs(a.astype(np.float64) - b).mean(0)
    return wrong


def psnr_of(a: "Image", b: "Image") -> float:
    """PSNR in dB of two 8-bit images; infinite for equal ones.

    >>> a = np.zeros((3, 2, 2), np.uint8)
    >>> round(psnr_of(a, a + np.uint8(16)), 2)
    24.05
    """
    return float(psnr(((a.astype(np.float64) - b) ** 2).mean() / 255**2))
