"""Data sets by label: a registered name, a folder, or a list of labels."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

# Imported to register the entries.
from rdp_bench.data import cifar10 as _cifar10  # noqa: F401
from rdp_bench.data import photos20 as _photos20  # noqa: F401
from rdp_bench.data._labelled import CLASSES, SIZE, Images, columns_of
from rdp_bench.data._natural import convert
from rdp_bench.data.csvlist import TRANSFER_ATTACK, csvlist
from rdp_bench.data.ilsvrc import DEVKIT, KAGGLE, LISTS, kaggle, text_list
from rdp_bench.data.imagefolder import imagefolder
from rdp_bench.data.nips2017 import TABLES, nips2017
from rdp_bench.errors import BadImageError, UsageError, unknown_name
from rdp_bench.protocols import Dataset, targets_of
from rdp_bench.registry import dataset
from rdp_bench.specs import Spec, cut, parse_spec, with_params

_HOW = {
    "nips2017": "fetch it: rdp-bench data get nips2017",
    "imagenet-val": "it may not be redistributed: unpack yours into one folder per class, and pass --dataset FOLDER",
}
"""How to get data sets that built-in grids use and that are not installed with the package."""

_LISTS = (*TABLES, TRANSFER_ATTACK, KAGGLE, *LISTS, DEVKIT)
"""File names of lists of labels in a folder."""

_WITH_OPTIONS = re.compile(r"(?P<path>.+?)\s*\((?P<options>[^()]*)\)", re.DOTALL)


@dataclass(frozen=True)
class _Options:
    """Options in parentheses after a folder or list."""

    size: int = SIZE
    label_base: int | None = None
    subset: str = ""

    def __post_init__(self) -> None:
        if self.label_base not in (None, 0, 1):
            raise ValueError(f"label_base is 0 or 1, found {self.label_base}")


def open_dataset(spec: str, *, size: int | None = None, limit: int | None = None) -> Dataset:
    """Return the data set of a label.

    Labels, ids and files are checked now; images are decoded on demand.

    Args:
        spec: a registered name (`photos20`, `photos20(size=224)`, `cifar10(PATH)`), or the path of a folder or of a
            list of labels (`.csv`, `.tsv` or `.txt`). The list in a folder defines how it is read
            (docs/extend/dataset.md); a folder without a list has one subfolder per class. Options follow a path in
            parentheses: `nips2017(subset=every-second)`, `mine.csv(label_base=1)`. `./photos20` is a folder of that
            name.
        size: side of the prepared images in pixels; by default 299, or the own size of a registered data set. `size=`
            in `spec` has priority.
        limit: the largest number of images; the first ones are used.

    Raises:
        UsageError: the name is unknown, or the limit or size is below 1.
        BadImageError: a folder or file is missing or empty, or a row is invalid.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit must be at least 1, found {limit}")
    path, options = _path_and_options(spec, SIZE if size is None else size)
    found = _from_path(path, options) if options else convert(_registered(spec, path, size), spec)
    _check(found)
    if limit is not None and limit < len(found.ids):
        found = found.first(limit)
    if isinstance(found, Images):
        found.require_files()
    return found


def _path_and_options(spec: str, size: int) -> tuple[Path, _Options | None]:
    """Return the path in `spec` and its options; None instead of options if the path does not exist."""
    path = Path(spec).expanduser()
    if spec in dataset.entries:
        return path, None
    if _exists(path):
        return path, _Options(size)
    match = _WITH_OPTIONS.fullmatch(spec)
    if match is None or match["path"] in dataset.entries or not _exists(inner := Path(match["path"]).expanduser()):
        return path, None
    given = parse_spec(f"options({match['options']})")
    return inner, with_params(_Options(size), replace(given, name=match["path"]), "dataset")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or contains NUL
        return False


def _from_path(path: Path, options: _Options) -> Images:
    table = _list_in(path) if path.is_dir() else path
    if table is None:
        found = imagefolder(path, size=options.size, label_base=options.label_base)
        return _without(options, found, "subset")
    if table.name in (*LISTS, DEVKIT) or table.suffix.lower() == ".txt":
        found = text_list(table, size=options.size, label_base=options.label_base)
        return _without(options, found, "subset")
    if table.suffix.lower() not in (".csv", ".tsv"):
        raise BadImageError(f"{path}: expected a folder, a .csv file, or a .txt list of 'file label'")
    columns = columns_of(table)
    if {"ImageId", "TrueLabel"} <= {*columns} or (
        table.name in TABLES and ("label" not in columns or "ImageId" in columns)
    ):
        return _without(options, nips2017(table, size=options.size, subset=options.subset), "label_base")
    if {"ImageId", "PredictionString"} <= {*columns}:
        return _without(options, kaggle(table, size=options.size), "subset", "label_base")
    return _without(options, csvlist(table, columns, size=options.size, label_base=options.label_base), "subset")


def _without(options: _Options, found: Images, *names: str) -> Images:
    """Return `found` after checking that no option was given that does not apply to its format."""
    for name in names:
        if getattr(options, name) not in (None, ""):
            why = "its format defines it" if name == "label_base" else "only NIPS-2017 DEV has named subsets"
            raise UsageError(f"dataset '{found.origin}': {name} does not apply here; {why}")
    return found


def _list_in(folder: Path) -> Path | None:
    names = [name for name in _LISTS if os.path.lexists(folder / name)]
    if DEVKIT in names and len(names) > 1:
        names.remove(DEVKIT)
    if len(names) > 1:
        raise BadImageError(
            f"{folder}: holds several lists of labels ({', '.join(names)}); name the one to use: --dataset "
            f"{folder / names[0]}"
        )
    return folder / names[0] if names else None


def _registered(text: str, path: Path, size: int | None) -> Dataset:
    name = cut(text)[0]
    if name not in dataset.entries and (path.suffix.lower() == ".csv" or text.startswith((".", "~", "/", os.sep))):
        beside = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
        near = get_close_matches(path.name, beside, n=1)
        guess = f" Did you mean '{path.parent / near[0]}'?" if near else ""
        raise BadImageError(f"no dataset at '{text}': no such folder or file.{guess}")
    if name in dataset.entries:
        spec = _with_path(parse_spec(text))
        text = str(spec)
        if size is not None and "size" not in dict(spec.params):
            text = str(replace(spec, params=(*spec.params, ("size", str(size)))))
    elif not any(scheme.matches(text) for scheme in dataset.label_schemes):
        how = f"; {_HOW[name]}" if name in _HOW else ""
        raise unknown_name("dataset", text, dataset.entries, f"No folder or .csv file has that name either{how}")
    return dataset.resolve(text).value


def _with_path(spec: Spec) -> Spec:
    """Read `cifar10(PATH)` as `cifar10(path=PATH)`."""
    if len(spec.positional) != 1 or "path" in dict(spec.params):
        return spec
    return replace(spec, params=(*spec.params, ("path", spec.positional[0])), positional=())


def in_folder(label: str, folder: Path) -> str:
    """Return the label of a registered data set, its relative `path` as seen from `folder`."""
    spec = _with_path(parse_spec(label))
    params = dict(spec.params)
    if not params.get("path") or params["path"].startswith("~"):
        return label
    return str(replace(spec, params=tuple(sorted({**params, "path": str(folder / params["path"])}.items()))))


def _check(found: Dataset) -> None:
    # Checks for every `Dataset`. The loaders in this package have checked more, with line numbers in their errors.
    where = f"dataset '{found.name}'"
    if not found.ids:
        raise BadImageError(f"{where}: no images")
    if len(found.ids) != len(found.labels):
        raise BadImageError(f"{where}: {len(found.ids)} ids but {len(found.labels)} labels")
    if len(targets := targets_of(found)):
        if len(targets) != len(found.ids):
            raise BadImageError(f"{where}: {len(found.ids)} ids but {len(targets)} targets")
        for id_, target in zip(found.ids, targets, strict=True):
            if not 0 <= target < CLASSES:
                raise BadImageError(f"{where}: image '{id_}' has target {target}, outside 0..{CLASSES - 1}")
    seen: set[str] = set()
    for id_, label in zip(found.ids, found.labels, strict=True):
        if id_ in seen:
            raise BadImageError(f"{where}: id '{id_}' is repeated")
        if not 0 <= label < CLASSES:
            raise BadImageError(f"{where}: image '{id_}' has label {label}, outside 0..{CLASSES - 1}")
        seen.add(id_)
