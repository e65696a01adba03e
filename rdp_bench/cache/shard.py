"""One batch of an artefact in a file: a safetensors file of zstd frames.

The metadata of the file is a header and its sha256. The header holds the artefact's key and kind, the rows, the name,
dtype, shape and sha256 of every array, and what made it (versions, device, time). Nothing in a file is believed before
its hash is checked, and nothing whose hash is right is used in another place than it names.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from typing import IO, TYPE_CHECKING, Any

from rdp_bench.cache.files import Location
from rdp_bench.cache.kinds import misshapen
from rdp_bench.errors import DamagedError
from rdp_bench.keys import Record, canonical_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[np.generic]]

SHARD_FORMAT = 2
"""Bump it when this version would misread a shard of another one."""

COMPRESSION_LEVEL = 1
LONGEST_HEADER = 1 << 20

_BESIDE = 1 << 18
"""Bytes from which an array is hashed in a thread of its own while it is decompressed."""


@dataclass(frozen=True)
class Place:
    """What a shard must say of itself to be believed: its artefact's kind and key, and rows `low..high` of `n`."""

    kind: str
    key: str
    low: int
    high: int
    n: int

    def misfit(self, header: Record, file_format: int) -> str:
        """Why a file with this header does not belong here; empty if it may."""
        wanted = {"format": file_format, "kind": self.kind, "key": self.key, "rows": [self.low, self.high]}
        for name, value in wanted.items():
            if header.get(name) != value:
                return f"its {name} is {str(header.get(name))[:80]}, not {value}"
        if not 0 <= self.low < self.high <= self.n:
            return f"images {self.low} to {self.high} are not among the {self.n} of this artefact"
        return ""


def shard_misfit(header: Record, place: Place) -> str:
    """Why a shard with this header does not belong in `place`; empty if it does."""
    if why := place.misfit(header, SHARD_FORMAT):
        return why
    if not isinstance(header.get("made"), dict):
        return "it does not say what made it"
    return misshapen(place.kind, header.get("arrays"), place.high - place.low)


@dataclass(frozen=True)
class Packed:
    """Compressed arrays of one batch, and what its header says of them."""

    path: Location | None
    arrays: Record  # name -> dtype, shape, sha256 of the compressed bytes
    blobs: "Mapping[str, NDArray[np.uint8]]"

    def check(self) -> None:
        """Compare every hash.

        Raises:
            DamagedError: one differs.
        """
        for name, blob in self.blobs.items():
            self._compare(name, sha256(blob.data).hexdigest())

    def _compare(self, name: str, digest: str) -> None:
        if digest != self.arrays[name]["sha256"]:
            raise DamagedError(f"{self.path}: '{name}' does not have the hash it was written with")

    def plain(self) -> "Arrays":
        """The arrays, checked and decompressed.

        Raises:
            DamagedError: one does not have its hash, dtype or shape.
        """
        out: Arrays = {}
        with contextlib.ExitStack() as stack:
            beside: ThreadPoolExecutor | None = None
            for name, blob in self.blobs.items():
                if len(blob) < _BESIDE:
                    self._compare(name, sha256(blob.data).hexdigest())
                    out[name] = self._decompressed(name)
                    continue
                # Both free the interpreter lock: checking takes no time of its own where there are two cores.
                beside = beside or stack.enter_context(ThreadPoolExecutor(1))
                digest = beside.submit(sha256, blob.data)
                array = self._decompressed(name)
                self._compare(name, digest.result().hexdigest())
                out[name] = array
        return out

    def _decompressed(self, name: str) -> "NDArray[np.generic]":
        about = self.arrays[name]
        return decompressed(self.blobs[name].data, about["dtype"], about["shape"], f"{self.path}: '{name}'")


def decompressed(blob: Any, dtype_name: str, shape: list[int], what: str) -> "NDArray[np.generic]":
    """The array in one zstd frame.

    Raises:
        DamagedError: it is no frame, or of another size. `what` begins the message.
    """
    import numpy as np
    import zstandard

    dtype = np.dtype(dtype_name).newbyteorder("<")
    try:
        size = zstandard.get_frame_parameters(blob).content_size
        if size != dtype.itemsize * np.prod(shape, dtype=object):
            raise DamagedError(f"{what} holds {size} bytes, not an array {shape}")
        content = zstandard.ZstdDecompressor().decompress(blob)
    except zstandard.ZstdError as error:
        raise DamagedError(f"{what} cannot be decompressed ({error})") from error
    return np.frombuffer(content, dtype).reshape(shape)


def compressed(arrays: "Mapping[str, NDArray[Any]]") -> Packed:
    """Arrays as one batch; they need not be contiguous."""
    import numpy as np
    import zstandard

    blobs, described = {}, {}
    for name, array in arrays.items():
        plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
        packed = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL).compress(plain)
        blobs[name] = np.frombuffer(packed, np.uint8)
        digest = sha256(packed).hexdigest()
        described[name] = {"dtype": array.dtype.name, "shape": list(array.shape), "sha256": digest}
    return Packed(None, described, blobs)


def shard_header(place: Place, packed: Packed, made: Record) -> Record:
    """The header of a batch that `made` made.

    Raises:
        ValueError: its arrays are not those of its kind, or its rows not those of its artefact.
    """
    header = {
        "format": SHARD_FORMAT,
        "kind": place.kind,
        "key": place.key,
        "rows": [place.low, place.high],
        "arrays": packed.arrays,
        "made": made,
    }
    if why := shard_misfit(header, place):
        raise ValueError(f"{place.kind} {place.key[:12]}, images {place.low} to {place.high}: {why}")
    return header


def serialized(header: Record, blobs: "Mapping[str, NDArray[Any]]") -> bytes:
    """A file of `blobs` with this header."""
    from safetensors.numpy import save

    text = canonical_json(header)
    return save(dict(blobs), {"header": text, "sha256": sha256(text.encode()).hexdigest()})


@contextlib.contextmanager
def parsing(path: Location) -> Iterator[None]:
    """Whatever a parser makes of garbage is damage; of what is damaged, no more is known."""
    try:
        yield
    except (DamagedError, MemoryError):
        raise
    except OSError:
        raise
    except Exception as error:
        raise DamagedError(f"{path}: is not a shard ({type(error).__name__}: {str(error)[:200]})") from error


def read_header(path: Location, file: IO[bytes]) -> tuple[Record, Record, int]:
    """The header of a file, once it has the hash it was written with; safetensors' own index, and where data begins.

    Raises:
        DamagedError: it has not.
    """
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= LONGEST_HEADER:
        raise DamagedError(f"{path}: is not a shard (no header)")
    data = file.read(length)
    with parsing(path):
        if len(data) < length:
            raise DamagedError(f"{path}: is not a shard (no header)")
        index = json.loads(data)
        metadata = index.pop("__metadata__")
        text = metadata["header"]
        if sha256(text.encode()).hexdigest() != metadata["sha256"]:
            raise DamagedError(f"{path}: its header does not have the hash it was written with")
        header = json.loads(text)
        if not isinstance(header, dict):
            raise DamagedError(f"{path}: its header is not a record")
        return header, index, 8 + length


def read_shard(path: Location, data: bytes, header: Record, place: Place) -> tuple[Record, Packed]:
    """Header and compressed arrays of a shard that belongs in `place`; the arrays' hashes are not checked yet.

    Args:
        path: the file, for errors.
        data: its bytes.
        header: what `read_header` found in it.
        place: where it is.

    Raises:
        DamagedError: the shard is damaged, or belongs elsewhere.
    """
    from safetensors.numpy import load

    if why := shard_misfit(header, place):
        raise DamagedError(f"{path}: {why}")
    with parsing(path):
        blobs = load(data)
    if {*blobs} != {*header["arrays"]} or any(blob.dtype.name != "uint8" for blob in blobs.values()):
        raise DamagedError(f"{path}: does not hold the arrays that its header names")
    return header, Packed(path, header["arrays"], blobs)
