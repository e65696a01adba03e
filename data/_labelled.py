"""Image files with labels: the `Dataset` that every loader here returns, and how a CSV is read."""

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
LARGEST_TABLE = 1 << 28
"""Bytes of a table of labels."""


@dataclass
class Images:
    """Labelled image files, in a fixed order; each is decoded when it is asked for.

    `labels` are ImageNet ids as timm and torchvision count them, 0..999. `targets` are the classes of
    a targeted attack, counted alike, or empty. `origin` is the folder or list all this was read from.
    `note` is what a reader of the results must know of the images, or empty. `classes` is the number of classes, or
    None where the files do not say that they are ImageNet's.
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
        """Image `index` as uint8 `[3, size, size]`, RGB, prepared as `_images` says.

        Raises:
            BadImageError: the file is missing, damaged, or no image; the message names it.
        """
        return prepare(self.paths[index], self.size)

    def first(self, limit: int) -> Images:
        """The same without what comes after its first `limit` images."""
        return self.select(range(len(self.ids))[:limit])

    def select(self, indices: Sequence[int]) -> Images:
        """The images at `indices`, in that order."""
        return replace(
            self,
            ids=tuple(self.ids[i] for i in indices),
            labels=tuple(self.labels[i] for i in indices),
            paths=tuple(self.paths[i] for i in indices),
            targets=tuple(self.targets[i] for i in indices) if self.targets else (),
        )

    def require_files(self) -> None:
        """Raises `BadImageError`, naming the first, if files are missing or are no regular files."""
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
    """One line of a CSV; `where` is how an error names it."""

    where: str
    cells: dict[str, str]

    def text(self, column: str) -> str:
        """The cell under `column`; an empty one is a `BadImageError`."""
        if not self.cells[column]:
            raise BadImageError(f"{self.where}: '{column}' is empty")
        return self.cells[column]

    def label(self, column: str, first: int = 0) -> int:
        """The class id under `column`, counted from 0, in a file that counts from `first`.

        Raises:
            BadImageError: it is not a whole number of `first`..`first + 999`.
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
    """The rows of a table with a header, blank lines left out; UTF-8, with or without a BOM.

    Cells are separated by commas, semicolons or tabs.

    Raises:
        BadImageError: not readable as such, a column among `key` and `columns` is missing, a row has
            more or fewer cells than the header, `key` stands there twice, or there are no rows.
    """
    return rows_of(read_file(path, LARGEST_TABLE), path, key, *columns)


def rows_of(content: bytes, path: Path | str, key: str, *columns: str) -> list[Row]:
    """As `read_rows`, of what is or would be in the file `path`; errors name it."""
    lines = _lines(content, path)
    header = lines[0][0] if lines else []
    for column in (key, *columns):
        if header.count(column) != 1:
            found = ", ".join(header) or "nothing"
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
            raise BadImageError(f"{where}: {key} '{row.text(key)}' is there already, on line {before}; keep one")
        rows.append(row)
    if not rows:
        raise BadImageError(f"{path}: no rows under its header")
    return rows


def columns_of(path: Path) -> list[str]:
    """The names in a table's first line.

    Raises:
        BadImageError: the file cannot be read as a table.
    """
    lines = _lines(read_file(path, LARGEST_TABLE), path)
    return lines[0][0] if lines else []


def inside(row: Row, column: str) -> str:
    """The file name under `column`, normalised, relative to the data set's folder.

    Raises:
        BadImageError: it is empty, absolute, or leaves the folder.
    """
    text = row.text(column)
    normal = os.path.normpath(text)
    if Path(text).is_absolute() or normal in (".", "..") or normal.startswith("../") or "\\" in text or "\0" in text:
        raise BadImageError(
            f"{row.where}: {column} {text!r} is absolute or leaves the data set's folder; give a name inside it"
        )
    return normal


def _lines(content: bytes, path: Path | str) -> list[tuple[list[str], int]]:
    """Cells and line number of every line that is not blank."""
    try:
        text = content.decode("utf-8-sig")
        header = text.lstrip().partition("\n")[0]
        separator = max(",;\t", key=header.count)  # the first of equals
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        lines = [([cell.strip() for cell in cells], reader.line_num) for cells in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadImageError(f"{path}: cannot be read as a CSV in UTF-8 ({error})") from error
    return [(cells, number) for cells, number in lines if any(cells)]
