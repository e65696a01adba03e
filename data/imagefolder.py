"""A folder with one subfolder per class, the usual layout of ImageNet's validation set."""

import os
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

from rdp_bench.data._images import SUFFIXES
from rdp_bench.data._labelled import CLASSES, SIZE, Images
from rdp_bench.errors import BadImageError
from rdp_bench.terminal import counted, warn_once

SHOWN = 3
"""Names of files in a warning."""


def imagefolder(folder: Path, *, size: int = SIZE, label_base: int | None = None) -> Images:
    """Return the images in `folder/<class>/`, at any depth; ids are their paths relative to `folder`.

    The name of a class folder is its synset (`n01440764`), one of its names in WordNet (`tench`, `great white shark`;
    case, `_` and `-` are ignored) or its ImageNet class number (`0`..`999` in timm's order; `1`..`1000` with
    `label_base=1`). Any other name is an error. torchvision would number the folders in sorted order, which gives wrong
    labels unless the folders are exactly ImageNet's 1000. Hidden files and folders, and files that are not regular, are
    skipped.

    The first image of every class comes first, then the second of every class, and so on, so that a limit keeps as
    many classes as possible. Within a class, images are sorted by path.

    Args:
        folder: the folder.
        size: side of the prepared images in pixels.
        label_base: 0 or 1, the number of the first class in numbered folders.

    Raises:
        BadImageError: there are no class folders or no images in them, two folders have the same class, or the name of
            a folder is not a class.
    """
    classes = sorted(entry.name for entry in _visible(folder) if entry.is_dir())
    if not classes:
        loose = any(Path(entry.name).suffix.lower() in SUFFIXES for entry in _visible(folder))
        raise BadImageError(
            f"{folder}: {'images without labels' if loose else 'no images'}: expected one subfolder per class, or a "
            "list of labels (dev_dataset.csv or images.csv beside images/, labels.csv, LOC_val_solution.csv, val.txt); "
            "or name a CSV of path,label"
        )
    names = _class_names()
    placed: list[tuple[int, int, str, str]] = []
    by_label: dict[int, str] = {}
    left_out: list[str] = []
    for name in classes:
        label = _label(folder, name, names, label_base or 0)
        if (other := by_label.setdefault(label, name)) != name:
            raise BadImageError(f"{folder}: folders '{other}' and '{name}' are the same class {label}; merge them")
        inside = sorted(_files_in(folder, name))
        placed += [(rank, label, name, id_) for rank, id_ in enumerate(filter(_is_image, inside))]
        left_out += [id_ for id_ in inside if not _is_image(id_)]
    _say_ignored(folder, left_out)
    if not placed:
        raise BadImageError(f"{folder}: no images in its {len(classes)} class folders ({', '.join(sorted(SUFFIXES))})")
    placed.sort()
    return Images(
        name=folder.resolve().name,
        size=size,
        ids=tuple(id_ for _, _, _, id_ in placed),
        labels=tuple(label for _, label, _, _ in placed),
        paths=tuple(folder / id_ for _, _, _, id_ in placed),
        origin=folder,
        classes=None if all(name.isdecimal() for name in by_label.values()) else CLASSES,
    )


def imagenet_synsets() -> dict[str, int]:
    """Return ImageNet's 1000 synsets with their classes 0..999, from the list inside timm (which is not imported).

    Raises:
        BadImageError: timm is not installed, or its list does not have 1000 names.
    """
    path = _of_timm("imagenet_synsets.txt")
    names = _read(path).split()
    if len(set(names)) != CLASSES:
        raise BadImageError(f"{path}: expected {CLASSES} synsets, found {len(set(names))}; install timm again")
    return {name: label for label, name in enumerate(names)}


def _class_names() -> dict[str, set[int]]:
    """Return the classes of every synset and of every WordNet name (lower case, with spaces)."""
    synsets = imagenet_synsets()
    found: dict[str, set[int]] = {synset: {label} for synset, label in synsets.items()}
    for line in _read(_of_timm("imagenet_synset_to_lemma.txt")).splitlines():
        synset, _, lemmas = line.partition("\t")
        if synset in synsets:
            for name in (lemmas, *lemmas.split(",")):
                found.setdefault(_plain(name), set()).add(synsets[synset])
    return found


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").replace("-", " ").replace(",", " ").replace("'", "").split())


def _of_timm(name: str) -> Path:
    spec = find_spec("timm")
    if spec is None or spec.origin is None:
        raise BadImageError("the list of ImageNet's synsets is part of timm, which is not installed: pip install timm")
    return Path(spec.origin).parent / "data" / "_info" / name


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise BadImageError(f"{path}: timm's list of synsets cannot be read ({error.strerror})") from error


def _label(folder: Path, name: str, names: dict[str, set[int]], base: int) -> int:
    if name.isascii() and name.isdigit():
        if base <= int(name) < CLASSES + base:
            return int(name) - base
    elif len(found := names.get(_plain(name), set())) == 1:
        return next(iter(found))
    elif found:
        synsets = [synset for synset, label in imagenet_synsets().items() if label in found]
        raise BadImageError(
            f"{folder}: class folder '{name}' is the name of {len(found)} classes; call it by its synset: "
            f"{' or '.join(synsets)}"
        )
    near = get_close_matches(_plain(name), names, n=1)
    guess = f"Did you mean '{near[0]}'? " if near else ""
    more = " (1..1000: add (label_base=1) to the folder's name)" if name == str(CLASSES) and not base else ""
    raise BadImageError(
        f"{folder}: class folder '{name}' is neither one of ImageNet's 1000 synsets (n01440764), a name of one "
        f"(tench), nor its number {base}..{CLASSES - 1 + base}{more}. {guess}"
        "Give the folder that holds the class folders, rename them, or write a CSV of path,label" + _lists(folder)
    )


def _lists(folder: Path) -> str:
    """How a table in the folder would be used, for an error."""
    tables = sorted(entry.name for entry in _visible(folder) if entry.name.lower().endswith((".csv", ".tsv", ".txt")))
    return f"; if the list is {tables[0]}, name it: --dataset {folder / tables[0]}" if tables else ""


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise BadImageError(f"{folder}: cannot be listed ({error.strerror})") from error


def _say_ignored(folder: Path, left_out: list[str]) -> None:
    """Warn of files that could be meant as images: those in `left_out`, and images beside the class folders."""
    left_out = left_out + [each.name for each in _visible(folder) if _is_image(each.name)]
    if left_out:
        more = f" and {len(left_out) - SHOWN} more" if len(left_out) > SHOWN else ""
        warn_once(
            __name__,
            f"{folder}: {counted(len(left_out), 'file')} left out ({', '.join(left_out[:SHOWN])}{more}): images are in "
            f"class folders and end in {', '.join(sorted(SUFFIXES))}",
        )


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES


def _files_in(folder: Path, name: str) -> list[str]:
    found: list[Path] = []

    def fail(error: OSError) -> None:
        raise BadImageError(f"{error.filename}: cannot be listed ({error.strerror})") from error

    for parent, inner, files in os.walk(folder / name, onerror=fail):
        inner[:] = [each for each in inner if not each.startswith(".")]
        found += [Path(parent, file) for file in files if not file.startswith(".")]
    return [path.relative_to(folder).as_posix() for path in found if path.is_file() or path.is_symlink()]
