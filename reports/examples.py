"""Examples: an image clean, attacked, its perturbation, and as every defense hands it on."""

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rdp_bench.cache.store import Store
from rdp_bench.errors import RdpBenchError
from rdp_bench.reports.figures.sample_images import at_size, sample
from rdp_bench.results.rows import UNDEFENDED, Place, Run, pretty

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Image = NDArray[np.uint8]

GAIN = 8
"""The perturbation is shown this many times as large, around mid-grey."""

_IMAGES, _QUALITY = (2, 1), (75, 60)
"""Of a run that has its page to itself or shares it with few, and of one among many: a page stays below 5 MB."""
_MID = 128
_PICTURED = {"spectra", "gallery", "error-maps", "branches"}


@dataclass(frozen=True)
class Tile:
    """One picture and what the target said to it: right, wrong, or None where nobody asked."""

    name: str
    uri: str
    right: bool | None = None
    said: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class Strip:
    """The tiles of one image; `index` is its place in the data set."""

    index: int
    tiles: list[Tile]


@dataclass(frozen=True)
class Examples:
    """The strips of one run, all under the same attack; `reason` where there are none."""

    caption: str = ""
    strips: tuple[Strip, ...] = ()
    reason: str = ""


def examples(run: Run, store: Store, crowded: bool = False) -> Examples:
    """Strips under the attack that no defense stands worst: the one with the highest undefended error.

    Fewer and plainer ones on a `crowded` page.
    """
    if _PICTURED & set(run.record.get("figures") or ()):
        return Examples(reason="The figures of this run are its pictures.")
    cells = {Place.of(cell): cell for cell in run.record["cells"]}
    bare = {place: run.wrong[place] for place in run.wrong if place.defense == UNDEFENDED and place.attack != "clean"}
    if not bare:
        return Examples(reason="No undefended attack is done yet.")
    attacked = max(bare, key=lambda place: int(bare[place].sum()))
    clean = Place("-", "clean", 0.0, attacked.target, UNDEFENDED)
    try:
        images, adv = (sample(store, cells.get(place)) for place in (clean, attacked))
    except RdpBenchError as error:
        return Examples(reason=f"No pictures: {error}")
    how = images.shape[-1], _QUALITY[crowded]
    defended: dict[str, Image | str] = {}
    for name in run.axis("defenses"):
        place = attacked._replace(defense=name)
        if name != UNDEFENDED and place in cells:
            try:
                defended[name] = sample(store, cells[place])
            except RdpBenchError as error:
                defended[name] = str(error)
    strips = []
    for i in range(min(_IMAGES[crowded], len(images), len(adv))):
        noise = np.clip(_MID + GAIN * (adv[i].astype(int) - images[i]), 0, 255).astype(np.uint8)
        tiles = [
            _tile("Clean", images, i, run, clean, how),
            _tile("Attacked", adv, i, run, attacked, how),
            Tile(f"Perturbation ×{GAIN}", _uri(noise, how)),
        ]
        for name, kept in defended.items():
            tiles.append(_tile(pretty(name), kept, i, run, attacked._replace(defense=name), how))
        strips.append(Strip(i, tiles))
    crafted = f"{pretty(attacked.attack)} on {pretty(attacked.source)}, ε = {run.eps(attacked.eps)}"
    return Examples(f"{crafted}; the target is {pretty(attacked.target)}.", tuple(strips))


def _tile(name: str, kept: "Image | str", i: int, run: Run, place: Place, how: tuple[int, int]) -> Tile:
    if isinstance(kept, str) or i >= len(kept):
        return Tile(name, "", reason=kept if isinstance(kept, str) else "not kept")
    wrong = run.mistaken(place)
    if wrong is None:
        return Tile(name, _uri(kept[i], how))
    return Tile(name, _uri(kept[i], how), not wrong[i], int(run.predicted[place][i]))


def _uri(image: "Image", how: tuple[int, int]) -> str:
    """A data URI of uint8 `[3, h, w]`, shrunk where a defense enlarged it; `how`: size in pixels, JPEG quality."""
    from PIL import Image as Pillow

    size, quality = how
    picture = Pillow.fromarray(np.ascontiguousarray(at_size(image, size).transpose(1, 2, 0)))
    file = io.BytesIO()
    # No chroma subsampling: it would smear the very patterns that are to be seen.
    picture.save(file, "JPEG", quality=quality, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
