"""NIPS-2017 DEV: its layout `images/<ImageId>.png` and `dev_dataset.csv`, and its two circulating copies.

The set has 1000 PNG files of 299 x 299 pixels, used pixel for pixel. Its labels use 0 for "background" (TensorFlow's
ids), so ImageNet's first class is 1, and the class in timm and torchvision is TrueLabel - 1.

Two copies circulate. Copy A: ZhengyuZhao/Targeted-Tansfer, yuyang-long/SSA, LMBTough/GE-advGAN. Copy B:
dongyp13/Translation-Invariant-Attacks, qilong-zhang/Patch-wise-iterative-attack. Copy B was re-encoded, and two of its
images are Flickr's card "This photo is no longer available". The labels of both copies are equal.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from rdp_bench.data._images import SUFFIXES
from rdp_bench.data._labelled import SIZE, Images, Row, inside, read_rows
from rdp_bench.errors import BadImageError, unknown_name
from rdp_bench.protocols import note_of

if TYPE_CHECKING:
    from rdp_bench.protocols import Dataset

NAME = "nips2017"
TABLE = "dev_dataset.csv"
TABLES = (TABLE, "images.csv")
"""Names of the table of labels: cleverhans' and Kaggle's."""

CARDS = ("362e4ac62cf888f4", "bd3617fcc985fe31")
"""Images that in copy B are Flickr's card "This photo is no longer available"."""

COPY_B = "copy B (re-encoded; differs from copy A by at most one level in 992 of 1000 images)"
DAMAGED = (
    "this is the card 'This photo is no longer available' of copy B, not the photograph; take the image from copy A"
)

EVERY_SECOND = "every-second"
"""Rows 1, 3, 5, ... of dev_dataset.csv: the 500 images of docs/results."""


@dataclass(frozen=True)
class Known:
    """An image in the manifest: classes counted from 1, and the first digits of its pixel hash in each copy."""

    label: int
    target: int
    copy_a: str
    copy_b: str


@cache
def manifest() -> dict[str, Known]:
    """Return the facts of all 1000 images by ImageId, in the order of dev_dataset.csv."""
    lines = files("rdp_bench.data").joinpath("nips2017.csv").read_text("ascii").splitlines()
    rows = (line.split(",") for line in lines if not line.startswith(("#", "ImageId")))
    return {image: Known(int(label), int(target), a, b) for image, label, target, a, b in rows}


def subsets() -> dict[str, list[str]]:
    """Return the named subsets: ImageIds in order."""
    return {EVERY_SECOND: [*manifest()][::2]}


def copy_of(image: str, digest: str) -> str:
    """Return "A" or "B", the copy in which the pixels of `image` have the hash `digest`; "" for neither."""
    known = manifest().get(image)
    if known and digest.startswith(known.copy_a):
        return "A"
    return "B" if known and digest.startswith(known.copy_b) else ""


def check_row(row: Row, image: str) -> None:
    """Check that TrueLabel and TargetClass of a row are the published ones.

    Raises:
        BadImageError: a value differs.
    """
    known = manifest()[image]
    for column, right in (("TrueLabel", known.label), ("TargetClass", known.target)):
        if column in row.cells and row.label(column, first=1) + 1 != right:
            raise BadImageError(
                f"{row.where}: {column} {row.cells[column]} of {image}, but NIPS-2017 DEV has {right}; restore the "
                "table, or list the images with labels of your own in a CSV of path,label"
            )


def nips2017(table: Path, *, size: int = SIZE, subset: str = "") -> Images:
    """Return the images that `table` lists, in its order; ids are its ImageIds.

    Labels and targets are counted from 0. The name of the data set is "nips2017" if every ImageId belongs to the
    competition. Then every label must be the published one, and the report shows the paper's numbers beside ours. Other
    images in this layout have the name of their folder. Images may have suffixes other than .png.

    Args:
        table: dev_dataset.csv or images.csv.
        size: side of the prepared images in pixels.
        subset: a named subset ("every-second"), or empty for all images.

    Raises:
        BadImageError: the folder `images/` beside the table or a column is missing, an ImageId is repeated, points
            outside the folder or has two files, a label is outside 1..1000 or not the published one, or images of the
            subset are missing.
    """
    folder = table.resolve().parent / "images"
    if not folder.is_dir():
        raise BadImageError(f"{table}: NIPS-2017's layout has a folder images/ beside this file; put the images there")
    rows = read_rows(table, "ImageId", "TrueLabel")
    ids = [_image_id(row) for row in rows]
    labels = [row.label("TrueLabel", first=1) for row in rows]
    targets = [row.label("TargetClass", first=1) for row in rows] if "TargetClass" in rows[0].cells else []
    official = all(id_ in manifest() for id_ in ids)
    if official:
        for row, id_ in zip(rows, ids, strict=True):
            check_row(row, id_)
    by_stem = _by_stem(folder)
    found = Images(
        name=NAME if official else folder.parent.name,
        size=size,
        ids=tuple(ids),
        labels=tuple(labels),
        paths=tuple(_file(folder, row, id_, by_stem) for row, id_ in zip(rows, ids, strict=True)),
        origin=table,
        targets=tuple(targets),
    )
    if subset:
        found = _subset(found, subset)
    found.note = _part(found.ids) if official else ""
    return found


def remarks(dataset: Dataset, hashes: Sequence[str]) -> list[str]:
    """Return remarks on the images of a data set for readers of the results.

    Args:
        dataset: the data set.
        hashes: its pixel hashes.

    Raises:
        BadImageError: an image is one of copy B's two cards.
    """
    found = [note] if (note := note_of(dataset)) else []
    if dataset.name != NAME:
        return found
    if dataset.size != SIZE:
        return [*found, f"{NAME}: at {dataset.size} pixels its images cannot be compared with the published copies"]
    copies = [copy_of(id_, digest) for id_, digest in zip(dataset.ids, hashes, strict=True)]
    for id_, copy in zip(dataset.ids, copies, strict=True):
        if copy == "B" and id_ in CARDS:
            raise BadImageError(f"data set {NAME}, image {id_}: {DAMAGED} (rdp-bench data get nips2017)")
    if count := copies.count("B"):
        found.append(f"{NAME}: {count} of {len(copies)} images are of {COPY_B}")
    if count := copies.count(""):
        found.append(
            f"{NAME}: {count} of {len(copies)} images have pixels of neither published copy, the first is "
            f"{dataset.ids[copies.index('')]} (saved as JPEG?); numbers are not comparable with published ones"
        )
    return found


def _image_id(row: Row) -> str:
    text = inside(row, "ImageId")
    return text[: -len(suffix)] if (suffix := Path(text).suffix).lower() in SUFFIXES else text


def _by_stem(folder: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 - names alone
    except OSError as error:
        raise BadImageError(f"{folder}: cannot be listed ({error.strerror})") from error
    for name in names:
        stem, suffix = os.path.splitext(name)  # noqa: PTH122
        if suffix.lower() in SUFFIXES:
            found.setdefault(stem, []).append(name)
    return found


def _file(folder: Path, row: Row, id_: str, by_stem: dict[str, list[str]]) -> Path:
    names = by_stem.get(id_, [])
    if len(names) > 1 and f"{id_}.png" not in names:
        raise BadImageError(f"{row.where}: ImageId '{id_}' has several files ({', '.join(names)}); keep one")
    return folder / (names[0] if len(names) == 1 else f"{id_}.png")


def _subset(found: Images, name: str) -> Images:
    if name not in subsets():
        raise unknown_name("subset of nips2017", name, subsets())
    place = {id_: index for index, id_ in enumerate(found.ids)}
    wanted = subsets()[name]
    missing = [id_ for id_ in wanted if id_ not in place]
    if missing:
        raise BadImageError(
            f"{found.origin}: subset '{name}' has {len(wanted)} images, {len(missing)} of them are not listed here, "
            f"the first is {missing[0]}"
        )
    return found.select([place[id_] for id_ in wanted])


def _part(ids: Sequence[str]) -> str:
    if len(ids) == len(manifest()):
        return ""
    named = next((f" (subset {name})" for name, wanted in subsets().items() if [*ids] == wanted), "")
    return f"{NAME}: {len(ids)} of the set's {len(manifest())} images{named}"
