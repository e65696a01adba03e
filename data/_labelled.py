"""Image files with labels: the `Dataset` that every loader here returns, and how a CSV is read."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rdp_bench.data._images import prepare
from rdp_bench.errors import BadImageError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CLASSES = 1000
SIZE = 299  # the NIPS-2017 protocol


@dataclass
class Images:
    """Labelled image files, in a fixed order; each is decoded when it is asked for.

    `labels` are ImageNet ids as timm and torchvision count them, 0..999. `targets` are the classes of
    a targeted attack, where the dataset has them. `origin` is the folder or CSV all this was read from.
    """

    name: str
    size: int
    ids: Sequence[str]
    labels: Sequence[int]
    paths: Sequence[Path]
    origin: Path
    targets: Sequence[int] = ()
    classes: ClassVar[int] = CLASSES

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
        return replace(
            self,
            ids=self.ids[:limit],
            labels=self.labels[:limit],
            paths=self.paths[:limit],
            targets=self.targets[:limit],
        )

    def require_files(self) -> None:
        """Raises `BadImageError`, naming the first, if files are missing."""
        missing = [path for path in self.paths if not path.is_file()]
        if missing:
            raise BadImageError(
                f"{self.origin}: {len(missing)} of {len(self.paths)} image files are missing, "
                f"the first is {missing[0]}. Add them, or drop their rows"
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
            counted = "1 is ImageNet's first class" if first else "0 is ImageNet's first class"
            raise BadImageError(f"{self.where}: {column} {text} is outside {first}..{last} ({counted})")
        return int(text) - first


def read_rows(path: Path, key: str, *columns: str) -> list[Row]:
    """The rows of a CSV with a header, blank lines left out; UTF-8, with or without a BOM.

    Raises:
        BadImageError: not readable as such, a column among `key` and `columns` is missing, a row has
            more or fewer cells than the header, `key` stands there twice, or there are no rows.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadImageError(f"{path}: cannot be read as a CSV in UTF-8 ({error})") from error
    return rows_of(content, path, key, *columns)


def rows_of(content: bytes, path: Path | str, key: str, *columns: str) -> list[Row]:
    """As `read_rows`, of what is or would be in the file `path`; errors name it."""
    try:
        reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        lines = [([cell.strip() for cell in cells], reader.line_num) for cells in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadImageError(f"{path}: cannot be read as a CSV in UTF-8 ({error})") from error
    lines = [(cells, number) for cells, number in lines if any(cells)]
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
