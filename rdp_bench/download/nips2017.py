"""NIPS-2017 DEV brought into a folder from the web, a zip or another folder; pixels and labels of every image verified.

Nothing that a source says becomes a path: an image is written as `images/<ImageId>.png`, and the ImageId is one of the
manifest's. An image whose pixels neither circulating copy has is not kept, nor are copy B's two damaged ones. The table
that is written lists the images that exist, so a run accepts the folder at any time; a second call adds what is missing
and replaces images of copy B where the source has copy A's.
"""

import csv
import hashlib
import io
import os
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

from rdp_bench.cache.store import write_atomic
from rdp_bench.data import nips2017
from rdp_bench.data._images import SUFFIXES, decode_bytes, read_file
from rdp_bench.data._labelled import SIZE, Row, rows_of
from rdp_bench.data.nips2017 import CARDS, COPY_B, DAMAGED, TABLE, TABLES, check_row, copy_of
from rdp_bench.download.http import download
from rdp_bench.errors import BadImageError, FetchError, StorageError, UsageError
from rdp_bench.keys import hash_pixels

SOURCES = (
    # The organisers' own: Kaggle hands out public data sets without an account.
    "https://www.kaggle.com/api/v1/datasets/download/google-brain/nips-2017-adversarial-learning-development-set",
    # The copy beside the code of "On Success and Simplicity" (Zhao et al. 2021).
    "https://github.com/ZhengyuZhao/Targeted-Tansfer/archive/refs/heads/main.zip",
)
"""Where it is downloaded from; the second where the first fails.

Not from the addresses on Flickr that dev_dataset.csv lists and cleverhans' script follows: photographs are taken down
there, and one that is cropped and resized anew has other pixels.
"""

DIFFERENCES = "differences.csv"
"""Lists what differs from the whole set of copy A; absent where nothing does."""

_LARGEST = 1 << 24  # bytes of one file; the images have about 150 kB

Progress = Callable[[str, int, int | None], None]
"""Called with what is counted, how many there are, and how many there will be if anybody knows."""

Rows = dict[str, Row]
"""ImageId -> its row of a table."""

Entry = tuple[str, Callable[[], bytes]]
"""Where a file of a source lies, and how it is read."""

Entries = Mapping[str, list[Entry]]
"""By base name."""


@dataclass
class FetchResult:
    """What is in the folder now, by ImageId; `refused` says why an image was not taken."""

    copy_a: list[str] = field(default_factory=list)
    copy_b: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """How many images the folder holds."""
        return len(self.copy_a) + len(self.copy_b)

    @property
    def differences(self) -> dict[str, str]:
        """ImageId -> how the folder differs from copy A of the whole set."""
        found = dict.fromkeys(self.copy_b, COPY_B) | self.refused
        return {image: found.get(image, "missing") for image in nips2017.manifest() if image not in {*self.copy_a}}


def fetch_nips2017(to: Path, source: str | None = None, progress: Progress = lambda *_: None) -> FetchResult:
    """Bring images and labels into `to`, as far as they are not there yet.

    `source` is a folder, a zip, or the address of one; without it, `SOURCES`.

    Raises:
        UsageError: no such source, or `to` holds something else. BadImageError: a source without the set's table.
        FetchError: a download that did not come or is no zip. StorageError: `to` cannot be written to.
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
    raise FetchError("\n".join(problems) + "\nget the set in another way, and pass its folder or zip as --from")


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
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _held(to: Path) -> Rows:
    path = to / TABLE
    if not path.is_file():
        return {}
    try:
        return _rows(read_file(path), path)
    except BadImageError as error:
        raise UsageError(f"{error}; choose another --to") from error


def _rows(content: bytes, where: Path | str) -> Rows:
    rows: Rows = {}
    for row in rows_of(content, where, "ImageId", "TrueLabel"):
        image = row.text("ImageId").removesuffix(".png")
        if image not in nips2017.manifest():
            raise BadImageError(f"{row.where}: ImageId '{image}' is none of NIPS-2017 DEV's")
        check_row(row, image)
        rows[image] = row
    return rows


def _copy_here(to: Path, image: str) -> str:
    """The copy ("A", "B") that the folder's file of this image is from; "" for a missing or damaged file.

    Raises:
        UsageError: a good image, but another one.
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
    """The PNG of an image and its copy; of several files the one in a folder `images`. Empty where there is none."""
    found = entries.get(f"{image}.png", [])
    if not found:
        other = [name for suffix in sorted(SUFFIXES) if (name := f"{image}{suffix}") in entries]
        if other:
            raise BadImageError(f"{other[0]}: the set's images are PNG files; another format has other pixels")
        return b"", ""
    best = [entry for entry in found if PurePosixPath(entry[0]).parent.name == "images"] or found
    if len(best) > 1:
        raise BadImageError(f"{len(best)} files have this name ({', '.join(where for where, _ in best[:3])}); keep one")
    where, read = best[0]
    content = read()
    copy = copy_of(image, _digest(content, where))
    if not copy:
        raise BadImageError(f"{where}: other pixels than this image of the DEV set has")
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
    raise BadImageError(f"{place}: holds no {' or '.join(TABLES)}, the set's table of labels")


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
        but = " (it is a file, but no zip that can be read: fetch it again)" if path.is_file() else ""
        raise UsageError(
            f"--from {place}: expected a folder, a zip, or an address that begins with http:// or https://{but}"
        )


@contextmanager
def _downloaded(url: str, to: Path, progress: Progress) -> Iterator[Path]:
    """The archive at `url`; kept beside the images until they are out of it, whatever interrupts that."""
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
        raise FetchError(f"{place}: {path.stat().st_size:,} bytes, but no whole zip ({error})") from error
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
        raise BadImageError(f"{info.filename}: more than {_LARGEST >> 20} MiB, which no file of the set has")
    return content


def _folder(path: Path) -> Entries:
    entries: dict[str, list[Entry]] = defaultdict(list)
    seen: set[str] = set()
    for parent, folders, names in os.walk(path, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in sorted(names):
            file = Path(parent, name)
            if file.suffix.lower() in SUFFIXES or name in TABLES:
                entries[name].append((file.as_posix(), partial(read_file, file, _LARGEST)))
    return entries
