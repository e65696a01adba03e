"""OUT/predictions: the predictions of a run as one file, so that a results folder needs no cache.

    OUT/predictions/table1.3f2a09b1c4d5e6f7.safetensors

A safetensors file of zstd frames. The frame `about` is JSON: every other array with its dtype, shape and sha256, and
the facts that each key is the hash of. The run record contains the sha256 of this JSON, and the name of the file its
first digits, so a file of another run is not accepted. The file of an earlier state is deleted only after the record
names the new one.
"""

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from rdp_bench.cache.files import write_atomic_by, writing
from rdp_bench.errors import DamagedError, UnreadableError
from rdp_bench.keys import Record, canonical_json, hash_many

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[Any]]

FORMAT = 1
"""Version of the file. Bump it when this version would misread what another one wrote."""

FOLDER = "predictions"
_LEVEL = 6  # of zstd
_COPIED = 1 << 20  # bytes at a time
_LARGEST = 1 << 28  # bytes of one frame, decompressed
_INTEGERS = ("uint8", "uint16", "int32")  # the smallest that holds all values is stored
_TYPES = {"predicted": _INTEGERS, "label": _INTEGERS}  # all other arrays are float32


def path_of(out: Path, stem: str, digest: str) -> Path:
    """The file of the run record `stem`.json whose `about` has this sha256."""
    return out / FOLDER / f"{stem}.{digest[:16]}.safetensors"


def tidy(out: Path, stem: str, digest: str | None) -> None:
    """Delete the files of earlier states of a run; `digest` is of the one that its record names, if it is to stay."""
    keep = path_of(out, stem, digest).name if digest else ""
    mine = re.compile(re.escape(stem) + r"\.[0-9a-f]{16}\.safetensors")
    with contextlib.suppress(OSError):
        for path in list((out / FOLDER).iterdir()):
            if mine.fullmatch(path.name) and path.name != keep:
                path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Frame:
    """A compressed array in the temporary file."""

    start: int
    size: int
    facts: Record  # dtype, shape, sha256 of the compressed bytes


@dataclass
class PredictionWriter:
    """Collects the arrays of a run and writes them as one file.

    Compressed arrays wait in a temporary file without a name, so memory does not grow with the run.

    Attributes:
        out: the results folder.
        stem: the name of the run record without its ending.
        about: facts of the run as a whole.
        labels: the label of every image.
        ids: the name of every image.
        image_hashes: `keys.hash_pixels` of every image.
    """

    out: Path
    stem: str
    about: Record
    labels: Sequence[int]
    ids: Sequence[str]
    image_hashes: Sequence[str]
    _spool: "IO[bytes] | None" = None
    _kept: dict[str, tuple[Record, dict[str, _Frame]]] = field(default_factory=dict)
    _labels: Any = None

    def add(self, kind: str, key: str, arrays: "Arrays", **facts: Any) -> None:
        """Keep the arrays of an artefact, in place of those that were kept under this key before.

        Raises:
            UnreadableError: its labels are not those of the images.
            StorageError: the folder cannot be written to.
        """
        import numpy as np

        if self._labels is None:
            self._labels = np.array(self.labels, np.int32)
        arrays = dict(arrays)
        if "label" in arrays and not np.array_equal(arrays.pop("label"), self._labels):
            raise UnreadableError(f"{kind} {key[:12]} in the cache has other labels than the data set; delete it")
        frames = {name: self._append(name, array) for name, array in arrays.items()}
        self._kept[key] = ({"kind": kind, "key": key, **facts}, frames)

    def commit(self, wanted: Iterable[str], records: Mapping[str, Record], made: Record) -> Record | None:
        """Write what is kept of the keys in `wanted`; None if that is nothing.

        Args:
            wanted: keys in the order of the run's cells.
            records: what the keys are hashes of.
            made: what made the artefacts: `results.provenance.Provenance.facts`.

        Returns:
            What the run record says of the file.

        Raises:
            StorageError: the file cannot be written.
        """
        import numpy as np

        keys = [key for key in dict.fromkeys(wanted) if key in self._kept]
        if not keys:
            return None
        frames = {
            "label": self._append("label", np.array(self.labels, np.int32)),
            "ids": self._append_text(self.ids),
            "image_hashes": self._append_text(self.image_hashes),
        }
        lists = {name: frame.facts for name, frame in frames.items()}
        artefacts = []
        for number, key in enumerate(keys):
            facts, mine = self._kept[key]
            frames |= {f"{number}.{name}": frame for name, frame in mine.items()}
            artefacts.append({**facts, "arrays": {name: frame.facts for name, frame in mine.items()}})
        about = canonical_json(
            {
                **self.about,
                "format": FORMAT,
                "artefacts": artefacts,
                "images_in_order": lists,
                "records": dict(sorted(records.items())),
                **made,
            }
        )
        digest = sha256(about.encode()).hexdigest()
        frames["about"] = self._append_bytes(about.encode(), {})
        self._write(path_of(self.out, self.stem, digest), frames)
        return {"sha256": digest, "artefacts": len(keys)}

    def _append(self, name: str, array: "NDArray[Any]") -> _Frame:
        import numpy as np

        array = np.ascontiguousarray(array)
        dtype = "float32"
        if name in _TYPES:
            low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
            dtype = next(each for each in _INTEGERS if np.iinfo(each).min <= low and high <= np.iinfo(each).max)
        data = array.astype(np.dtype(dtype).newbyteorder("<")).tobytes()
        return self._append_bytes(data, {"dtype": dtype, "shape": list(array.shape)})

    def _append_text(self, texts: Sequence[str]) -> _Frame:
        plain = [str(text).encode("utf-8", "replace").decode() for text in texts]
        return self._append_bytes(json.dumps(plain).encode(), {})

    def _append_bytes(self, data: bytes, facts: Record) -> _Frame:
        import zstandard

        packed = zstandard.ZstdCompressor(level=_LEVEL).compress(data)
        with writing(self.out / FOLDER):
            if self._spool is None:
                (self.out / FOLDER).mkdir(parents=True, exist_ok=True)
                self._spool = tempfile.TemporaryFile(dir=self.out / FOLDER)  # noqa: SIM115 - open as long as the run
            start = self._spool.seek(0, os.SEEK_END)
            self._spool.write(packed)
        return _Frame(start, len(packed), {**facts, "sha256": sha256(packed).hexdigest()})

    def _write(self, path: Path, frames: Mapping[str, _Frame]) -> None:
        """A safetensors file of these frames: its header, then the frames, copied in small pieces."""
        header, end = {}, 0
        for name, frame in frames.items():
            header[name] = {"dtype": "U8", "shape": [frame.size], "data_offsets": [end, end + frame.size]}
            end += frame.size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        spool = self._spool
        assert spool is not None

        def write(file: BinaryIO) -> None:
            file.write(len(text).to_bytes(8, "little") + text)
            for frame in frames.values():
                spool.seek(frame.start)
                left = frame.size
                while left:
                    left -= file.write(spool.read(min(left, _COPIED)))

        write_atomic_by(path, write)


class PredictionFile:
    """A file that `PredictionWriter` wrote, opened; every array is checked when it is read.

    Attributes:
        path: the file.
        about: the facts of the run, and of each artefact.
        label: the label of every image, `[n]`.
        ids: the name of every image.
        image_hashes: the hash of the pixels of every image.

    Raises:
        DamagedError: there is no such file, it was changed, or it is of another run.
        UnreadableError: the system could not read it.
    """

    def __init__(self, path: Path, digest: str) -> None:
        from safetensors import safe_open

        self.path = path
        if not path.is_file():
            raise DamagedError(f"{path} does not exist")
        with self._reading():
            opened: Any = safe_open(path, "numpy")
            self._open, names = opened, set(opened.keys())
        if "about" not in names:
            raise DamagedError(f"{path} is not a file of predictions")
        text = self._decompressed("about", None)
        if sha256(text).hexdigest() != digest:
            raise DamagedError(f"{path} is not the file that the run record names (its hash differs)")
        with self._reading():
            self.about: Record = json.loads(text)
            if self.about["format"] != FORMAT:
                raise DamagedError(f"{path}: format {self.about['format']}, this version reads {FORMAT}")
            artefacts = self.about["artefacts"]
            self._numbers = {each["key"]: number for number, each in enumerate(artefacts)}
            known = {f"{number}.{name}" for number, each in enumerate(artefacts) for name in each["arrays"]}
            lists = self.about["images_in_order"]
            if names != known | {*lists, "about"}:
                raise DamagedError(f"{path}: it does not have the parts that it names")
            self.label = self._array("label", lists["label"])
            self.ids: list[str] = json.loads(self._decompressed("ids", lists["ids"]))
            hashes = json.loads(self._decompressed("image_hashes", lists["image_hashes"]))
            self.image_hashes: list[str] = hashes
        counts = {len(self.label), len(self.ids), len(self.image_hashes), self.about["n"]}
        images = hash_many([*self.image_hashes, *map(str, self.label.tolist())])
        if len(counts) > 1 or images != self.about["images"]:
            raise DamagedError(f"{path}: its images and labels are not those that it names")

    def facts(self, key: str) -> Record | None:
        """What is said of an artefact; None if it is not in the file."""
        number = self._numbers.get(key)
        return None if number is None else self.about["artefacts"][number]

    def read(self, key: str) -> "dict[str, NDArray[Any]]":
        """The arrays of an artefact, `[n]` or `[n, draws]` each.

        Raises:
            DamagedError: it is not in the file, or was changed.
            UnreadableError: the system could not read the file.
        """
        facts = self.facts(key)
        if facts is None:
            raise DamagedError(f"{self.path} does not contain them")
        arrays = {
            name: self._array(f"{self._numbers[key]}.{name}", about) for name, about in facts["arrays"].items()
        }  # fmt: skip
        if any(len(array) != self.about["n"] for array in arrays.values()):
            raise DamagedError(f"{self.path}: {key[:12]} is not of {self.about['n']} images")
        return arrays

    def made(self, key: str) -> list[Record]:
        """What made an artefact: an environment and a time for the first and last batch of each environment."""
        environments = self.about["environments"]
        return [
            {**environments[number], "time": time}
            for number, first, last in self.about["made"].get(key, [])
            for time in dict.fromkeys((first, last))
        ]

    def _array(self, name: str, facts: Record) -> "NDArray[Any]":
        import numpy as np

        with self._reading():
            allowed = _TYPES.get(name.rpartition(".")[2], ("float32",))
            if facts["dtype"] not in allowed:
                raise DamagedError(f"{self.path}: '{name}' is {facts['dtype']}")
            data = self._decompressed(name, facts)
            array = np.frombuffer(data, np.dtype(facts["dtype"]).newbyteorder("<")).reshape(facts["shape"])
            return array.astype(np.float32 if facts["dtype"] == "float32" else np.int32)

    def _decompressed(self, name: str, facts: Record | None) -> bytes:
        import zstandard

        with self._reading():
            blob = self._open.get_tensor(name)
            if facts is not None and sha256(blob.data).hexdigest() != facts["sha256"]:
                raise DamagedError(f"{self.path}: '{name}' does not have the hash it was written with")
            if not 0 <= zstandard.get_frame_parameters(blob.data).content_size <= _LARGEST:
                raise DamagedError(f"{self.path}: '{name}' is too large")
            data: bytes = zstandard.ZstdDecompressor().decompress(blob.data)
            return data

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (DamagedError, MemoryError):
            raise
        except OSError as error:
            raise UnreadableError(f"{self.path}: cannot be read ({error.strerror or error})") from error
        except Exception as error:
            raise DamagedError(f"{self.path} is damaged ({type(error).__name__}: {str(error)[:120]})") from error
