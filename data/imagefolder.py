"""ImageFolder: one subfolder a class, as ImageNet's validation set is usually unpacked."""

import os
from importlib.util import find_spec
from pathlib import Path

from rdp_bench.data._images import SUFFIXES
from rdp_bench.data._labelled import CLASSES, SIZE, Images
from rdp_bench.errors import BadImageError


def imagefolder(folder: Path, *, size: int = SIZE) -> Images:
    """The images under `folder/<class>/`, at any depth; `ids` are their paths from `folder`.

    A class folder is called by its synset (`n01440764`) or its ImageNet id (`0`..`999`, as timm counts).
    Any other name is an error: sorted order, which torchvision falls back on, would be a wrong label
    wherever the folders are not exactly ImageNet's 1000. Hidden files and folders are left out.

    The order takes the first image of every class, then every second, ...: so a limit keeps as many
    classes as it can. Within a class, images are sorted by path.

    Raises:
        BadImageError: no class folders, no images in them, or a folder whose name is not a class.
    """
    classes = sorted(entry.name for entry in _visible(folder) if entry.is_dir())
    if not classes:
        loose = any(Path(entry.name).suffix.lower() in SUFFIXES for entry in _visible(folder))
        raise BadImageError(
            f"{folder}: {'images without labels' if loose else 'no images'}: expected one subfolder a class, "
            "or images/ and dev_dataset.csv; or name a CSV of path,label"
        )
    synsets = imagenet_synsets() if any(name.startswith("n") for name in classes) else {}
    placed: list[tuple[int, int, str, str]] = []
    for name in classes:
        label = _label(folder, name, synsets)
        placed += [(rank, label, name, id_) for rank, id_ in enumerate(_images_in(folder, name))]
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
    )


def imagenet_synsets() -> dict[str, int]:
    """ImageNet's 1000 synsets -> 0..999, read from the list inside timm (which is not imported).

    Raises:
        BadImageError: timm is not installed, or its list is not 1000 names.
    """
    spec = find_spec("timm")
    if spec is None or spec.origin is None:
        raise BadImageError("the list of ImageNet's synsets lies in timm, which is not there: pip install timm")
    path = Path(spec.origin).parent / "data" / "_info" / "imagenet_synsets.txt"
    try:
        names = path.read_text().split()
    except OSError as error:
        raise BadImageError(f"{path}: timm's list of synsets cannot be read ({error.strerror})") from error
    if len(set(names)) != CLASSES:
        raise BadImageError(f"{path}: expected {CLASSES} synsets, found {len(set(names))}; install timm again")
    return {name: label for label, name in enumerate(names)}


def _label(folder: Path, name: str, synsets: dict[str, int]) -> int:
    if name in synsets:
        return synsets[name]
    if name.isascii() and name.isdigit() and int(name) < CLASSES:
        return int(name)
    raise BadImageError(
        f"{folder}: class folder '{name}' is neither one of ImageNet's 1000 synsets (n01440764) nor its id 0..999. "
        "Give the folder that holds the class folders, rename them, or write a CSV of path,label"
    )


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise BadImageError(f"{folder}: cannot be listed ({error.strerror})") from error


def _images_in(folder: Path, name: str) -> list[str]:
    found: list[Path] = []

    def fail(error: OSError) -> None:
        raise BadImageError(f"{error.filename}: cannot be listed ({error.strerror})") from error

    for parent, inner, files in os.walk(folder / name, onerror=fail):
        inner[:] = [each for each in inner if not each.startswith(".")]
        found += [Path(parent, file) for file in files if not file.startswith(".")]
    return sorted(path.relative_to(folder).as_posix() for path in found if path.suffix.lower() in SUFFIXES)
