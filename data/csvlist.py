"""Lists of images and labels: a CSV of path,label, TransferAttack's labels.csv, and similar tables."""

import os
from pathlib import Path

from rdp_bench.data._labelled import CLASSES, SIZE, Images, Row, inside, read_rows
from rdp_bench.data.imagefolder import imagenet_synsets
from rdp_bench.errors import BadImageError

PATH = "path"
NAMES = ("filename", "file", "image")
"""Columns with a file name inside the folder of the data set."""

TARGETS = ("target", "targeted_label", "TargetClass")
"""Columns with the class of a targeted attack, counted from the same base as labels that are numbers."""

TRANSFER_ATTACK = "labels.csv"
"""TransferAttack's table of filename,label, beside images/; labels count from 0."""


def csvlist(table: Path, columns: list[str], *, size: int = SIZE, label_base: int | None = None) -> Images:
    """Return the images that a table lists, in its order.

    A file name is in the column `path` (absolute, or relative to the table's folder), or in `filename`, `file` or
    `image` (inside the folder `images/` beside the table if it exists, otherwise in the table's folder). The ids are
    these names, normalised. A label is an ImageNet class number or a synset (n01440764). A column `target`,
    `targeted_label` or `TargetClass` gives the targets. The data set has the name of the file, TransferAttack's that of
    its folder.

    Args:
        table: the file.
        columns: the names in its first line.
        size: side of the prepared images in pixels.
        label_base: 0 or 1, the number of the first class. Without it, lists of `path` and labels.csv count from 0; in
            other lists, the occurrence of label 0 or 1000 decides.

    Raises:
        BadImageError: a column is missing, a name is repeated or points outside the folder, a label is not a class, or
            the base of the labels cannot be determined.
    """
    key = next((name for name in (PATH, *NAMES) if name in columns), PATH)
    rows = read_rows(table, key, "label")
    folder = table.resolve().parent
    if key != PATH and (folder / "images").is_dir():
        folder = folder / "images"
    counted = label_base
    if counted is None and (key == PATH or table.name == TRANSFER_ATTACK):
        counted = 0
    target = next((name for name in TARGETS if name in columns), None)
    labels = classes(rows, "label", counted)
    numbered = [row for row in rows if not row.text("label").startswith("n")]  # synsets do not say it
    targets = classes(rows, target, _base(numbered, "label", counted) if numbered else counted) if target else []
    # "a.png" and "./b/../a.png" are one image.
    ids: dict[str, str] = {}
    for row in rows:
        id_ = Path(os.path.normpath(row.text(key)) if key == PATH else inside(row, key)).as_posix()
        if id_ in ids:
            raise BadImageError(f"{row.where}: {key} '{row.text(key)}' is repeated, first as '{ids[id_]}'; keep one")
        if "\0" in id_:
            raise BadImageError(f"{row.where}: {key} {row.text(key)!r} is not a file name")
        ids[id_] = row.text(key)
    return Images(
        name=table.resolve().parent.name if table.name == TRANSFER_ATTACK else table.stem,
        size=size,
        ids=tuple(ids),
        labels=tuple(labels),
        paths=tuple(folder / id_ for id_ in ids),
        origin=table,
        targets=tuple(targets),
        # Plain numbers may count the classes of any data set.
        classes=CLASSES if any(row.text("label").startswith("n") for row in rows) else None,
    )


def classes(rows: list[Row], column: str, base: int | None) -> list[int]:
    """Return the classes in `column`, counted from 0; cells are synsets, or numbers from `base` (None: see `_base`)."""
    synsets = imagenet_synsets() if any(row.text(column).startswith("n") for row in rows) else {}
    numbers = [row for row in rows if row.text(column) not in synsets]
    counted = _base(numbers, column, base)
    return [
        synsets[row.text(column)] if row.text(column) in synsets else row.label(column, first=counted) for row in rows
    ]


def _base(rows: list[Row], column: str, base: int | None) -> int:
    """Return the base of the numbers in `column`, 0 or 1; `base` if it is known."""
    if base is not None:
        return base
    found = {row.text(column) for row in rows}
    if "0" in found or not any(text.isdecimal() for text in found):
        return 0
    if str(CLASSES) in found:
        return 1
    where = rows[0].where.rpartition(", line")[0]
    raise BadImageError(
        f"{where}: do its labels count from 0 or from 1? Neither 0 nor {CLASSES} occurs; pass "
        f'--dataset "{where}(label_base=0)" if class 0 is ImageNet\'s first (tench), or label_base=1'
    )
