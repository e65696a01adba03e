"""Readers of the layouts in which CIFAR-10 is distributed. None of them runs anything that a file contains.

* Class folders of PNG files, `airplane` to `truck` or `0` to `9`, in the folder itself or in `test/` and `train/`.
* The binary version: records of one byte for the label and 3072 for the pixels (1024 red, 1024 green, 1024 blue).
* Parquet of the Hugging Face hub: a column `img` or `image` of encoded images `{bytes, path}` and a column `label`.

The version for Python is a pickle, which may run code when it is read. It is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdp_bench.data._images import SUFFIXES, decode_bytes, read_file
from rdp_bench.errors import BadImageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""The classes in the order of the labels (`batches.meta.txt`)."""

COUNTS = {"test": 10_000, "train": 50_000}
SIDE = 32
_RECORD = 1 + 3 * SIDE * SIDE
_BINARY = {"test": ("test_batch.bin",), "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6))}
_PICKLES = ("test_batch", "data_batch_1")
_SHARD = re.compile(r"(?P<split>[a-z]+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.parquet")
_IMAGE_COLUMNS = ("img", "image")


@dataclass(frozen=True)
class Records:
    """Labelled images; `image(index)` reads one as uint8 `[3, 32, 32]`, RGB."""

    ids: Sequence[str]
    labels: Sequence[int]
    image: Callable[[int], NDArray[np.uint8]]


def open_records(path: Path, split: str) -> Records:
    """Return the images of one split in a folder, or all images in a `.bin` or `.parquet` file.

    Raises:
        BadImageError: nothing is there, the layout is unknown or ambiguous, or a label or file is invalid.
    """
    if path.suffix == ".bin" and path.is_file():
        return _binary([path], split)
    if path.suffix == ".parquet" and path.is_file():
        return _parquet([path], split)
    if not path.is_dir():
        what = "expected a folder, a .bin or a .parquet file" if path.exists() else "no such folder or file"
        raise BadImageError(f"dataset 'cifar10': {path}: {what}")
    readers: dict[str, Callable[[], Records]] = {}
    for folder in (path, path / "cifar-10-batches-bin"):
        if any((folder / name).is_file() for names in _BINARY.values() for name in names):
            readers["the binary version"] = partial(_binary, [folder / name for name in _BINARY[split]], split)
    for folder in (path, path / "plain_text", path / "data"):
        if shards := sorted(folder.glob("*.parquet")):
            readers["parquet"] = partial(_split, folder, shards, split)
    if (classes := _class_folders(path, split)) is not None:
        readers["class folders"] = partial(_folders, classes)
    if len(readers) > 1:
        raise BadImageError(f"dataset 'cifar10': {path} holds {' and '.join(readers)}; name the one to use")
    if not readers:
        raise _unknown_layout(path)
    return next(iter(readers.values()))()


def _unknown_layout(path: Path) -> BadImageError:
    for folder in (path, path / "cifar-10-batches-py"):
        if any((folder / name).is_file() for name in _PICKLES):
            return BadImageError(
                f"dataset 'cifar10': {folder} is the version for Python, a pickle, which may run code when it is read: "
                "refused. Use the binary version (cifar-10-binary.tar.gz), parquet, or class folders of PNG files "
                "(docs/cifar10.md converts it)"
            )
    return BadImageError(
        f"dataset 'cifar10': {path} holds no known layout: expected test_batch.bin, test-00000-of-00001.parquet, or "
        f"class folders of PNG files ({CLASS_NAMES[0]} to {CLASS_NAMES[-1]}, or 0 to 9), also in test/ and train/"
    )


def _checked(labels: Iterable[object], where: str) -> list[int]:
    found = []
    for row, label in enumerate(labels):
        if type(label) is not int or not 0 <= label < len(CLASS_NAMES):
            raise BadImageError(f"{where}, record {row}: label {label} is outside 0..{len(CLASS_NAMES) - 1}")
        found.append(label)
    return found


def _numbered(split: str, count: int) -> list[str]:
    return [f"{split}-{i:05d}" for i in range(count)]


def _pixels(content: bytes, where: str) -> NDArray[np.uint8]:
    """Decode an image file; any size but 32 x 32 is refused."""
    import numpy as np

    image = decode_bytes(content, where)
    if image.size != (SIDE, SIDE):
        raise BadImageError(f"{where}: {image.width} x {image.height} pixels; images of CIFAR-10 are {SIDE} x {SIDE}")
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


# --- the binary version ----------------------------------------------------------------------------------


def _binary(files: list[Path], split: str) -> Records:
    import numpy as np

    blocks = []
    labels: list[int] = []
    for file in files:
        content = read_file(file)
        if not content or len(content) % _RECORD:
            raise BadImageError(
                f"{file}: {len(content):,} bytes are not whole records of {_RECORD:,} bytes: truncated, or not a batch "
                "of CIFAR-10's binary version; unpack it again"
            )
        blocks.append(np.frombuffer(content, np.uint8).reshape(-1, _RECORD))
        labels += _checked(blocks[-1][:, 0].tolist(), str(file))
    _check_names(files[0].parent / "batches.meta.txt")
    rows = np.concatenate(blocks)

    def image(index: int) -> NDArray[np.uint8]:
        return rows[index, 1:].reshape(3, SIDE, SIDE).copy()

    return Records(_numbered(split, len(labels)), labels, image)


def _check_names(file: Path) -> None:
    """Check the names of the classes, if the file with them exists: CIFAR-100's layout is similar."""
    if file.is_file():
        names = read_file(file, 1 << 16).decode("utf-8", "replace").split()
        if names and tuple(names) != CLASS_NAMES:
            raise BadImageError(f"{file}: the classes are {', '.join(names[:12])}, not those of CIFAR-10")


# --- class folders ---------------------------------------------------------------------------------------


def _class_folders(path: Path, split: str) -> Path | None:
    """The folder with the class folders of a split; None if there is none."""
    for folder in (path / split, path):
        if folder.is_dir() and any(_label_of(each.name) is not None for each in folder.iterdir() if each.is_dir()):
            return folder
    return None


def _label_of(name: str) -> int | None:
    if name.lower() in CLASS_NAMES:
        return CLASS_NAMES.index(name.lower())
    return int(name) if len(name) == 1 and name in "0123456789" else None


def _folders(folder: Path) -> Records:
    """The first image of every class comes first, then the second of every class, as in `imagefolder`."""
    placed: list[tuple[int, int, str]] = []
    names: dict[int, str] = {}
    for each in sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
        label = _label_of(each.name)
        if label is None:
            near = get_close_matches(each.name.lower(), CLASS_NAMES, n=1)
            guess = f" Did you mean '{near[0]}'?" if near else ""
            raise BadImageError(f"{folder}: class folder '{each.name}' is no class of CIFAR-10.{guess}")
        if (other := names.setdefault(label, each.name)) != each.name:
            raise BadImageError(f"{folder}: folders '{other}' and '{each.name}' are the same class; merge them")
        files = sorted(file.name for file in each.iterdir() if file.is_file() and not file.name.startswith("."))
        if lossy := [name for name in files if Path(name).suffix.lower() in SUFFIXES - {".png"}]:
            raise BadImageError(f"{each / lossy[0]}: expected PNG files; other formats may change the pixels")
        files = [name for name in files if name.lower().endswith(".png")]
        placed += [(rank, label, f"{each.name}/{name}") for rank, name in enumerate(files)]
    if not placed:
        raise BadImageError(f"{folder}: no PNG files in its class folders")
    placed.sort()
    ids = [id_ for _, _, id_ in placed]

    def image(index: int) -> NDArray[np.uint8]:
        file = folder / ids[index]
        return _pixels(read_file(file), str(file))

    return Records(ids, [label for _, label, _ in placed], image)


# --- parquet ---------------------------------------------------------------------------------------------


def _split(folder: Path, files: list[Path], split: str) -> Records:
    """Read the files of a split in the order of their numbers, all of them."""
    numbered = [(match, file) for file in files if (match := _SHARD.fullmatch(file.name)) and match["split"] == split]
    if not numbered:
        found = ", ".join(file.name for file in files[:3])
        raise BadImageError(f"{folder}: no {split}-00000-of-00001.parquet; found {found}. Name the file to use")
    count = int(numbered[0][0]["count"])
    present = [int(match["number"]) for match, _ in numbered]
    if present != list(range(count)) or any(int(match["count"]) != count for match, _ in numbered):
        raise BadImageError(f"{folder}: {len(numbered)} of {count} parquet files of the split '{split}' exist")
    return _parquet([file for _, file in numbered], split)


def _parquet(files: list[Path], split: str) -> Records:
    columns: dict[Path, str] = {}
    labels: list[int] = []
    places: list[tuple[Path, int]] = []
    for file in files:
        columns[file] = _image_column(file)
        found = _checked(_column(file, "label"), str(file))
        labels += found
        places += [(file, row) for row in range(len(found))]
    if not labels:
        raise BadImageError(f"{files[0]}: no rows")

    @lru_cache(maxsize=2)
    def cells(file: Path) -> list[Any]:
        return _column(file, columns[file])

    def image(index: int) -> NDArray[np.uint8]:
        file, row = places[index]
        cell = cells(file)[row]
        content = cell.get("bytes") if isinstance(cell, dict) else None
        if not content:
            raise BadImageError(f"{file}, record {row}: no bytes of an image; embed the images in the file")
        return _pixels(content, f"{file}, record {row}")

    return Records(_numbered(split, len(labels)), labels, image)


def _image_column(file: Path) -> str:
    """The column of images, after a check of the columns and of the names of the classes."""
    schema = _opened(file, lambda parquet: parquet.schema_arrow)
    image = next((name for name in _IMAGE_COLUMNS if name in schema.names), None)
    if image is None or "label" not in schema.names:
        missing = "'label'" if image else "'img' or 'image'"
        raise BadImageError(f"{file}: no column {missing}; found: {', '.join(schema.names) or 'nothing'}")
    try:
        said = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = said["info"]["features"]["label"]["names"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return image  # written by another program: only the labels are known
    if isinstance(names, list) and names != list(CLASS_NAMES):
        raise BadImageError(f"{file}: its classes are {', '.join(map(str, names[:12]))}, not those of CIFAR-10")
    return image


def _column(file: Path, name: str) -> list[Any]:
    found: list[Any] = _opened(file, lambda parquet: parquet.read(columns=[name]).column(name).to_pylist())
    return found


def _opened(file: Path, use: Callable[[Any], Any]) -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise BadImageError(f"{file}: parquet needs pyarrow: pip install '.[parquet]' in the checkout") from error
    try:
        with parquet.ParquetFile(file) as opened:
            return use(opened)
    except Exception as error:  # pyarrow raises many types of errors on damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadImageError(f"{file}: damaged, truncated, or not a parquet file ({reason})") from error
