"""ImageNet's validation images in one flat folder, with Kaggle's LOC_val_solution.csv or a text list of labels."""

import os
from pathlib import Path

from rdp_bench.data._images import SUFFIXES, read_file
from rdp_bench.data._labelled import LARGEST_TABLE, SIZE, Images, Row, inside, read_rows
from rdp_bench.data.csvlist import classes
from rdp_bench.data.imagefolder import imagenet_synsets
from rdp_bench.errors import BadImageError

KAGGLE = "LOC_val_solution.csv"
LISTS = ("val.txt", "imagenet_2012_validation_synset_labels.txt")
DEVKIT = "ILSVRC2012_validation_ground_truth.txt"

_PLACES = ("ILSVRC/Data/CLS-LOC/val", "Data/CLS-LOC/val", "val", "images", ".")
"""Folders of the images, relative to the folder of the list; Kaggle's archive first."""

_FIRST = "ILSVRC2012_val_00000001"
_FIRST_CLASS = 65  # sea snake, n01751748
_FIRST_CLASS_DEVKIT = 490

FIX = (
    "take Caffe's val.txt (lines of 'ILSVRC2012_val_00000001.JPEG 65') or Kaggle's LOC_val_solution.csv, or move the "
    "images into one folder per synset"
)


def kaggle(table: Path, *, size: int = SIZE) -> Images:
    """Return the images of `LOC_val_solution.csv`; the synset is the word in PredictionString that starts with n.

    Raises:
        BadImageError: a row does not name exactly one of ImageNet's 1000 synsets, or an ImageId points outside the
            folder.
    """
    rows = read_rows(table, "ImageId", "PredictionString")
    synsets = imagenet_synsets()
    labels = []
    for row in rows:
        found = {word for word in row.text("PredictionString").split() if word.startswith("n")}
        if len(found) != 1 or not found <= synsets.keys():
            named = ", ".join(sorted(found)) or "none"
            raise BadImageError(f"{row.where}: PredictionString names one of ImageNet's 1000 synsets, found {named}")
        labels.append(synsets[found.pop()])
    return _images(table, [inside(row, "ImageId") for row in rows], labels, size)


def text_list(table: Path, *, size: int = SIZE, label_base: int | None = None) -> Images:
    """Return the images of a text list: lines of `file label`, or one synset per line in the order of the images.

    A label is a class number or a synset. The base of the numbers, 0 or 1, is `label_base` if it is given. Otherwise
    the label of validation image 1 decides (65 in Caffe's val.txt), then the occurrence of label 0 or 1000.

    Raises:
        BadImageError: the format differs, the class numbers are those of the development kit (another order of the
            classes), or the base cannot be determined.
    """
    try:
        text = read_file(table, LARGEST_TABLE).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadImageError(f"{table}: cannot be read as text in UTF-8 ({error})") from error
    lines = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise BadImageError(f"{table}: no lines")
    if all(len(words) == 1 for _, words in lines):
        if any(words[0].isdecimal() for _, words in lines):
            raise _devkit(table)
        lines = [(number, [f"ILSVRC2012_val_{number:08d}", *words]) for number, words in lines]
    rows = []
    for number, words in lines:
        if len(words) != 2:
            raise BadImageError(f"{table}, line {number}: expected 'file label', found {len(words)} words")
        rows.append(Row(f"{table}, line {number}", {"file": words[0], "label": words[1]}))
    if label_base is None:
        label_base = _known_base(table, rows)
    names = [inside(row, "file") for row in rows]
    return _images(table, names, classes(rows, "label", label_base), size)


def _known_base(table: Path, rows: list[Row]) -> int | None:
    for row in rows:
        if Path(row.cells["file"]).stem == _FIRST and row.cells["label"].isdecimal():
            label = int(row.cells["label"])
            if label == _FIRST_CLASS_DEVKIT:
                raise _devkit(table)
            return {_FIRST_CLASS: 0, _FIRST_CLASS + 1: 1}.get(label)
    return None


def _devkit(table: Path) -> BadImageError:
    return BadImageError(
        f"{table}: the class numbers of ImageNet's development kit differ from those of networks (its meta.mat has "
        f"their order); {FIX}"
    )


def _images(table: Path, names: list[str], labels: list[int], size: int) -> Images:
    folder = table.resolve().parent
    stem = {name: name if Path(name).suffix.lower() in SUFFIXES else f"{name}.JPEG" for name in names}
    first = stem[names[0]]
    place = next((folder / each for each in _PLACES if os.path.lexists(folder / each / first)), folder)
    ids = [stem[name] for name in names]
    if len(set(ids)) < len(ids):
        twice = next(name for i, name in enumerate(ids) if name in ids[:i])
        raise BadImageError(f"{table}: '{twice}' is repeated; keep one")
    return Images(
        name=folder.name,
        size=size,
        ids=tuple(ids),
        labels=tuple(labels),
        paths=tuple(place / id_ for id_ in ids),
        origin=table,
    )
