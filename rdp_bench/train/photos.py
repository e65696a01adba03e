"""A folder of photographs as random crops: decoded once, kept as raw pixels on disk, read through a memory map."""

import contextlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rdp_bench.data._images import SUFFIXES, decode
from rdp_bench.errors import BadImageError, StorageError, UsageError
from rdp_bench.keys import hash_many

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Generator, Tensor

log = logging.getLogger(__name__)

SHORT = 256
"""Shorter side in pixels: larger photographs are reduced to it (bicubic, antialiased), smaller ones stay."""

VALIDATION = 224
"""Side of the central squares of held-out photographs."""

LEAST = 8
"""Photographs below which nothing is trained."""


@dataclass(frozen=True)
class Photos:
    """Photographs `[3, h, w]` uint8 in one flat array, and which of them are held out."""

    pixels: "NDArray[np.uint8]"
    shapes: list[tuple[int, int]]
    names: list[str]
    record: str  # hash of names, sizes and dates of the files

    def __post_init__(self) -> None:
        """Work out where each photograph starts, and hold some out by the hash of their names."""
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


def open_photos(folder: Path, crop: int, cache: Path) -> Photos:
    """The photographs under `folder`, decoded into `cache` at the first use.

    Files that cannot be read, or whose shorter side is below `crop`, are left out, with a warning that names them.

    Raises:
        UsageError: no such folder, or too few usable photographs. StorageError: the cache cannot be written.
    """
    if not folder.is_dir():
        raise UsageError(f"--images {folder}: no such folder")
    if crop > SHORT:
        raise UsageError(f"--crop is at most {SHORT}, the shorter side that photographs are reduced to; found {crop}")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    facts = []
    for path in files:
        stat = path.stat()
        facts.append(f"{path.relative_to(folder)} {stat.st_size} {stat.st_mtime_ns}")
    record = hash_many([str(SHORT), str(crop), *facts])
    place = cache / "photos" / record[:16]
    made = _read(place, record)
    if made is None:
        _decode_all(files, folder, crop, place)
        made = _read(place, record)
    assert made
    if len(made.names) < LEAST:
        raise UsageError(
            f"--images {folder}: {len(files)} image files, {len(made.names)} usable; training needs at least {LEAST} "
            f"with a shorter side of {crop} pixels or more"
        )
    return made


def _read(place: Path, record: str) -> Photos | None:
    """What an earlier use left; none where there was none, or where it is damaged."""
    import numpy as np

    try:
        index = json.loads((place / "index.json").read_text())
        shapes = [(int(height), int(width)) for height, width in index["shapes"]]
        # An empty file cannot be mapped.
        pixels = np.load(place / "pixels.npy", mmap_mode="r" if shapes else None, allow_pickle=False)
        if pixels.size != sum(3 * height * width for height, width in shapes):
            return None
        return Photos(pixels, shapes, index["names"], record)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _decode_all(files: list[Path], folder: Path, crop: int, place: Path) -> None:
    import numpy as np
    from PIL.Image import Resampling
    from tqdm import tqdm

    shapes: list[tuple[int, int]] = []
    names: list[str] = []
    small: list[str] = []
    raw, done = (place / f"{name}.{os.getpid()}.tmp" for name in ("raw", "pixels"))
    try:
        place.mkdir(parents=True, exist_ok=True)
        with raw.open("wb") as out:
            for path in tqdm(files, desc="decoding photographs", unit="", disable=None, leave=False):
                name = str(path.relative_to(folder))
                try:
                    image = decode(path)
                except BadImageError as error:
                    log.warning("left out: %s", error)
                    continue
                short = min(image.size)
                if short < crop:
                    small.append(f"{name} ({image.size[0]} x {image.size[1]})")
                    continue
                if short > SHORT:
                    size = tuple(max(SHORT, round(side * SHORT / short)) for side in image.size)
                    image = image.resize((size[0], size[1]), Resampling.BICUBIC)
                pixels = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
                out.write(pixels.tobytes())
                shapes.append((pixels.shape[1], pixels.shape[2]))
                names.append(name)
        if small:
            shown = ", ".join(small[:3]) + (", ..." if len(small) > 3 else "")
            log.warning("left out: %d photographs smaller than the crop of %d: %s", len(small), crop, shown)
        # As .npy, so that its reader checks type and size.
        flat = np.memmap(raw, np.uint8, "r") if names else np.empty(0, np.uint8)
        with done.open("wb") as file:
            np.save(file, flat, allow_pickle=False)
        done.replace(place / "pixels.npy")
        index = place / f"index.{os.getpid()}.tmp"
        index.write_text(json.dumps({"shapes": shapes, "names": names}))
        index.replace(place / "index.json")
    except OSError as error:
        raise StorageError(f"the cache of decoded photographs {place} cannot be written: {error}") from error
    finally:
        for left in (raw, done):
            with contextlib.suppress(OSError):
                left.unlink(missing_ok=True)
