"""Adversarial images from files: the attack `files:FOLDER` finds them by the ids of the clean images.

The source of such a set is called `elsewhere`, because no model of this run crafted it. The set is keyed by the pixels
of the clean images and of the files. It is compared with the clean images and then stored like any other.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdp_bench.data._images import SUFFIXES, decode, read_file
from rdp_bench.data._labelled import Images
from rdp_bench.data.image_hashes import batch, hash_images
from rdp_bench.errors import BadImageError, UsageError
from rdp_bench.keys import hash_many
from rdp_bench.registry import Resolved, attack
from rdp_bench.specs import show_level, unquoted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from rdp_bench.protocols import Dataset, Source
    from rdp_bench.rng import ImageRng

ELSEWHERE = "elsewhere"
"""The source of images that no model of this run crafted."""

SCHEME = "files:"
ARRAY = ".npy"

_SET = re.compile(r"[0-9a-f]{16}")
"""How `rdp-bench export --images` calls the folder of a set."""

_BATCH = 20
_LOSSY = (".jpg", ".jpeg", ".webp")


class AdversarialImages(Images):
    """Image files with exactly the size of the clean images; they are not resized or cropped."""

    def image(self, index: int) -> NDArray[np.uint8]:
        """Return image `index` as uint8 `[3, size, size]`, RGB.

        Raises:
            BadImageError: the file is missing, damaged, or of another size.
        """
        import numpy as np

        path = self.paths[index]
        if path.suffix.lower() == ARRAY:
            return read_array(path, self.size)
        image = decode(path)
        if image.size != (self.size, self.size):
            raise BadImageError(
                f"{path}: {image.width} x {image.height} pixels, the clean images have {self.size} x {self.size}; "
                "adversarial images are not resized"
            )
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


@dataclass(frozen=True)
class AdversarialFiles:
    """Adversarial images in `folder`, one file per clean image: PNG (or another image format), or `.npy`.

    A file has the name of the clean image's id (the suffix may differ), in the same subfolder. `of` finds the files.
    """

    folder: str
    images: AdversarialImages | None = field(default=None, repr=False, metadata={"parameter": False})
    hashes: Sequence[str] = field(default=(), repr=False, metadata={"parameter": False})

    def __call__(self, source: Source, x: Tensor, y: Tensor, eps: float, rng: ImageRng) -> Tensor:  # noqa: ARG002
        """Raise `UsageError`: images are read by id (`crafted`), and a batch of pixels has no ids."""
        raise UsageError(f"attack '{SCHEME}{self.folder}' reads files and cannot craft images")

    def resolved(self, eps_255: float) -> dict[str, Any]:  # noqa: ARG002 - part of the protocol
        """Return one hash of the pixels of all files."""
        return {"files": hash_many(self.hashes)}

    def gradients(self, eps_255: float) -> int:  # noqa: ARG002 - part of the protocol
        """Return 0: nothing is computed."""
        return 0

    def of(self, dataset: Dataset, cache: Path, *, write: bool = True) -> AdversarialFiles:
        """Return this attack bound to a data set: the files of its images, found and hashed.

        Args:
            dataset: the clean images.
            cache: folder of the cache; hashes of unchanged files are read from it.
            write: whether new hashes are added to the cache.

        Raises:
            BadImageError: the folder does not exist, an image has no file or several, or a file cannot be read.
        """
        found = files_of(Path(self.folder).expanduser(), dataset)
        return replace(self, images=found, hashes=hash_images(found, cache, write=write))

    def crafted(self, low: int, high: int) -> NDArray[np.uint8]:
        """Return adversarial images `low..high` (exclusive) as uint8 `[high - low, 3, size, size]`."""
        assert self.images is not None
        return batch(self.images, low, high, self.hashes)

    def check(self, dataset: Dataset, image_hashes: Sequence[str], eps: float) -> None:
        """Compare every image with its clean image.

        Args:
            dataset: the clean images.
            image_hashes: their pixel hashes.
            eps: the L-infinity budget in /255.

        Raises:
            BadImageError: an image differs from its clean image by more than `eps`, or no image differs.
        """
        import numpy as np

        assert self.images is not None
        far: list[int] = []
        for low in range(0, len(image_hashes), _BATCH):
            high = min(low + _BATCH, len(image_hashes))
            clean = batch(dataset, low, high, image_hashes).astype(np.int16)
            far += np.abs(self.crafted(low, high) - clean).max(axis=(1, 2, 3)).tolist()
        worst = max(range(len(far)), key=far.__getitem__)
        if far[worst] > eps:
            count = sum(each > eps for each in far)
            path = self.images.paths[worst]
            lossy = "; JPEG and WebP change pixels: save PNG" if path.suffix.lower() in _LOSSY else ""
            raise BadImageError(
                f"attack '{SCHEME}{self.folder}': {count} of {len(far)} images are farther than eps "
                f"{show_level(eps)}/255 from the clean images; the farthest, {path.name}, by {far[worst]}/255{lossy}"
            )
        if eps and not far[worst]:
            raise BadImageError(f"attack '{SCHEME}{self.folder}': every image equals the clean one; wrong folder?")

    @property
    def remark(self) -> str:
        """A remark for readers of the results."""
        return f"{SCHEME}{self.folder}: these adversarial images were crafted elsewhere and read from files"


def files_of(folder: Path, dataset: Dataset) -> AdversarialImages:
    """Return the adversarial images in `folder` for all images of `dataset`, in its order.

    Files are named like the images, or numbered in a set that `rdp-bench export --images` wrote.

    Raises:
        BadImageError: the folder does not exist, or an image has no file or several.
    """
    if not folder.is_dir():
        raise BadImageError(f"attack '{SCHEME}{folder}': no such folder")
    by_name: dict[str, list[Path]] = {}
    for parent, _, names in os.walk(folder):
        for name in sorted(names):
            path = Path(parent, name)
            if path.suffix.lower() in SUFFIXES | {ARRAY}:
                by_name.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    if exported := _exported_ids(folder):
        by_name = {_named(id_): by_name[f"{i:05d}"] for i, id_ in enumerate(exported) if f"{i:05d}" in by_name}
    found: list[Path] = []
    missing: list[str] = []
    for id_ in dataset.ids:
        files = by_name.get(_named(id_), [])
        if len(files) > 1:
            raise BadImageError(
                f"attack '{SCHEME}{folder}': image '{id_}' has several files "
                f"({', '.join(each.name for each in files)}); keep one"
            )
        if files:
            found += files
        else:
            missing.append(id_)
    if missing:
        more = ", ..." if len(missing) > 3 else ""
        raise BadImageError(
            f"attack '{SCHEME}{folder}': {len(missing)} of {len(dataset.ids)} images of {dataset.name} have no file: "
            f"{', '.join(missing[:3])}{more}. Files are named like the images, {missing[0]!r} as .png or .npy"
        )
    return AdversarialImages(
        name=f"{SCHEME}{folder}",
        size=dataset.size,
        ids=tuple(dataset.ids),
        labels=tuple(dataset.labels),
        paths=tuple(found),
        origin=folder,
    )


def _named(id_: str) -> str:
    """The name of an image's file without its suffix.

    An id is only looked up and never used as a path: a plugin may choose any ids.
    """
    stem, suffix = os.path.splitext(id_)  # noqa: PTH122 - an id, no path
    return stem if suffix.lower() in SUFFIXES else id_


def _exported_ids(folder: Path) -> list[str]:
    """The ids of the numbered images of an exported set, from the record beside its folder; none if there is none."""
    place = folder.absolute()
    if not _SET.fullmatch(place.name):
        return []
    for path in sorted(place.parent.glob("*.json")):
        try:
            record: Any = json.loads(read_file(path))
            if any(each["folder"] == place.name for each in record["sets"]):
                return [str(id_) for id_ in record["ids"]]
        except (OSError, ValueError, TypeError, KeyError, RecursionError, BadImageError):
            continue  # another file
    return []


def read_array(path: Path, size: int) -> NDArray[np.uint8]:
    """Return the image in a `.npy` file as uint8 `[3, size, size]`; the file may also contain `[size, size, 3]`.

    Memory is allocated for the expected size only, whatever the header says.

    Raises:
        BadImageError: the format, type or shape differs, or the amount of data differs from the header.
    """
    import numpy as np
    from numpy.lib import format as npy

    content = read_file(path, 3 * size * size + 4096)
    file = BytesIO(content)
    try:
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(file)]
        shape, fortran, dtype = read(file)
    except (ValueError, KeyError, EOFError) as error:
        raise BadImageError(f"{path}: cannot be read as a .npy file ({error})") from error
    if dtype != np.uint8 or shape not in ((3, size, size), (size, size, 3)):
        raise BadImageError(
            f"{path}: expected uint8 [3, {size}, {size}] or [{size}, {size}, 3], found {dtype} {list(shape)}; save "
            "floats in [0, 1] as (255 * x).round().astype('uint8')"
        )
    if len(content) - file.tell() != 3 * size * size:
        raise BadImageError(f"{path}: {len(content) - file.tell()} bytes of pixels, its header says {3 * size * size}")
    array = np.frombuffer(content, np.uint8, offset=file.tell()).reshape(shape, order="F" if fortran else "C")
    return np.ascontiguousarray(array if shape == (3, size, size) else array.transpose(2, 0, 1))


def _adapt(text: str) -> Resolved[AdversarialFiles]:
    made = AdversarialFiles(unquoted(text.removeprefix(SCHEME)))
    return Resolved(text, made, "Adversarial images crafted elsewhere, read from files.", "crafted elsewhere", "1")


attack.label_scheme("files", r"files:.+", "files:FOLDER", _adapt)  # type: ignore[arg-type]
