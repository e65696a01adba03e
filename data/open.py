"""The dataset that a user means: a registered name, a folder, or a CSV."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

# Imported to be registered: the entry must be there however this module was reached.
from rdp_bench.data import photos20 as _photos20  # noqa: F401
from rdp_bench.data._labelled import CLASSES, SIZE, Images
from rdp_bench.data._natural import convert
from rdp_bench.data.csvlist import csvlist
from rdp_bench.data.imagefolder import imagefolder
from rdp_bench.data.nips2017 import TABLE, nips2017
from rdp_bench.errors import BadImageError, UsageError, unknown
from rdp_bench.protocols import Dataset
from rdp_bench.registry import dataset
from rdp_bench.specs import parse_spec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_HOW = {
    "nips2017": "fetch it: rdp-bench data get nips2017",
    "imagenet-val": "nobody may hand it on: unpack yours, one folder a class, and name it with --dataset FOLDER",
}
"""How to come by the sets that built-in grids name and that do not install with the package."""


def open_dataset(spec: str, *, size: int | None = None, limit: int | None = None) -> Dataset:
    """The dataset that `spec` names, at most its first `limit` images, prepared at `size` (299).

    `spec` is a registered name (`photos20`, `photos20(size=224)`), else a path: a folder with
    dev_dataset.csv is NIPS-2017's layout, any other folder an ImageFolder, and a `.csv` file either
    dev_dataset.csv itself or a list of path,label. Write `./photos20` for a folder of that name.
    A registered dataset keeps its own size unless `size` is given; `size=` inside `spec` goes first.

    Labels, ids and files are checked here; images are decoded when they are asked for.

    Raises:
        UsageError: an unknown name, a limit or size below 1.
        BadImageError: a missing or empty folder or file, or rows that cannot be right; it says which.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit must be at least 1, found {limit}")
    path = Path(spec).expanduser()
    if spec not in dataset.entries and path.exists():
        found: Dataset = _from_path(path, SIZE if size is None else size)
    else:
        found = _registered(spec, path, size)
    found = convert(found, spec)
    _check(found)
    if limit is not None and limit < len(found.ids):
        found = found.first(limit) if isinstance(found, Images) else _First.of(found, limit)
    if isinstance(found, Images):
        found.require_files()
    return found


def _from_path(path: Path, size: int) -> Images:
    if path.is_dir():
        table = path / TABLE
        return nips2017(table, size=size) if table.exists() else imagefolder(path, size=size)
    if path.name == TABLE:
        return nips2017(path, size=size)
    if path.suffix.lower() == ".csv":
        return csvlist(path, size=size)
    raise BadImageError(f"{path}: a dataset is a folder or a .csv file")


def _registered(text: str, path: Path, size: int | None) -> Dataset:
    name = text.partition("(")[0].strip()
    if name not in dataset.entries and (path.suffix.lower() == ".csv" or text.startswith((".", "~", "/", os.sep))):
        beside = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
        near = get_close_matches(path.name, beside, n=1)
        guess = f" Did you mean '{path.parent / near[0]}'?" if near else ""
        raise BadImageError(f"no dataset at '{text}': no such folder or file.{guess}")
    if name in dataset.entries:
        spec = parse_spec(text)
        if size is not None and "size" not in dict(spec.params):
            text = str(replace(spec, params=(*spec.params, ("size", size))))
    elif not any(re.fullmatch(dialect.pattern, text) for dialect in dataset.dialects):
        how = f"; {_HOW[text]}" if text in _HOW else ""
        raise unknown("dataset", text, dataset.entries, f"Nor is there a folder or .csv file of that name{how}")
    return dataset.resolve(text).value


def _check(found: Dataset) -> None:
    # What any `Dataset` must hold; the loaders here have checked more, and said it with line numbers.
    where = f"dataset '{found.name}'"
    if not found.ids:
        raise BadImageError(f"{where}: no images")
    if len(found.ids) != len(found.labels):
        raise BadImageError(f"{where}: {len(found.ids)} ids but {len(found.labels)} labels")
    seen: set[str] = set()
    for id_, label in zip(found.ids, found.labels, strict=True):
        if id_ in seen:
            raise BadImageError(f"{where}: id '{id_}' is there twice")
        if not 0 <= label < CLASSES:
            raise BadImageError(f"{where}: image '{id_}' has label {label}, outside 0..{CLASSES - 1}")
        seen.add(id_)


@dataclass
class _First:
    """The first images of a dataset that knows nothing of limits (a plugin's)."""

    name: str
    size: int
    ids: Sequence[str]
    labels: Sequence[int]
    targets: Sequence[int]
    classes: int | None
    whole: Dataset

    @classmethod
    def of(cls, whole: Dataset, limit: int) -> _First:
        targets, classes = getattr(whole, "targets", ()), getattr(whole, "classes", None)
        return cls(whole.name, whole.size, whole.ids[:limit], whole.labels[:limit], targets[:limit], classes, whole)

    def image(self, index: int) -> NDArray[np.uint8]:
        return self.whole.image(range(len(self.ids))[index])
