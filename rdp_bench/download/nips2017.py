"""Import of NIPS-2017 DEV from the web, a zip or a folder; the pixels and labels of every image are verified.

No name from a source becomes a path: an image is written as `images/<ImageId>.png` with an ImageId of the manifest.
Images with pixels of neither circulating copy, and copy B's two damaged images, are not written. The table that is
written lists the existing images, so a run accepts the folder at any time. A second call adds missing images and
replaces images of copy B if the source has copy A.
"""

import hashlib
import os
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath

from rdp_bench import csvtext
from rdp_bench.cache.store import write_atomic
from rdp_bench.data import nips2017
from rdp_bench.data._images import SUFFIXES, decode_bytes, read_file
from rdp_bench.data._labelled import SIZE, Row, rows_of
from rdp_bench.data.nips2017 import CARDS, COPY_B, DAMAGED, TABLE, TABLES, check_row, copy_of
from rdp_bench.download.http import download
from rdp_bench.errors import BadImageError, FetchError, StorageError, UsageError
from rdp_bench.keys import hash_pixels
from rdp_bench.terminal import utf8

SOURCES = (
    # The organisers' copy. Kaggle serves public data sets without an account.
    "https://www.kaggle.com/api/v1/datasets/download/google-brain/nips-2017-adversarial-learning-development-set",
    # The copy beside the code of "On Success and Simplicity" (Zhao et al. 2021).
    "https://github.com/ZhengyuZhao/Targeted-Tansfer/archive/refs/heads/main.zip",
)
"""Download addresses; the second is used if the first fails.

The Flickr addresses in dev_dataset.csv, which cleverhans' script uses, are not used: photographs are removed there, and
cropping and resizing them again gives different pixels.
"""

DIFFERENCES = "differences.csv"
"""The file that lists all differences from the complete copy A; it does not exist if there are none."""

_LARGEST = 1 << 24  # bytes of one file; the images have about 150 kB

Progress = Callable[[str, int, int | None], None]
"""Called with the unit ("bytes" or "images"), the number so far, and the total, or None if it is unknown."""

Rows = dict[str, Row]
"""Rows of a table by ImageId."""

Entry = tuple[str, Callable[[], bytes]]
"""The location of a file in a source, and a function that reads it."""

Entries = Mapping[str, list[Entry]]
"""Files of a source by base name."""


@dataclass
class FetchResult:
    """The content of the folder by ImageId; `refused` has the reason for each refused image."""

    copy_a: list[str] = field(default_factory=list)
    copy_b: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """The number of images in the folder."""
        return len(self.copy_a) + len(self.copy_b)

    @property
    def differences(self) -> dict[str, str]:
        """The differences of the folder from the complete copy A, by ImageId."""
        found = dict.fromkeys(self.copy_b, COPY_B) | self.refused
        return {image: found.get(image, "missing") for image in nips2017.manifest() if image not in {*self.copy_a}}


def fetch_nips2017(to: Path, source: str | None = None, progress: Progress = lambda *_: None) -> FetchResult:
    """Add the missing images and labels of the set to a folder.

    Args:
        to: the folder; it is created.
        source: a folder, a zip, or the address of a zip; by default `SOURCES`.
        progress: called during downloads and verification.

    Raises:
        UsageError: the source does not exist, or `to` contains another data set.
        BadImageError: the source does not contain the table of labels.
        FetchError: a download failed or is not a zip.
        StorageError: `to` cannot be written.
    """
    held = _held(to)
    if len(held) == len(nips2017.manifest()) and all(_copy_here(to, image) == "A" for image in held):
        return FetchResult(copy_a=[*held])
    problems = []
    for place in (source,) if source else SOURCES:
        try:
            with _opened(place, to, progress) as entries:
                return _take(entries, place, to, progress)
        except (FetchError, BadImageError) as error:
            if source:
                raise
            problems.append(str(error))
    raise FetchError("\n".join(problems) + "\ndownload the set another way, and pass its folder or zip as --from")


def _take(entries: Entries, place: str, to: Path, progress: Progress) -> FetchResult:
    table, read = _table(entries, place)
    rows = _rows(read(), table) | _held(to)
    rows = {image: rows[image] for image in nips2017.manifest() if image in rows}
    found = FetchResult()
    for number, image in enumerate(rows, 1):
        progress("images", number, len(rows))
        here, why = _copy_here(to, image), ""
        if here != "A":
            try:
                png, copy = _checked(image, entries)
                if png and (copy == "A" or not here):
                    write_atomic(to / "images" / f"{image}.png", png)
                    here = copy
            except BadImageError as error:
                why = str(error)
        if here == "B" and image in CARDS:
            here, why = "", f"images/{image}.png: {DAMAGED}"
        if here:
            (found.copy_a if here == "A" else found.copy_b).append(image)
        elif why:
            found.refused[image] = why
        else:
            found.missing.append(image)
    have = {*found.copy_a, *found.copy_b}
    if have:
        write_atomic(to / TABLE, _as_csv([row.cells for image, row in rows.items() if image in have]))
        _list_differences(to, found)
    return found


def _list_differences(to: Path, found: FetchResult) -> None:
    if lines := [{"ImageId": image, "difference": what} for image, what in found.differences.items()]:
        write_atomic(to / DIFFERENCES, _as_csv(lines))
    else:
        (to / DIFFERENCES).unlink(missing_ok=True)


def _as_csv(rows: list[dict[str, str]]) -> bytes:
    columns = [*dict.fromkeys(column for row in rows for column in row if column)]
    return utf8(csvtext.records(columns, rows))


def _held(to: Path) -> Rows:
    path = to / TABLE
    if not path.is_file():
        return {}
    try:
        rows = _rows(read_file(path), path)
    except BadImageError as error:
        raise UsageError(f"{error}; choose another --to") from error
    # Written by `_as_csv`, so its marks are taken off again.
    return {
        image: replace(row, cells={name: csvtext.unsafe(cell) for name, cell in row.cells.items()})
        for image, row in rows.items()
    }


def _rows(content: bytes, where: Path | str) -> Rows:
    rows: Rows = {}
    for row in rows_of(content, where, "ImageId", "TrueLabel"):
        image = row.text("ImageId").removesuffix(".png")
        if image not in nips2017.manifest():
            raise BadImageError(f"{row.where}: ImageId '{image}' does not belong to NIPS-2017 DEV")
        check_row(row, image)
        rows[image] = row
    return rows


def _copy_here(to: Path, image: str) -> str:
    """Return the copy ("A", "B") of the image in the folder; "" for a missing or damaged file.

    Raises:
        UsageError: the file is a valid but different image.
    """
    path = to / "images" / f"{image}.png"
    if not path.is_file():
        return ""
    try:
        digest = _digest(read_file(path), path)
    except BadImageError:
        return ""
    if not (copy := copy_of(image, digest)):
        raise UsageError(
            f"{path} is not the image of that name in NIPS-2017 DEV; move it away, or choose another --to for the set"
        )
    return copy


def _checked(image: str, entries: Entries) -> tuple[bytes, str]:
    """Return the PNG file of an image and its copy, preferring a folder `images`; empty if there is none."""
    found = entries.get(f"{image}.png", [])
    if not found:
        other = [name for suffix in sorted(SUFFIXES) if (name := f"{image}{suffix}") in entries]
        if other:
            raise BadImageError(f"{other[0]}: the set's images are PNG files; another format has different pixels")
        return b"", ""
    best = [entry for entry in found if PurePosixPath(entry[0]).parent.name == "images"] or found
    if len(best) > 1:
        raise BadImageError(f"{len(best)} files have this name ({', '.join(where for where, _ in best[:3])}); keep one")
    where, read = best[0]
    content = read()
    copy = copy_of(image, _digest(content, where))
    if not copy:
        raise BadImageError(f"{where}: its pixels differ from this image of the DEV set")
    if copy == "B" and image in CARDS:
        raise BadImageError(f"{where}: {DAMAGED}")
    return content, copy


def _digest(content: bytes, where: Path | str) -> str:
    import numpy as np

    picture = decode_bytes(content, where)
    if picture.size != (SIZE, SIZE):
        raise BadImageError(f"{where}: {picture.width} x {picture.height} pixels, the set has {SIZE} x {SIZE}")
    return hash_pixels(np.asarray(picture).transpose(2, 0, 1))


# --- sources ---------------------------------------------------------------------------------------------


def _table(entries: Entries, place: str) -> Entry:
    for name in TABLES:
        if name in entries:
            return min(entries[name], key=lambda entry: len(PurePosixPath(entry[0]).parts))
    raise BadImageError(f"{place}: contains no {' or '.join(TABLES)}, the set's table of labels")


@contextmanager
def _opened(place: str, to: Path, progress: Progress) -> Iterator[Entries]:
    if place.startswith(("http://", "https://")):
        with _downloaded(place, to, progress) as archive, _zip(archive, place) as entries:
            yield entries
        return
    path = Path(place).expanduser()
    if path.is_dir():
        yield _folder(path)
    elif path.is_file() and zipfile.is_zipfile(path):
        with _zip(path, place) as entries:
            yield entries
    else:
        but = " (the file is not a readable zip: download it again)" if path.is_file() else ""
        raise UsageError(
            f"--from {place}: expected a folder, a zip, or an address that starts with http:// or https://{but}"
        )


@contextmanager
def _downloaded(url: str, to: Path, progress: Progress) -> Iterator[Path]:
    """Yield the archive at `url`. It stays beside the images until they are extracted, also after an interruption."""
    archive = to / f".{hashlib.sha256(url.encode()).hexdigest()[:12]}.zip"
    if not archive.is_file():
        download(url, archive, b"PK\x03\x04", partial(progress, "bytes"))
    try:
        yield archive
    except (KeyboardInterrupt, StorageError):
        raise
    except BaseException:
        archive.unlink(missing_ok=True)
        raise
    archive.unlink(missing_ok=True)


@contextmanager
def _zip(path: Path, place: str) -> Iterator[Entries]:
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise FetchError(f"{place}: {path.stat().st_size:,} bytes, but not a complete zip ({error})") from error
    with archive:
        entries: dict[str, list[Entry]] = defaultdict(list)
        for info in archive.infolist():
            entries[PurePosixPath(info.filename).name].append((info.filename, partial(_entry, archive, info)))
        yield entries


def _entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    try:
        with archive.open(info) as file:
            content = file.read(_LARGEST + 1)
    except (OSError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:  # encrypted is a RuntimeError
        raise BadImageError(f"{info.filename}: damaged in the archive ({error})") from error
    if len(content) > _LARGEST:
        raise BadImageError(f"{info.filename}: more than {_LARGEST >> 20} MiB; every file of the set is smaller")
    return content


def _folder(path: Path) -> Entries:
    entries: dict[str, list[Entry]] = defaultdict(list)
    seen: set[str] = set()
    for parent, folders, names in os.walk(path, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link to a parent folder
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in sorted(names):
            file = Path(parent, name)
            if file.suffix.lower() in SUFFIXES or name in TABLES:
                entries[name].append((file.as_posix(), partial(read_file, file, _LARGEST)))
    return entries
