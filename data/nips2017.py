"""The NIPS-2017 competition's layout: `images/<ImageId>.png` and `dev_dataset.csv`.

The DEV set is 1000 PNGs of 299 x 299, used pixel for pixel. Its labels count 0 as "background"
(TensorFlow's ids), so ImageNet's first class is 1: timm's and torchvision's id is TrueLabel - 1.
"""

import re
from pathlib import Path

from rdp_bench.data._labelled import SIZE, Images, read_rows
from rdp_bench.errors import BadImageError

TABLE = "dev_dataset.csv"
IMAGE_ID = re.compile(r"[0-9a-f]{16}")


def nips2017(table: Path, *, size: int = SIZE) -> Images:
    """The images that `table` (a dev_dataset.csv) lists, in its order; `ids` are its ImageIds.

    `labels` and, where there is such a column, `targets` are counted from 0. Its name is "nips2017" if
    the ImageIds are of the competition's form (0c7ac4a8c9dfa802): the papers' numbers are then shown
    beside ours. Other images in this layout go by their folder's name.

    Raises:
        BadImageError: no `images/` beside it; a missing column, duplicate or label outside 1..1000.
    """
    folder = table.resolve().parent / "images"
    if not folder.is_dir():
        raise BadImageError(f"{table}: NIPS-2017's layout has a folder images/ beside this file; put the PNGs there")
    rows = read_rows(table, "ImageId", "TrueLabel")
    ids = tuple(row.text("ImageId").removesuffix(".png") for row in rows)
    targeted = "TargetClass" in rows[0].cells
    return Images(
        name="nips2017" if all(IMAGE_ID.fullmatch(id_) for id_ in ids) else folder.parent.name,
        size=size,
        ids=ids,
        labels=tuple(row.label("TrueLabel", first=1) for row in rows),
        paths=tuple(folder / f"{id_}.png" for id_ in ids),
        origin=table,
        targets=tuple(row.label("TargetClass", first=1) for row in rows) if targeted else (),
    )
