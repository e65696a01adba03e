"""A folder of photographs as random crops: decoded once and kept in the cache, one checked file per photograph."""

import logging
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from rdp_bench.cache.store import Artefact, Location, Store
from rdp_bench.data._images import SUFFIXES, decode, reduce
from rdp_bench.data.photographs import PhotographHashes
from rdp_bench.errors import BadImageError, DamagedError, StorageError, UsageError
from rdp_bench.keys import hash_file, hash_many, hash_pixels

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Generator, Tensor

log = logging.getLogger(__name__)

SHORT = 256
"""Shorter side in pixels: larger photographs are resized to it (bicubic, antialiased); smaller ones are kept."""

VALIDATION = 224
"""Side of the central squares of held-out photographs."""

LEAST = 8
"""Smallest number of photographs for a training."""


@dataclass(frozen=True)
class Photos:
    """Photographs `[3, h, w]` uint8 in one flat array, and which of them are held out."""

    pixels: "NDArray[np.uint8]"
    shapes: list[tuple[int, int]]
    names: list[str]
    record: str  # hash of the names and the content of the files, and of how they are decoded

    def __post_init__(self) -> None:
        """Compute where each photograph starts, and select held-out ones by the hash of their names."""
        offsets = [0]
        for height, width in self.shapes:
            offsets.append(offsets[-1] + 3 * height * width)
        order = sorted(range(len(self.names)), key=lambda i: hash_many([self.names[i]]))
        large = [i for i in order if min(self.shapes[i]) >= VALIDATION]
        held = large[: max(1, min(64, len(order) // 10))]
        object.__setattr__(self, "offsets", offsets)
        object.__setattr__(self, "held_out", held)
        object.__setattr__(self, "training", sorted(set(order) - set(held)))

    offsets: "list[int]" = None  # type: ignore[assignment]
    held_out: "list[int]" = None  # type: ignore[assignment]
    training: "list[int]" = None  # type: ignore[assignment]
    short: int = SHORT
    """Larger photographs were reduced to this shorter side in pixels."""
    files: tuple[str, ...] = ()
    """The sha256 of each file."""

    @cached_property
    def hashes(self) -> PhotographHashes:
        """What tells whether an image is among the photographs, those that are held out too."""
        pixels = (hash_pixels(self.image(i)) for i in range(len(self.names)))
        return PhotographHashes.of(self.record, len(self.names), self.short, (*self.files, *pixels))

    def image(self, index: int) -> "NDArray[np.uint8]":
        """Photograph `index`, `[3, h, w]`."""
        part: NDArray[np.uint8] = self.pixels[self.offsets[index] : self.offsets[index + 1]]
        return part.reshape(3, *self.shapes[index])

    def crops(self, count: int, size: int, rng: "Generator") -> "Tensor":
        """`count` random crops, mirrored half the time: uint8 `[count, 3, size, size]` on the CPU."""
        import numpy as np
        import torch

        unit = torch.rand(count, 4, generator=rng, dtype=torch.float64).tolist()
        out = np.empty((count, 3, size, size), np.uint8)
        for i, (which, down, across, mirror) in enumerate(unit):
            photo = self.image(self.training[int(which * len(self.training))])
            top, left = int(down * (photo.shape[1] - size + 1)), int(across * (photo.shape[2] - size + 1))
            crop = photo[:, top : top + size, left : left + size]
            out[i] = crop[:, :, ::-1] if mirror < 0.5 else crop
        return torch.from_numpy(out)

    def validation(self, count: int, size: int = VALIDATION) -> "Tensor":
        """Central crops of the first `count` held-out photographs, float `[n, 3, size, size]` in [0, 1]."""
        import numpy as np
        import torch

        if not self.held_out:
            raise UsageError(
                f"no photograph has a shorter side of {size} pixels or more, so none can be held out to validate on. "
                "Add larger ones, or train without: --validation-images 0"
            )
        crops = []
        for index in self.held_out[:count]:
            photo = self.image(index)
            top, left = (photo.shape[1] - size) // 2, (photo.shape[2] - size) // 2
            crops.append(photo[:, top : top + size, left : left + size])
        return torch.from_numpy(np.stack(crops)).float() / 255


@dataclass(frozen=True)
class StoredPhotos(Photos):
    """Photographs in the cache; each is read and checked on access."""

    stored: "_Stored" = None  # type: ignore[assignment]
    rows: "list[int]" = None  # type: ignore[assignment]

    def image(self, index: int) -> "NDArray[np.uint8]":
        """Photograph `index`, `[3, h, w]`.

        Raises:
            DamagedError: its file in the cache is damaged or gone.
        """
        row = self.rows[index]
        pixels: NDArray[np.uint8] = self.stored.read(row, row + 1)["pixels"][0]
        return pixels


@dataclass(frozen=True)
class _Stored(Artefact):
    """A finished artefact, whose folder is listed only once."""

    @cached_property
    def _listed(self) -> list[tuple[int, int, Location]]:
        return super().shards()

    def shards(self) -> list[tuple[int, int, Location]]:
        """See `Artefact.shards`."""
        return self._listed


def open_photos(folder: Path, crop: int, cache: Location, short: int = SHORT) -> Photos:
    """The photographs under `folder`, decoded into `cache` at the first use.

    Names and content of the files are the cache's key. Files that cannot be read, or whose shorter side is below
    `crop`, are left out, with a warning that names them.

    Args:
        folder: searched with all folders in it.
        crop: the side of a crop in pixels.
        cache: the root of the store.
        short: larger photographs are reduced to this shorter side in pixels, or to `crop` where that is more.

    Raises:
        UsageError: no such folder, or too few usable photographs. StorageError: the cache cannot be written.
    """
    import numpy as np

    if not folder.is_dir():
        raise UsageError(f"--images {folder}: no such folder")
    short = max(short, crop)
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    files = [path for path in found if _utf8(str(path.relative_to(folder)))]
    names = [str(path.relative_to(folder)) for path in files]
    hashes = [hash_file(path) for path in files]
    content = hash_many(text for pair in zip(names, hashes, strict=True) for text in pair)
    record = {"kind": "photos", "short": short, "files": content, "n": len(files)}
    artefact = Store(cache).artefact("photos", record, len(files))
    try:
        stored, shapes = _decoded(artefact, files, names, short)
    except DamagedError:
        artefact.drop_damaged()
        stored, shapes = _decoded(artefact, files, names, short)
    except OSError as error:
        raise StorageError(f"the cache of decoded photographs cannot be used: {error}") from error
    rows = [i for i, shape in enumerate(shapes) if shape and min(shape) >= crop]
    small = [f"{name} ({shape[1]} x {shape[0]})" for name, shape in zip(names, shapes, strict=True)
             if shape and min(shape) < crop]  # fmt: skip
    if small:
        shown = ", ".join(small[:3]) + (", ..." if len(small) > 3 else "")
        log.warning("left out: %d photographs smaller than the crop of %d: %s", len(small), crop, shown)
    if len(rows) < LEAST:
        raise UsageError(
            f"--images {folder}: {len(files)} image files, {len(rows)} usable; training needs at least {LEAST} "
            f"with a shorter side of {crop} pixels or more"
        )
    usable = [shape for i in rows if (shape := shapes[i])]
    return StoredPhotos(
        np.empty(0, np.uint8), usable, [names[i] for i in rows], artefact.key, stored=stored, rows=rows,
        short=short, files=tuple(hashes[i] for i in rows),
    )  # fmt: skip


def _utf8(name: str) -> bool:
    """Whether a file's name can be hashed; warns if not."""
    readable = name.encode(errors="backslashreplace").decode()
    if readable != name:
        log.warning("left out: %s: its name is not UTF-8; rename it", readable)
    return readable == name


def _decoded(
    artefact: Artefact, files: list[Path], names: list[str], short: int
) -> tuple[_Stored, list[tuple[int, int] | None]]:
    """The complete artefact, and height and width of every photograph; None for a file that is not a photograph."""
    import numpy as np
    from tqdm import tqdm

    missing = artefact.missing(1)
    for low, high in tqdm(
        missing, desc="decoding photographs", unit="", disable=None if missing else True, leave=False
    ):
        try:
            artefact.write(low, high, {"pixels": reduce(decode(files[low]), short)[None]})
        except BadImageError as error:
            artefact.write(low, high, {"refused": np.frombuffer(str(error).encode(), np.uint8)[None]})
    stored = _Stored(**{field.name: getattr(artefact, field.name) for field in fields(Artefact)})
    shapes: list[tuple[int, int] | None] = []
    for i, name in enumerate(names):
        arrays = stored.read(i, i + 1)
        if "pixels" in arrays:
            shapes.append((arrays["pixels"].shape[2], arrays["pixels"].shape[3]))
        else:
            log.warning("left out: %s: %s", name, bytes(arrays["refused"][0]).decode())
            shapes.append(None)
    return stored, shapes
