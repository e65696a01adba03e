"""Rows of square images, each marked by whether the target's prediction is right."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rdp_bench.reports.figures.drawing import LETTER, RIGHT, SIZE, SMALL, WRONG, short, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

_HEAD, _TEXT, _BETWEEN, _GAP = 0.17, 0.15, 0.03, 0.1  # inches
_LARGEST = 1.7  # side of a tile
_DOT = 0.065  # radius of a mark


@dataclass(frozen=True)
class Tile:
    """One image `[3, h, w]` (None: missing, `text` says why), whether the prediction is right, and a text below."""

    image: "NDArray[Any] | None"
    right: bool | None = None
    text: str = ""
    cmap: str | None = None  # for an image `[h, w]` of numbers, with `limits`
    limits: tuple[float, float] = (0, 1)


@dataclass(frozen=True)
class Row:
    """One row of tiles, with `gap` inches above it."""

    tiles: Sequence[Tile | None]
    name: str = ""
    heads: Sequence[str] = ()
    gap: float = 0.03


def rows_of_tiles(rows: Sequence[Row], width: float, below: float = 0.0, block: int = 0) -> "Figure":
    """Rows of square pictures, `width` inches wide, over `below` free ones; to be drawn under STYLE.

    Every `block` columns there is a gap.
    """
    from matplotlib.figure import Figure

    left = 0.2 * any(row.name for row in rows)
    columns = max(len(row.tiles) for row in rows)
    gaps = (columns - 1) // block if block else 0
    side = min((width - left - _BETWEEN * (columns - 1) - _GAP * gaps) / columns, _LARGEST)
    size = SIZE if side > 1 else SMALL  # of the heads
    talls = [
        row.gap + _HEAD * bool(row.heads) + side + _TEXT * any(t and t.image is not None and t.text for t in row.tiles)
        for row in rows
    ]
    height = sum(talls) + 0.02 + below
    figure = Figure((width, height))
    top = height
    room = side / (LETTER * size / SIZE)
    for row, tall in zip(rows, talls, strict=True):
        heads = shorten(row.heads, room)
        y = top - row.gap - _HEAD * bool(row.heads) - side
        if row.name:
            figure.text(0.09 / width, (y + side / 2) / height, row.name, rotation=90, ha="center", va="center")
        for i, tile in enumerate(row.tiles):
            x = left + i * (side + _BETWEEN) + (_GAP * (i // block) if block else 0)
            if i < len(row.heads):
                head = heads[row.heads[i]]
                figure.text((x + side / 2) / width, (y + side + 0.05) / height, head, ha="center", fontsize=size)
            if tile is None:
                continue
            ax = figure.add_axes((x / width, y / height, side / width, side / height))
            _tile(ax, tile, side)
            if tile.image is not None and tile.text:
                figure.text((x + side / 2) / width, (y - 0.11) / height, tile.text, ha="center", fontsize=SMALL)
        top -= tall
    return figure


def _tile(ax: "Axes", tile: Tile, side: float) -> None:
    ax.set_axis_off()
    if tile.image is None:
        ax.text(0.5, 0.5, short(tile.text, int(side / 0.06)), ha="center", va="center", fontsize=SMALL)
        return
    if tile.cmap:
        ax.imshow(tile.image, cmap=tile.cmap, vmin=tile.limits[0], vmax=tile.limits[1], interpolation="none")
    else:
        ax.imshow(tile.image.transpose(1, 2, 0), interpolation="none")
    if tile.right is not None:
        _mark(ax, tile.right, side)


def _mark(ax: "Axes", right: bool, side: float) -> None:
    """A tick on a blue dot or a cross on a red one, drawn because not every font has these glyphs."""
    r = _DOT / side
    x, y = 1 - 1.35 * r, 1.35 * r  # lower right
    strokes = (
        [[(-0.45, 0.0), (-0.1, -0.38), (0.5, 0.4)]]
        if right
        else [[(-0.4, -0.4), (0.4, 0.4)], [(-0.4, 0.4), (0.4, -0.4)]]
    )
    ax.scatter([x], [y], s=(2 * 72 * _DOT) ** 2, c=RIGHT if right else WRONG, edgecolors="white", linewidths=0.7,
               transform=ax.transAxes, zorder=3, clip_on=False)  # fmt: skip
    for stroke in strokes:
        ax.plot([x + r * a for a, _ in stroke], [y + r * b for _, b in stroke], color="white", linewidth=1.1,
                transform=ax.transAxes, zorder=4, solid_capstyle="round")  # fmt: skip
