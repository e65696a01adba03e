"""A list of images and labels: a CSV of path,label; TransferAttack's labels.csv; tables alike."""

import os
from pathlib import Path

from rdp_bench.data._labelled import CLASSES, SIZE, Images, Row, inside, read_rows
from rdp_bench.data.imagefolder import imagenet_synsets
from rdp_bench.errors import BadImageError

PATH = "path"
NAMES = ("filename", "file", "image")
"""Columns of a file's name inside the data set's folder."""

TARGETS = ("target", "targeted_label", "TargetClass")
"""Columns of the class of a targeted attack; counted as the labels are."""

TRANSFER_ATTACK = "labels.csv"
"""TransferAttack's table of filename,label, beside images/; counts from 0."""


def csvlist(table: Path, columns: list[str], *, size: int = SIZE, label_base: int | None = None) -> Images:
    """The images that `table` lists with a `label`; `columns` are the names in its first line.

    Images stand under `path` (from the CSV's own folder, or absolute: they may lie anywhere), or under `filename`,
    `file` or `image` (a name inside the folder `images/` beside the CSV; without one, inside the CSV's folder).
    `ids` are these names, normalised. A label is an ImageNet class number or a synset (n01440764). A column `target`,
    `targeted_label` or `TargetClass` gives `targets`. The order is the file's. The data set is called like the file,
    TransferAttack's like its folder.

    `label_base` says whether numbers count from 0 or 1. Without it, lists of `path` and labels.csv count from 0; in
    others a label 0 or 1000 decides.

    Raises:
        BadImageError: a missing column, a name that is there twice or leaves the folder, a label that is no class, or
            labels of which nobody can tell whether they count from 0 or 1.
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
    targets = classes(rows, target, _base(rows, "label", counted)) if target else []
    # "a.png" and "./b/../a.png" are one image.
    ids: dict[str, str] = {}
    for row in rows:
        id_ = Path(os.path.normpath(row.text(key)) if key == PATH else inside(row, key)).as_posix()
        if id_ in ids:
            raise BadImageError(f"{row.where}: {key} '{row.text(key)}' is there already as '{ids[id_]}'; keep one")
        if "\0" in id_:
            raise BadImageError(f"{row.where}: {key} {row.text(key)!r} is no file name")
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
    """The classes under `column`, counted from 0: synsets, or numbers from `base` on (None: as `_base` decides)."""
    synsets = imagenet_synsets() if any(row.text(column).startswith("n") for row in rows) else {}
    numbers = [row for row in rows if row.text(column) not in synsets]
    counted = _base(numbers, column, base)
    return [
        synsets[row.text(column)] if row.text(column) in synsets else row.label(column, first=counted) for row in rows
    ]


def _base(rows: list[Row], column: str, base: int | None) -> int:
    """Whether the numbers under `column` count from 0 or 1; `base` where that is known."""
    if base is not None:
        return base
    found = {row.text(column) for row in rows}
    if "0" in found or not any(text.isdecimal() for text in found):
        return 0
    if str(CLASSES) in found:
        return 1
    where = rows[0].where.rpartition(", line")[0]
    raise BadImageError(
        f"{where}: do its labels count from 0 or from 1? Neither 0 nor {CLASSES} is among them; say which: "
        f'--dataset "{where}(label_base=0)" if class 0 is ImageNet\'s first (tench), or label_base=1'
    )
