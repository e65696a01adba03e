"""Hashes of the photographs that weights were trained on: whether a test image was among them.

Each photograph has two: of the bytes of its file, and of its pixels at the size at which trainings store them, which
finds the same pixels in another lossless file. A test image is looked up by both, and by its prepared pixels. Images
that were compressed again, cut or resized are not found: near duplicates have other hashes.

Only the first 8 bytes of each sha256 are kept, 12 KB for 1500 photographs: the chance that any of 1000 test images
agrees by accident with any of a million photographs is below 10^-9.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from rdp_bench.data._images import decode, reduce
from rdp_bench.data._labelled import Images
from rdp_bench.errors import DamagedError
from rdp_bench.keys import hash_file, hash_pixels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rdp_bench.protocols import Dataset

BYTES = 8


@dataclass(frozen=True)
class PhotographHashes:
    """The photographs of one training."""

    record: str
    """Of the folder, as in the card of the weights."""
    count: int
    """Photographs."""
    short: int
    """Larger photographs were reduced to this shorter side in pixels."""
    prefixes: frozenset[bytes]
    """First `BYTES` bytes of the hashes."""
    complete: bool = True
    """False where the training began with weights whose photographs are not known."""

    @classmethod
    def of(cls, record: str, count: int, short: int, hashes: Iterable[str]) -> PhotographHashes:
        """From whole sha256, in hexadecimal digits."""
        return cls(record, count, short, frozenset(map(_prefix, hashes)))

    def after(self, start: PhotographHashes | None) -> PhotographHashes:
        """These, and those of the weights that the training began with; None: they are not known."""
        if start is None:
            return replace(self, complete=False)
        same = start.short == self.short  # else pixels were hashed at another size
        prefixes = self.prefixes | start.prefixes
        count = self.count if start.prefixes <= self.prefixes else self.count + start.count
        return replace(self, prefixes=prefixes, count=count, complete=start.complete and same)

    def to_json(self) -> str:
        """As text, for the header of a weight file."""
        packed = base64.b64encode(b"".join(sorted(self.prefixes))).decode()
        about = {
            "record": self.record, "n": self.count, "short": self.short, "hashes": packed, "complete": self.complete,
        }  # fmt: skip
        return json.dumps(about, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, where: str) -> PhotographHashes:
        """What `to_json` wrote.

        Raises:
            DamagedError: the text is something else; the message begins with `where`.
        """
        try:
            about = json.loads(text)
            packed = base64.b64decode(about["hashes"], validate=True)
            if len(packed) % BYTES:
                raise ValueError("its length is wrong")
            parts = (packed[at : at + BYTES] for at in range(0, len(packed), BYTES))
            facts = str(about["record"]), int(about["n"]), int(about["short"])
            return cls(*facts, frozenset(parts), bool(about.get("complete", True)))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedError(f"{where}: the hashes of its photographs cannot be read ({error})") from error

    def among(self, dataset: Dataset, image_hashes: Sequence[str]) -> list[str]:
        """The ids of the images of a data set that are among the photographs.

        Args:
            dataset: the images.
            image_hashes: pixel hashes of its first images, as prepared; only so many are looked up.

        Raises:
            BadImageError: an image cannot be read.
        """
        pairs = zip(dataset.ids, enumerate(image_hashes), strict=False)
        return [
            id_
            for id_, (i, prepared) in pairs
            if any(_prefix(each) in self.prefixes for each in (prepared, *_hashes(dataset, i, self.short)))
        ]


@cache
def shipped() -> dict[str, Any]:
    """The lists that ship for weights that ship (`data/weights/photographs.json`), and what is declared of older ones.

    Keys: "lists", record -> list; "declared", record that nobody can compute again -> record of a list.
    """
    text = files("rdp_bench.data").joinpath("weights", "photographs.json").read_text()
    found = json.loads(text)
    lists = {record: PhotographHashes.from_json(json.dumps(each), record) for record, each in found["lists"].items()}
    return {"lists": lists, "declared": found["declared"]}


def _hashes(dataset: Dataset, index: int, short: int) -> Iterator[str]:
    if isinstance(dataset, Images):
        path = dataset.paths[index]
        yield hash_file(path)
        yield hash_pixels(reduce(decode(path), short))
    else:
        from PIL.Image import fromarray

        yield hash_pixels(reduce(fromarray(dataset.image(index).transpose(1, 2, 0)), short))


def _prefix(digits: str) -> bytes:
    return bytes.fromhex(digits[: 2 * BYTES])
