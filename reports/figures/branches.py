"""Outputs of the branches of RDP for attacked images: the paper's Figure 7."""

from rdp_bench.errors import RdpBenchError, UsageError
from rdp_bench.picture import resized
from rdp_bench.reports.figures import drawing
from rdp_bench.reports.figures.drawing import PAGE, ReportFigure, tidy
from rdp_bench.reports.figures.image_grid import Row, Tile, rows_of_tiles
from rdp_bench.reports.figures.sample_images import COLUMNS, SampleImages, psnr_of
from rdp_bench.results.rows import display_name
from rdp_bench.specs import CLEAN, UNDEFENDED, parse_spec

_NAMED = {
    (UNDEFENDED, None): "Adversarial",
    ("rdp", None): "Purified",
    ("rdp-reconstruction", None): "Reconstructed",
    ("rdp-reconstruction", "random"): "Random latent",
}
_ROWS = 4


def branches(kept: SampleImages) -> ReportFigure | None:
    """Stored images under the first attack: adversarial, and the output of each defense or branch; two images per row.

    Below each is its PSNR to the clean and to the adversarial image. None where nothing is kept.
    """
    attack = kept.attacks[0]
    try:
        clean, adversarial = kept.images(CLEAN), kept.images(attack)
    except RdpBenchError:
        return None
    lines, blocks = [], []
    guards = [UNDEFENDED, *kept.defenses]
    for i in range(min(len(clean), _ROWS)):
        tiles = []
        for defense in guards:
            try:
                shown = resized(kept.images(attack, defense)[i], clean.shape[-1])
            except (RdpBenchError, IndexError) as error:
                tiles.append(Tile(None, text=str(error)))
                continue
            numbers = [f"{psnr_of(image, shown):.1f}" for image in (clean[i], adversarial[i])]
            text = " / ".join(numbers[: 1 + (defense != UNDEFENDED)]) + " dB"
            tiles.append(Tile(shown, kept.right(attack, defense, i), text))
            lines.append(kept.line(attack, defense, i, clean[i], shown))
        blocks.append(tiles)
    heads = [_name(defense) for defense in guards]
    rows = [
        Row(
            [tile for block in blocks[i : i + 2] for tile in block],
            heads=heads * len(blocks[i : i + 2]) if i == 0 else (),
        )
        for i in range(0, len(blocks), 2)
    ]
    caption = (
        f"Outputs of the two branches of RDP for {display_name(attack)} {kept.crafted}. Purified: the output of P. "
        "Reconstructed: the output of R, from P's natural latent and its own. Random latent: the output of R with "
        "noise "
        "of the same mean and standard deviation per channel in place of the natural latent. Numbers: PSNR to the "
        "clean "
        f"/ to the adversarial image. Blue tick: {display_name(kept.target)} is right. Red cross: it is wrong."
    )
    with drawing.styled():
        return ReportFigure(
            "branches",
            caption,
            drawing.save(rows_of_tiles(rows, PAGE, block=len(guards)), dpi=300),
            tidy(COLUMNS, lines),
        )


def _name(defense: str) -> str:
    try:
        spec = parse_spec(defense)
    except UsageError:  # a chain
        return display_name(defense)
    return _NAMED.get((spec.name, dict(spec.params).get("latent")), display_name(defense))
