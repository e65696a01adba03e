"""NumPy's files of object arrays, which are pickles: read without running any code from them."""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rdp_bench.errors import BadModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LARGEST = 2**29
"""The largest unpacked size of a file of arrays in bytes; ResNet-152 with denoising has 273 MiB."""


def read_arrays(path: Path) -> list[NDArray[np.float32]]:
    """Return the arrays of a `.npy` file, plain or zipped, that contains one object array of float arrays.

    Raises:
        BadModelError: the file has another format, is damaged, or contains anything but float arrays.
    """
    with refused(path, ".npy with one object array of float arrays, as the ComDefend authors' files are"):
        return [array.numbers() for array in object_array(path)]


@contextmanager
def refused(path: Path, expected: str) -> Iterator[None]:
    """Turn every error of a reader into a `BadModelError` that names the file and the expected format."""
    try:
        yield
    except Exception as error:  # a pickle may fail in any way
        raise BadModelError(f"{path.name}: refused ({error or type(error).__name__}). Expected {expected}") from error


def object_array(path: Path) -> list[Any]:
    """Return the content of the object array in a `.npy` file, with its arrays as `_Array`.

    NumPy writes object arrays as a pickle and reads them by running it. `_Arrays` interprets the pickle and creates
    objects of two classes of its own only, which store shapes and bytes.

    Raises:
        Exception: of any type, if the file is not such a file; call it inside `refused`.
    """
    from numpy.lib import format as npy

    file = io.BytesIO(_unzipped(path))
    npy.read_magic(file)
    shape, _, kind = npy.read_array_header_1_0(file)
    if not kind.hasobject:
        raise ValueError("an array of numbers, no list of arrays")
    outer = _Arrays(file).load()
    if not isinstance(outer, _Array) or not isinstance(outer.data, list) or len(outer.data) != math.prod(shape):
        raise ValueError("no list of arrays")
    return outer.data


def _unzipped(path: Path) -> bytes:
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            return limited(file)
    with zipfile.ZipFile(path) as folder:
        if len(folder.namelist()) != 1:
            raise ValueError(f"a zip of {len(folder.namelist())} files instead of one")
        with folder.open(folder.namelist()[0]) as file:
            return limited(file)


def limited(file: IO[bytes]) -> bytes:
    """Return the content of a file; more than `LARGEST` bytes raise `ValueError`."""
    content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"larger than {LARGEST >> 20} MiB")
    return content


class Dtype:
    """Replaces a NumPy data type in a pickle; stores its name and byte order."""

    def __init__(self, name: str, *_: object) -> None:
        self.name = str(name)
        self.order = "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = str(state[1])


class _Array:
    """Replaces a NumPy array in a pickle; stores shape, type and content."""

    shape: tuple[int, ...] = ()
    dtype = Dtype("none")
    fortran = False
    data: bytes | list[Any] = b""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.dtype, self.fortran, self.data = state

    def numbers(self, kinds: tuple[str, ...] = ("f4", "f8")) -> NDArray[np.float32]:
        import numpy as np

        name, order = self.dtype.name, self.dtype.order
        if name not in kinds or order not in "<>=|" or not isinstance(self.data, bytes):
            raise ValueError(f"an array of '{order}{name}' instead of floats")
        flat = np.frombuffer(self.data, order + name)
        if flat.size != math.prod(self.shape):
            raise ValueError(f"{flat.size} numbers for shape {self.shape}")
        return flat.reshape(self.shape, order="F" if self.fortran else "C").astype(np.float32)


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes spelled in '{encoding}'")
    return text.encode("latin1")


class _Arrays(pickle.Unpickler):
    """An unpickler that resolves a few names, each to a replacement and never to the object itself."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the replacement of a global that object arrays need; refuse any other."""
        replacements = {
            "numpy.core.multiarray._reconstruct": lambda *_: _Array(),
            "numpy._core.multiarray._reconstruct": lambda *_: _Array(),
            "numpy.ndarray": _Array,
            "numpy.dtype": Dtype,
            "_codecs.encode": _latin1,
        }
        if f"{module}.{name}" not in replacements:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return replacements[f"{module}.{name}"]
