"""Image files with labels: the `Dataset` that every loader returns, and the reader of tables."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rdp_bench.data._images import prepare, read_file
from rdp_bench.errors import BadImageError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CLASSES = 1000
SIZE = 299  # the NIPS-2017 protocol
COLUMNS = (
    "path", "filename", "file", "image", "label", "target", "targeted_label", "ImageId", "TrueLabel", "TargetClass",
    "PredictionString",
)  # fmt: skip
"""Columns that a reader of tables knows; a header may write them in other cases."""

LARGEST_TABLE = 1 << 28
"""The largest table of labels in bytes."""


@dataclass
class Images:
    """Labelled image files in a fixed order, decoded on demand.

    Attributes:
        name: name of the data set in tables and keys of lists.
        size: side of the prepared images in pixels.
        ids: one unique name per image.
        labels: ImageNet classes in the order of timm and torchvision, 0..999.
        paths: one file per image.
        origin: the folder or list that was read.
        targets: classes of a targeted attack, in the same order; may be empty.
        note: a remark on the images for readers of the results; may be empty.
        classes: number of classes, or None if the files do not show that the labels are ImageNet's.
    """

    name: str
    size: int
    ids: Sequence[str]
    labels: Sequence[int]
    paths: Sequence[Path]
    origin: Path
    targets: Sequence[int] = ()
    note: str = ""
    classes: int | None = CLASSES

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UsageError(f"dataset '{self.name}': size must be at least 1, found {self.size}")

    def image(self, index: int) -> NDArray[np.uint8]:
        """Return image `index` as uint8 `[3, size, size]`, RGB; see `_images`.

        Raises:
            BadImageError: the file is missing, damaged, or not an image.
        """
        return prepare(self.paths[index], self.size)

    def first(self, limit: int) -> Images:
        """Return the first `limit` images."""
        return self.select(range(len(self.ids))[:limit])

    def select(self, indices: Sequence[int]) -> Images:
        """Return the images at `indices`, in that order."""
        return replace(
            self,
            ids=tuple(self.ids[i] for i in indices),
            labels=tuple(self.labels[i] for i in indices),
            paths=tuple(self.paths[i] for i in indices),
            targets=tuple(self.targets[i] for i in indices) if self.targets else (),
        )

    def require_files(self) -> None:
        """Check that every file exists.

        Raises:
            BadImageError: files are missing or not regular files; the message names the first.
        """
        missing = [path for path in self.paths if not path.is_file()]
        if missing:
            odd = " (not a regular file)" if os.path.lexists(missing[0]) else ""
            part = f"; rdp-bench data get nips2017 --from {self.origin.parent} --to NEW keeps the others"
            raise BadImageError(
                f"{self.origin}: {len(missing)} of {len(self.paths)} image files are missing, "
                f"the first is {missing[0]}{odd}. Add them, or drop their rows"
                + (part if self.name == "nips2017" else "")
            )


@dataclass(frozen=True)
class Row:
    """One row of a table; `where` names it in errors."""

    where: str
    cells: dict[str, str]

    def text(self, column: str) -> str:
        """Return the cell in `column`; an empty cell raises `BadImageError`."""
        if not self.cells[column]:
            raise BadImageError(f"{self.where}: '{column}' is empty")
        return self.cells[column]

    def label(self, column: str, first: int = 0) -> int:
        """Return the class in `column`, counted from 0, of a file that counts from `first`.

        Raises:
            BadImageError: the cell is not an integer in `first`..`first + 999`.
        """
        text, last = self.text(column), first + CLASSES - 1
        digits = text.removeprefix("-")
        if not (digits.isascii() and digits.isdigit()):
            raise BadImageError(f"{self.where}: {column} '{text}' is not a whole number {first}..{last}")
        if not first <= int(text) <= last:
            counted = "1 is ImageNet's first class" if first else "0 is ImageNet's first class; else: label_base=1"
            raise BadImageError(f"{self.where}: {column} {text} is outside {first}..{last} ({counted})")
        return int(text) - first


def read_rows(path: Path, key: str, *columns: str) -> list[Row]:
    """Return the rows of a table with a header, without blank lines.

    The file is UTF-8, with or without a BOM; cells are separated by commas, semicolons or tabs.

    Args:
        path: the table.
        key: a required column whose values are unique.
        columns: other required columns.

    Raises:
        BadImageError: the file is not such a table, a column is missing, a row has another number of cells than the
            header, a value of `key` is repeated, or there are no rows.
    """
    return rows_of(read_file(path, LARGEST_TABLE), path, key, *columns)


def rows_of(content: bytes, path: Path | str, key: str, *columns: str) -> list[Row]:
    """Parse `content` as `read_rows` does; errors name `path`."""
    lines = _lines(content, path)
    header = _header(lines)
    for column in (key, *columns):
        if header.count(column) != 1:
            found = ", ".join(lines[0][0] if lines else ()) or "nothing"
            raise BadImageError(f"{path}: needs one column '{column}' in its first line, found: {found}")
    rows: list[Row] = []
    seen: dict[str, int] = {}
    for cells, number in lines[1:]:
        where = f"{path}, line {number}"
        if len(cells) != len(header):
            raise BadImageError(f"{where}: {len(cells)} cells under {len(header)} columns")
        row = Row(where, dict(zip(header, cells, strict=True)))
        before = seen.setdefault(row.text(key), number)
        if before != number:
            raise BadImageError(f"{where}: {key} '{row.text(key)}' is repeated, first on line {before}; keep one")
        rows.append(row)
    if not rows:
        raise BadImageError(f"{path}: no rows under its header")
    return rows


def columns_of(path: Path) -> list[str]:
    """Return the names in the first line of a table.

    Raises:
        BadImageError: the file cannot be read as a table.
    """
    return _header(_lines(read_file(path, LARGEST_TABLE), path))


def _header(lines: list[tuple[list[str], int]]) -> list[str]:
    known = {name.casefold(): name for name in COLUMNS}
    return [known.get(name.casefold(), name) for name in lines[0][0]] if lines else []


def inside(row: Row, column: str) -> str:
    """Return the normalised file name in `column`, relative to the folder of the data set.

    Raises:
        BadImageError: the name is empty, absolute, or points outside the folder.
    """
    text = row.text(column)
    normal = os.path.normpath(text)
    if Path(text).is_absolute() or normal in (".", "..") or normal.startswith("../") or "\\" in text or "\0" in text:
        raise BadImageError(
            f"{row.where}: {column} {text!r} is absolute or leaves the data set's folder; give a name inside it"
        )
    return normal


def _lines(content: bytes, path: Path | str) -> list[tuple[list[str], int]]:
    """Return the cells and the line number of every line that is not blank."""
    try:
        text = content.decode("utf-8-sig")
        header = text.lstrip().partition("\n")[0]
        separator = max(",;\t", key=header.count)  # the first of equals
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        lines = [([cell.strip() for cell in cells], reader.line_num) for cells in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadImageError(f"{path}: cannot be read as a CSV in UTF-8 ({error})") from error
    return [(cells, number) for cells, number in lines if any(cells)]
