"""NIPS-2017 DEV brought into a folder, from the web, a zip or another folder, every image compared with what is known.

Nothing that a source says becomes a path: an image is written as `images/<ImageId>.png`, and an ImageId is sixteen
hexadecimal digits. An image whose pixels are not the known ones is not kept. A second call brings what is missing.
"""

import hashlib
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.resources import files
from pathlib import Path, PurePosixPath

from rdp_bench.data._images import decode_bytes
from rdp_bench.data._labelled import SIZE, rows_of
from rdp_bench.data.nips2017 import IMAGE_ID, TABLE
from rdp_bench.download import download
from rdp_bench.errors import BadImageError, FetchError, StorageError, UsageError
from rdp_bench.keys import hash_pixels
from rdp_bench.store import write_atomic

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

WHOLE = 1000
"""Images of the DEV set."""

_TABLES = (TABLE, "images.csv")  # as cleverhans calls it, and as Kaggle does
_LARGEST = 1 << 24  # bytes of one file; the images have about 150 kB

Tell = Callable[[str, int, int | None], None]
"""Called with what is counted, how many there are, and how many there will be if anybody knows."""

Rows = dict[str, tuple[int, int | None]]
"""ImageId -> true label and target, counted from 0."""

Entry = tuple[str, Callable[[], bytes]]
"""Where a file of a source lies, and how it is read."""

Entries = Mapping[str, list[Entry]]
"""By base name."""


@dataclass
class Obtained:
    """What is in the folder now, by ImageId; `refused` says why an image was not taken."""

    verified: list[str] = field(default_factory=list)
    unverified: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    def count(self, image: str) -> None:
        (self.verified if image in manifest() else self.unverified).append(image)


@cache
def manifest() -> dict[str, str]:
    """ImageId -> `hash_pixels` of the image, for those that are known."""
    lines = files("rdp_bench.data").joinpath("nips2017.sha256").read_text("ascii").splitlines()
    pairs = (line.split() for line in lines if not line.startswith("#"))
    return {image: digest for digest, image in pairs}


def obtain(to: Path, source: str | None = None, tell: Tell = lambda *_: None) -> Obtained:
    """Bring images and labels into `to`, as far as they are not there yet.

    `source` is a folder, a zip, or the address of one; without it, `SOURCES`.

    Raises:
        UsageError: no such source, or `to` holds something else. BadImageError: a source without the set's table.
        FetchError: a download that did not come or is no zip. StorageError: `to` cannot be written to.
    """
    held = _held(to)
    if len(held) == WHOLE and all(_is_here(to, image) for image in held):
        outcome = Obtained()
        for image in held:
            outcome.count(image)
        return outcome
    problems = []
    for place in (source,) if source else SOURCES:
        try:
            with _opened(place, to, tell) as entries:
                return _take(entries, place, to, tell)
        except (FetchError, BadImageError) as error:
            if source:
                raise
            problems.append(str(error))
    raise FetchError("\n".join(problems) + "\nget the set in another way, and pass its folder or zip as --from")


def _take(entries: Entries, place: str, to: Path, tell: Tell) -> Obtained:
    table, read = _table(entries, place)
    content = read()
    held, offered = _held(to), _rows(content, table)
    if not (held.items() <= offered.items() or offered.items() <= held.items()):
        raise UsageError(f"{to} holds other images or labels than {place}; choose another --to")
    if len(offered) > len(held):
        write_atomic(to / TABLE, content)
    rows, outcome = max(held, offered, key=len), Obtained()
    for number, image in enumerate(rows, 1):
        tell("images", number, len(rows))
        if not _is_here(to, image):
            found = entries.get(f"{image}.png", [])
            if not found:
                outcome.missing.append(image)
                continue
            try:
                png = _checked(image, found)
            except BadImageError as error:
                outcome.refused[image] = str(error)
                continue
            write_atomic(to / "images" / f"{image}.png", png)
        outcome.count(image)
    return outcome


def _held(to: Path) -> Rows:
    path = to / TABLE
    return _rows(path.read_bytes(), path) if path.is_file() else {}


def _rows(content: bytes, where: Path | str) -> Rows:
    rows: Rows = {}
    for row in rows_of(content, where, "ImageId", "TrueLabel"):
        image = row.text("ImageId").removesuffix(".png")
        if not IMAGE_ID.fullmatch(image):
            raise BadImageError(f"{row.where}: ImageId '{image}' is none of NIPS-2017's (16 hexadecimal digits)")
        target = row.label("TargetClass", first=1) if "TargetClass" in row.cells else None
        rows[image] = row.label("TrueLabel", first=1), target
    return rows


def _is_here(to: Path, image: str) -> bool:
    """Whether the image is in the folder; a damaged file counts as none, and will be replaced.

    Raises:
        UsageError: a good image, but another one.
    """
    path = to / "images" / f"{image}.png"
    if not path.is_file():
        return False
    try:
        digest = _digest(path.read_bytes(), path)
    except (BadImageError, OSError):
        return False
    if digest != manifest().get(image, digest):
        raise UsageError(
            f"{path} is not the image of that name in NIPS-2017 DEV; move it away, or choose another --to for the set"
        )
    return True


def _checked(image: str, found: list[Entry]) -> bytes:
    """The PNG of an image, after a look at its pixels; of several files the one in a folder `images`."""
    best = [entry for entry in found if PurePosixPath(entry[0]).parent.name == "images"] or found
    if len(best) > 1:
        raise BadImageError(f"{len(best)} files have this name ({', '.join(where for where, _ in best[:3])}); keep one")
    where, read = best[0]
    content = read()
    digest = _digest(content, where)
    if digest != manifest().get(image, digest):
        raise BadImageError(f"{where}: other pixels than this image of the DEV set has")
    return content


def _digest(content: bytes, where: Path | str) -> str:
    import numpy as np

    picture = decode_bytes(content, where)
    if picture.size != (SIZE, SIZE):
        raise BadImageError(f"{where}: {picture.width} x {picture.height} pixels, the set has {SIZE} x {SIZE}")
    return hash_pixels(np.asarray(picture).transpose(2, 0, 1))


# --- sources ---------------------------------------------------------------------------------------------


def _table(entries: Entries, place: str) -> Entry:
    for name in _TABLES:
        if name in entries:
            return min(entries[name], key=lambda entry: len(PurePosixPath(entry[0]).parts))
    raise BadImageError(f"{place}: holds no {' or '.join(_TABLES)}, the set's table of labels")


@contextmanager
def _opened(place: str, to: Path, tell: Tell) -> Iterator[Entries]:
    if place.startswith(("http://", "https://")):
        with _downloaded(place, to, tell) as archive, _zip(archive, place) as entries:
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
def _downloaded(url: str, to: Path, tell: Tell) -> Iterator[Path]:
    """The archive at `url`; kept beside the images until they are out of it, whatever interrupts that."""
    archive = to / f".{hashlib.sha256(url.encode()).hexdigest()[:12]}.zip"
    if not archive.is_file():
        download(url, archive, b"PK\x03\x04", partial(tell, "bytes"))
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
    return _limited(content, info.filename)


def _folder(path: Path) -> Entries:
    entries: dict[str, list[Entry]] = defaultdict(list)
    for each in sorted(path.rglob("*")):
        if each.suffix == ".png" or each.name in _TABLES:
            entries[each.name].append((each.as_posix(), partial(_file, each)))
    return entries


def _file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise BadImageError(f"{path}: cannot be read ({error.strerror or error})") from error
    return _limited(content, str(path))


def _limited(content: bytes, where: str) -> bytes:
    if len(content) > _LARGEST:
        raise BadImageError(f"{where}: more than {_LARGEST >> 20} MiB, which no file of the set has")
    return content
