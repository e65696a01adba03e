"""The frontier of the adversarially trained target: clean agreement against error under TI-DIM, blend by blend.

python docs/training/frontier.py TRAINED.safetensors ... --images PHOTOGRAPHS

measures products of `rdp-bench train ens-adv` on the held-out photographs and writes frontier.csv; without arguments,
only frontier.svg is drawn from it.
"""

import argparse
import copy
import csv
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rdp_bench import csvtext
from rdp_bench.cache.files import write_atomic

HERE = Path(__file__).parent
SHEET, FIGURE = HERE / "frontier.csv", HERE / "frontier.svg"
BLENDS = (0.0, 0.25, 0.5, 0.7, 0.85, 1.0, 1.15)
"""Shares of the way from the natural weights to the trained ones; beyond 1, further in the same direction."""
SETS = ("clean", "fgsm", "mi-fgsm", "ti-dim")
COLUMNS = ("training", "blend", *(f"agree_{name}" for name in SETS))
ROOM = 3.0
"""Points of agreement between two labels."""
AIM = (95.0, 50.0)
"""Least clean agreement, and highest error under TI-DIM, of the aim."""


def measure(products: list[Path], images: Path) -> Iterator[dict[str, Any]]:
    """Agreement in percent with the natural network's clean view, for each training and blend."""
    from rdp_bench.cache.store import default_root
    from rdp_bench.train.photos import SHORT, open_photos
    from rdp_bench.train.recipes.ens_adv import EnsAdv
    from rdp_bench.weights import files

    for product in products:
        card = files.read_metadata(product)["card"]
        recipe = EnsAdv(EnsAdv.settings("compact", {}), "cpu")
        recipe.begin_with(files.read_tensors(product), "ens-adv", product)
        photos = open_photos(images, recipe.options.crop, default_root(), SHORT)
        validate: Any = recipe.validation(photos.validation(64))
        for blend in BLENDS:
            validate.product = partial(mixed, recipe, blend / card["options"]["blend"])
            found = validate(recipe.purify)
            yield {"training": f"{card['steps']} steps", "blend": blend} | {
                name: round(found[name], 3) for name in COLUMNS if name in found
            }


def mixed(recipe: Any, share: float) -> Any:
    """The natural network, moved `share` of the way to the recipe's student, or past it."""
    made = copy.deepcopy(recipe.teacher)
    for weight, trained in zip(made.parameters(), recipe.nets["student"].parameters(), strict=True):
        weight.data.lerp_(trained.detach(), share)
    return made


def draw(rows: list[dict[str, str]]) -> bytes:
    """A line for each training, a point for each blend; a point beside a labelled one has no label."""
    from matplotlib.figure import Figure

    from rdp_bench.reports.figures.drawing import COLORS, save, styled

    with styled():
        figure = Figure(figsize=(4.6, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.axvspan(AIM[0], 101, ymax=(AIM[1] - 40) / 60, color="#e6e8ee", lw=0)
        axes.text(100.6, 41.5, "aim", ha="right")
        for color, training in zip(COLORS, dict.fromkeys(row["training"] for row in rows), strict=False):
            mine = [row for row in rows if row["training"] == training]
            x = [float(row["agree_clean"]) for row in mine]
            y = [100 - float(row["agree_ti-dim"]) for row in mine]
            axes.plot(x, y, marker="o", ms=3.5, lw=1, color=color, label=training)
            last = float("inf")
            for left, up, row in zip(x, y, mine, strict=True):
                if abs(left - last) > ROOM:
                    axes.annotate(
                        f"{float(row['blend']):g}",
                        (left, up),
                        (2, 4),
                        textcoords="offset points",
                        fontsize=7,
                        color=color,
                    )
                    last = left
        axes.set(
            xlim=(60, 101), ylim=(40, 100), xlabel="agreement on clean photographs, %", ylabel="error under TI-DIM, %"
        )
        axes.legend(frameon=False, loc="upper left")
        axes.grid(alpha=0.2)
        return save(figure)["svg"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("products", nargs="*", type=Path, help="products of ens-adv")
    parser.add_argument("--images", type=Path, help="the photographs of the training")
    asked = parser.parse_args()
    if asked.products:
        write_atomic(SHEET, csvtext.records(COLUMNS, list(measure(asked.products, asked.images))).encode())
    with SHEET.open() as file:
        write_atomic(FIGURE, draw(list(csv.DictReader(file))))
