"""Examples: an image clean and attacked, the perturbation, and the output of every defense."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from rdp_bench.cache.store import Store
from rdp_bench.errors import RdpBenchError
from rdp_bench.picture import resized, to_jpeg_uri, to_pillow
from rdp_bench.reports.figures.registry import FIGURES
from rdp_bench.reports.figures.sample_images import sample
from rdp_bench.results.rows import CellKey, Run, display_name
from rdp_bench.specs import CLEAN, UNDEFENDED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Image = NDArray[np.uint8]

GAIN = 8
"""The perturbation is shown this many times as large, around mid-grey."""

_IMAGES, _QUALITY = (2, 1), (75, 60)
"""Of a run that has its page to itself or shares it with few, and of one among many: a page stays below 5 MB."""
_MID = 128


@dataclass(frozen=True)
class ExampleImage:
    """One image and whether the target's prediction is right; None if it was not evaluated."""

    name: str
    uri: str
    right: bool | None = None
    predicted_class: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class ExampleRow:
    """The tiles of one image; `index` is its place in the data set."""

    index: int
    images: list[ExampleImage]


@dataclass(frozen=True)
class Examples:
    """The examples of one run, all under the same attack; `reason` says why there are none."""

    caption: str = ""
    rows: tuple[ExampleRow, ...] = ()
    reason: str = ""


def examples(run: Run, store: Store, crowded: bool = False) -> Examples:
    """Examples under the attack with the highest undefended error.

    Fewer images at a lower quality on a `crowded` page.
    """
    if any(FIGURES[name].pictures for name in run.record.get("figures") or () if name in FIGURES):
        return Examples(reason="See the figures of this run, which show images.")
    cells = {cell.key: cell for cell in run.cells}
    bare = {
        cell_key: run.wrong[cell_key]
        for cell_key in run.wrong
        if cell_key.defense == UNDEFENDED and cell_key.attack != CLEAN
    }
    if not bare:
        return Examples(reason="No undefended attack is done yet.")
    attacked = max(bare, key=lambda cell_key: int(bare[cell_key].sum()))
    clean = CellKey.clean(attacked.target, UNDEFENDED)
    try:
        images, adv = (sample(store, cells.get(cell_key)) for cell_key in (clean, attacked))
    except RdpBenchError as error:
        return Examples(reason=f"No images: {error}")
    how = images.shape[-1], _QUALITY[crowded]
    defended: dict[str, Image | str] = {}
    for name in run.axis("defenses"):
        cell_key = replace(attacked, defense=name)
        if name != UNDEFENDED and cell_key in cells:
            try:
                defended[name] = sample(store, cells[cell_key])
            except RdpBenchError as error:
                defended[name] = str(error)
    strips = []
    for i in range(min(_IMAGES[crowded], len(images), len(adv))):
        noise = np.clip(_MID + GAIN * (adv[i].astype(int) - images[i]), 0, 255).astype(np.uint8)
        tiles = [
            _tile("Clean", images, i, run, clean, how),
            _tile("Attacked", adv, i, run, attacked, how),
            ExampleImage(f"Perturbation ×{GAIN}", _uri(noise, how)),
        ]
        for name, kept in defended.items():
            tiles.append(_tile(display_name(name), kept, i, run, replace(attacked, defense=name), how))
        strips.append(ExampleRow(i, tiles))
    crafted = f"{display_name(attacked.attack)} on {display_name(attacked.source)}, ε = {run.eps(attacked.eps)}"
    return Examples(f"{crafted}; the target is {display_name(attacked.target)}.", tuple(strips))


def _tile(name: str, kept: "Image | str", i: int, run: Run, cell_key: CellKey, how: tuple[int, int]) -> ExampleImage:
    if isinstance(kept, str) or i >= len(kept):
        return ExampleImage(name, "", reason=kept if isinstance(kept, str) else "not stored")
    wrong = run.wrong_first_sample(cell_key)
    if wrong is None:
        return ExampleImage(name, _uri(kept[i], how))
    return ExampleImage(name, _uri(kept[i], how), not wrong[i], int(run.predicted[cell_key][i]))


def _uri(image: "Image", how: tuple[int, int]) -> str:
    """A data URI of uint8 `[3, h, w]`, shrunk where a defense enlarged it; `how`: size in pixels, JPEG quality."""
    size, quality = how
    return to_jpeg_uri(to_pillow(resized(image, size)), quality)
