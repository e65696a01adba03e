"""Weight files of every kind: found, read as plain tensors or arrays, written. Nothing here runs what a file says."""

import argparse
import io
import json
import math
import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rdp_bench.cache.store import write_atomic
from rdp_bench.errors import BadModelError
from rdp_bench.keys import file_state, hash_file
from rdp_bench.specs import FileName, file_name
from rdp_bench.weights import state_dict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

State = OrderedDict[str, "Tensor"]

OURS = "rdp-bench"
"""The safetensors metadata under which our files say, as JSON, what they hold."""

LARGEST = 2**29
"""Bytes that a file of arrays may unpack to; ResNet-152 with denoising has 273 MiB."""


def find(defense: str, file: str | None) -> Path:
    """The weight file of a learned defense.

    Args:
        defense: the name of the defense, for the shipped file and for errors.
        file: None for the file that ships. A name is looked for where its label says (`specs.FileSearch`: in
            `--models-dir`, then as a path); without an ending (`rdp-ablation-full`) also among the files that ship.

    Raises:
        BadModelError: no such file.
    """
    shipped = files("rdp_bench.data").joinpath("weights")
    if file is None:
        usual = Path(str(shipped.joinpath(f"{defense}.safetensors")))
        if usual.is_file():
            return usual
        raise BadModelError(
            f"defense {defense}: no weights ship with it. Train some (rdp-bench train --help) or take its authors', "
            f"and name the file: {defense}(weights=FILE)"
        )
    named = Path(file)
    search = file.search if isinstance(file, FileName) else file_name(file).search
    places = search.places(file)
    if named.name == str(file) and not named.suffix:
        places.append(Path(str(shipped.joinpath(f"{named}.safetensors"))))
    for place in places:
        if place.is_file():
            return place
    looked = " and ".join(str(place) for place in places)
    raise BadModelError(
        f"defense {defense}: weights {file} are not there; looked for {looked}. Name a file in --models-dir or a path, "
        "or train one: rdp-bench train --help"
    )


CHANGED = "its weights changed since planning; run again"


@contextmanager
def unchanged(path: Path, expected: str) -> Iterator[None]:
    """Around code that reads weights from `path` and copies them: they are the content with sha256 `expected`.

    The hash is taken after reading, and size, times and inode of the file are the same before reading and after
    hashing: so what was read is what was hashed.

    Raises:
        BadModelError: the file has another content, or changed while it was read.
    """
    try:
        before = file_state(path)
        yield
        same = hash_file(path) == expected and file_state(path) == before
    except Exception as error:
        # A file that is being rewritten may be damaged, gone, or of other shapes.
        try:
            same = hash_file(path) == expected
        except OSError:
            same = False
        if same:
            raise
        raise BadModelError(f"{path}: {CHANGED}") from error
    if not same:
        raise BadModelError(f"{path}: {CHANGED}")


def read_metadata(path: Path) -> dict[str, Any]:
    """What a file of ours says about itself; empty for a file of anybody else. Loads no torch.

    Raises:
        BadModelError: a safetensors file whose header cannot be read.
    """
    if path.suffix != ".safetensors":
        return {}
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > path.stat().st_size:
                raise ValueError("the header is longer than the file")
            said = json.loads(file.read(size)).get("__metadata__", {}).get(OURS, "{}")
        found: dict[str, Any] = {**json.loads(said)}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise BadModelError(f"{path}: refused (damaged, or no weight file). Its header cannot be read") from error
    return found


def save(path: Path, state: "Mapping[str, Tensor]", metadata: Mapping[str, Any], half: bool = True) -> None:
    """Write `state` as safetensors that says `about`; under `half`, floats are kept in 16 bits where they fit.

    Raises:
        StorageError: the folder cannot be written to, or the disk is full.
    """
    from safetensors.torch import save as to_bytes

    def small(tensor: "Tensor") -> "Tensor":
        tensor = tensor.detach().cpu().contiguous()
        if not (half and tensor.is_floating_point()):
            return tensor
        # Running variances may be beyond the largest half, 65504.
        return tensor if (rounded := tensor.half()).isinf().any() else rounded

    tensors = {name: small(tensor) for name, tensor in state.items()}
    write_atomic(path, to_bytes(tensors, {OURS: json.dumps(metadata, sort_keys=True)}))


def require_safe_torch(path: Path) -> None:
    """Refuse to unpickle under a torch whose `weights_only` lets a file run code (CVE-2025-32434).

    Raises:
        BadModelError: torch is older than 2.6.
    """
    import torch

    if tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < (2, 6):
        raise BadModelError(
            f"{path.name}: refused, for torch {torch.__version__} may run what such a file holds. Install torch 2.6 or "
            "newer, or convert the file to .safetensors"
        )


def is_torch(path: Path) -> bool:
    """Whether a file begins as torch's do: a zip, or a pickle."""
    with path.open("rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02")


def read_tensors(path: Path) -> "State":
    """Tensors of a `.safetensors` file, or of any other that torch reads with `weights_only`; never a pickle.

    Containers of training scripts (`state_dict`, `model`, `ema`, ...) are opened, numbers beside tensors left out.

    Raises:
        BadModelError: not such a file, damaged, or holding anything but tensors.
    """
    import torch
    from torch.serialization import safe_globals

    if path.suffix != ".safetensors":
        require_safe_torch(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            with warnings.catch_warnings(), safe_globals(_INERT):
                warnings.simplefilter("ignore")  # a refusal is reported below, in our words
                found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each reader has its own kinds; all mean the same
        why = "holds more than tensors" if isinstance(error, pickle.UnpicklingError) else "damaged, or no weight file"
        raise BadModelError(
            f"{path.name}: refused ({why}). Only plain tensors are read: .safetensors, or .pth that torch loads "
            "with weights_only"
        ) from error
    state = state_dict.unwrap(found)
    if state is None:
        raise BadModelError(f"{path}: expected a dictionary of tensors, found {_kind(found)}")
    return state


def _kind(found: Any) -> str:
    if not isinstance(found, dict) or not found:
        return type(found).__name__
    keys = ", ".join(f"{key!s:.40}: {type(value).__name__}" for key, value in list(found.items())[:4])
    return f"{type(found).__name__} of {keys}{', ...' if len(found) > 4 else ''}"


def load_strict(net: "nn.Module", state: "Mapping[str, Tensor]", what: str, path: Path) -> None:
    """Load `state` into `net`, once a common prefix and the like are off its names; every tensor must fit.

    Args:
        net: the network; left as it is where the file is refused.
        state: what the file holds.
        what: the network's name, for the error.
        path: the file, for the error.

    Raises:
        BadModelError: names, shapes or kinds of number differ; the message has one example of each.
    """
    wanted = net.state_dict()
    state = state_dict.fit(state, wanted)
    problems = state_dict.problems(state, wanted)
    if problems:
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        raise BadModelError(f"{path} does not fit {what}: {shown}")
    if not all(tensor.isfinite().all() for tensor in state.values() if tensor.is_floating_point()):
        raise BadModelError(f"{path}: holds NaN or infinite weights")
    net.load_state_dict(state)


def channels_last(net: "nn.Module") -> "nn.Module":
    """`net` with all 4-d weights in channels-last memory; `Module.to` would refuse a network with a 5-d one."""
    import torch

    form = torch.channels_last
    net._apply(lambda tensor: tensor.to(memory_format=form) if tensor.ndim == 4 else tensor)  # type: ignore[no-untyped-call]
    return net


def read_arrays(path: Path) -> "list[NDArray[np.float32]]":
    """The arrays of a `.npy` file, bare or zipped, that holds one object array of float arrays.

    Raises:
        BadModelError: another kind of file, damaged, or a pickle that holds anything but float arrays.
    """
    with refused(path, ".npy with one object array of float arrays, as the ComDefend authors' files are"):
        return [array.numbers() for array in object_array(path)]


@contextmanager
def refused(path: Path, expected: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a pickle may fail anywhere; all mean the same
        raise BadModelError(f"{path.name}: refused ({error or type(error).__name__}). Expected {expected}") from error


def object_array(path: Path) -> list[Any]:
    """What the object array in a `.npy` file holds, its arrays as `_Array`.

    NumPy writes object arrays as a pickle, and reads them by running it. Here `_Arrays` follows the pickle
    and builds no object of any class but two of its own, which keep shapes and bytes.
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
    content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"larger than {LARGEST >> 20} MiB")
    return content


class _Dtype:
    """Stands where a pickle wants a NumPy data type: its name, nothing else."""

    def __init__(self, name: str, *_: object) -> None:
        self.name = str(name)
        self.order = "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = str(state[1])


class _Array:
    """Stands where a pickle wants a NumPy array: shape, type and content."""

    shape: tuple[int, ...] = ()
    dtype = _Dtype("none")
    fortran = False
    data: bytes | list[Any] = b""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.dtype, self.fortran, self.data = state

    def numbers(self, kinds: tuple[str, ...] = ("f4", "f8")) -> "NDArray[np.float32]":
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
    """Knows four names, none of which gives it the object it asks for."""

    def find_class(self, module: str, name: str) -> Any:
        """Our stand-in for a global that object arrays need; anything else is refused."""
        stands_in = {
            "numpy.core.multiarray._reconstruct": lambda *_: _Array(),
            "numpy._core.multiarray._reconstruct": lambda *_: _Array(),
            "numpy.ndarray": _Array,
            "numpy.dtype": _Dtype,
            "_codecs.encode": _latin1,
        }
        if f"{module}.{name}" not in stands_in:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return stands_in[f"{module}.{name}"]


_INERT: list[Any] = [
    argparse.Namespace,  # HGD's checkpoints keep the command line beside the tensors
    (_Dtype, "numpy.dtype"),
    *((state_dict.Scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
"""What a torch file may hold beside tensors: bags of values, none of which is used."""
