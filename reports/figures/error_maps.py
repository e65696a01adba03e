"""Errors that remain after each defense, relative to the clean image: the paper's Figure 6."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rdp_bench.budgets import LINF
from rdp_bench.errors import RdpBenchError
from rdp_bench.picture import resized
from rdp_bench.reports.figures import drawing
from rdp_bench.reports.figures.drawing import PAGE, SMALL, ReportFigure, shorten, tidy
from rdp_bench.reports.figures.image_grid import Row, Tile, rows_of_tiles
from rdp_bench.reports.figures.sample_images import COLUMNS, SampleImages, error, psnr_of
from rdp_bench.results.rows import display_name
from rdp_bench.specs import CLEAN, UNDEFENDED, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ACROSS = 6
_MAP = "inferno"  # black is no error


@dataclass(frozen=True)
class _Column:
    """A purified image above, its error below."""

    name: str
    above: Tile
    below: Tile | None = None


def error_maps(kept: SampleImages) -> ReportFigure | None:
    """The first stored image under the first attack: purified images above their error maps, one column per defense.

    The maps' scale ends at twice eps, so that the attack itself lies in its middle whatever the defenses do. None
    where no clean image is kept, and for norms other than L-infinity.
    """
    if kept.run.norm != LINF:
        return None
    try:
        clean = kept.images(CLEAN)[0]
    except RdpBenchError:
        return None
    attack, top = kept.attacks[0], 2 * kept.eps
    columns = [_Column("Clean", Tile(clean, kept.right(CLEAN, UNDEFENDED, 0)))]
    lines, enlarged = [], []
    for defense in [UNDEFENDED, *kept.defenses]:
        name = "Attacked" if defense == UNDEFENDED else display_name(defense)
        try:
            found = kept.images(attack, defense)[0]
        except RdpBenchError as problem:
            columns.append(_Column(name, Tile(None, text=str(problem))))
            continue
        restored = resized(found, clean.shape[-1])
        enlarged += [name] if restored is not found else []
        lines.append(kept.line(attack, defense, 0, clean, restored))
        wrong = error(clean, restored)
        text = f"{psnr_of(clean, restored):.1f} dB, {wrong.mean():.1f}"
        columns.append(
            _Column(name, Tile(restored, kept.right(attack, defense, 0)), Tile(wrong, None, text, _MAP, (0, top)))
        )
    caption = (
        f"Errors that remain after each defense. Attack: {display_name(attack)} {kept.crafted}. Above: the purified "
        "image. Below: its absolute difference from the clean image, mean over the channels, on a scale up to "
        f"2ε = {show(top)}; darker is better. Numbers: PSNR, and mean absolute error in /255. Blue tick: "
        f"{display_name(kept.target)} is right. Red cross: it is wrong.{_moved(enlarged)}"
    )
    rows, shown = [], shorten((column.name for column in columns), 16)
    for start in range(0, len(columns), _ACROSS):
        part = columns[start : start + _ACROSS]
        heads = [shown[column.name] for column in part]
        rows.append(Row([column.above for column in part], heads=heads, gap=0.1 if start else 0.03))
        rows.append(Row([column.below for column in part]))
    with drawing.styled():
        figure = rows_of_tiles(rows, PAGE)
        _bar(figure, top)
        return ReportFigure("error-maps", caption, drawing.save(figure, dpi=300), tidy(COLUMNS, lines))


def _moved(enlarged: list[str]) -> str:
    """A note on images of another size."""
    if not enlarged:
        return ""
    text = f" Images of {' and '.join(enlarged)} are larger and were resized to the clean image's size (Lanczos)."
    if moved := [name for name in enlarged if name.startswith("R&P")]:
        text += f" {' and '.join(moved)} also shifts and may mirror images, which counts as error."
    return text


def _bar(figure: "Figure", top: float) -> None:
    """The colour bar, below the clean image."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    above = figure.axes[0].get_position()
    ax = figure.add_axes(
        (above.x0 + 0.1 * above.width, above.y0 - 0.5 * above.height, 0.8 * above.width, 0.08 * above.height)
    )
    bar: Any = figure.colorbar(
        ScalarMappable(Normalize(0, top), _MAP), cax=ax, orientation="horizontal", extend="max", ticks=[0, top / 2, top]
    )
    bar.outline.set_visible(False)
    ax.tick_params(labelsize=SMALL, length=2)
    ax.set_title("absolute error, /255", fontsize=SMALL, loc="center", pad=3)
