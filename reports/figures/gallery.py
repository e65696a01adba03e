"""Attacked images above purified ones, marked right or wrong: the paper's Figure 5."""

from rdp_bench.errors import RdpBenchError
from rdp_bench.picture import resized
from rdp_bench.reports.figures import drawing
from rdp_bench.reports.figures.drawing import PAGE, ReportFigure, tidy
from rdp_bench.reports.figures.image_grid import Row, Tile, rows_of_tiles
from rdp_bench.reports.figures.sample_images import COLUMNS, SampleImages
from rdp_bench.results.rows import display_name
from rdp_bench.specs import CLEAN, UNDEFENDED

_IMAGES = 3  # of one defense they fill a page of a paper


def gallery(kept: SampleImages) -> ReportFigure | None:
    """For each of the first stored images, one undefended row and one row per defense; one column per attack.

    None where no clean image is kept.
    """
    try:
        clean = kept.images(CLEAN)
    except RdpBenchError:
        return None
    attacks = [*([CLEAN] if CLEAN in kept.run.axis("attacks") else []), *kept.attacks]
    guards = [UNDEFENDED, *kept.defenses]
    lines, rows = [], []
    for i, image in enumerate(clean[:_IMAGES]):
        for defense in guards:
            tiles = []
            for attack in attacks:
                try:
                    shown = resized(kept.images(attack, defense)[i], image.shape[-1])
                except (RdpBenchError, IndexError) as error:
                    tiles.append(Tile(None, text=str(error)))
                    continue
                tiles.append(Tile(shown, kept.right(attack, defense, i)))
                lines.append(kept.line(attack, defense, i, image, shown))
            first = defense == UNDEFENDED
            heads = [
                display_name(attack).capitalize() if attack == CLEAN else display_name(attack) for attack in attacks
            ]
            name = "undefended" if first else display_name(defense)
            rows.append(Row(tiles, name, heads if first and i == 0 else (), 0.09 if first and i else 0.03))
    caption = (
        f"Attacked and purified images. Attacks {kept.crafted}; undefended above, purified below. Blue tick: "
        f"{display_name(kept.target)} is right. Red cross: it is wrong."
    )
    with drawing.styled():
        return ReportFigure("gallery", caption, drawing.save(rows_of_tiles(rows, PAGE), dpi=300), tidy(COLUMNS, lines))
