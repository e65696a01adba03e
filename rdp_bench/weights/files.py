"""Weight files: search, reading as plain tensors or arrays, writing. No function runs code from a file."""

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdp_bench.errors import BadModelError
from rdp_bench.keys import file_state, hash_file
from rdp_bench.specs import FileName, file_name
from rdp_bench.weights import state_dict

if TYPE_CHECKING:
    from torch import Tensor, nn

State = OrderedDict[str, "Tensor"]

OURS = "rdp-bench"
"""The key of the safetensors metadata in which our files describe their content as JSON."""

PHOTOGRAPHS = "photographs"
"""The key of the safetensors metadata for the hashes of the photographs (`data.photographs`)."""


def find(defense: str, file: str | None) -> Path:
    """The weight file of a learned defense.

    Args:
        defense: the name of the defense, for the shipped file and for errors.
        file: None for the file that ships. A name is looked for where its label says (`specs.FileSearch`: in
            `--models-dir`, then as a path); without an ending (`rdp-ablation-full`) also among the files that ship.

    Raises:
        BadModelError: the file does not exist.
    """
    shipped = files("rdp_bench.data").joinpath("weights")
    if file is None:
        usual = Path(str(shipped.joinpath(f"{defense}.safetensors")))
        if usual.is_file():
            return usual
        raise BadModelError(
            f"defense {defense}: no weights ship with it. Name a file, its authors' or one of yours (rdp-bench train "
            f"--help): {defense}(weights=FILE)"
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
        f"defense {defense}: weights {file} do not exist; looked for {looked}. Name a file in --models-dir or a path, "
        "or train the defense: rdp-bench train --help"
    )


CHANGED = "its weights changed since planning; run again"


@contextmanager
def unchanged(path: Path, expected: str) -> Iterator[None]:
    """Guard code that reads and copies weights: the content that was read has the sha256 `expected`.

    The hash is computed after reading. Size, times and inode of the file must be equal before reading and after
    hashing, so that the content that was read is the content that was hashed.

    Args:
        path: the weight file.
        expected: its sha256 when the run was planned.

    Raises:
        BadModelError: the content differs, or the file changed while it was read.
    """
    try:
        before = file_state(path)
        yield
        same = hash_file(path) == expected and file_state(path) == before
    except Exception as error:
        # A file that is being rewritten may be damaged, missing, or have other shapes.
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
    """Return the metadata of a file written by `save`; empty for other files. Does not import torch.

    Raises:
        BadModelError: the header of a safetensors file cannot be read.
    """
    if path.suffix != ".safetensors":
        return {}
    with _header(path) as said:
        found: dict[str, Any] = {**json.loads(said.get(OURS, "{}"))}
    return found


def read_photographs(path: Path) -> str:
    """Return what `save` wrote as `photographs`, or an empty text; see `data.photographs`. Does not import torch.

    Raises:
        BadModelError: the header of a safetensors file cannot be read.
    """
    if path.suffix != ".safetensors":
        return ""
    with _header(path) as said:
        return str(said.get(PHOTOGRAPHS, ""))


@contextmanager
def _header(path: Path) -> Iterator[dict[str, Any]]:
    """The metadata of a safetensors file; errors of reading it and of what is inside are one."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > path.stat().st_size:
                raise ValueError("the header is longer than the file")
            yield json.loads(file.read(size)).get("__metadata__", {})
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise BadModelError(f"{path}: refused (damaged, or not a weight file). Its header cannot be read") from error


def save(
    path: Path,
    state: "Mapping[str, Tensor]",
    metadata: Mapping[str, Any],
    half: bool = True,
    photographs: str = "",
) -> None:
    """Write tensors and metadata as a safetensors file.

    Args:
        path: the file to write.
        state: tensors by name.
        metadata: a description of the content, stored in the header as JSON.
        half: store floats in 16 bits if they fit.
        photographs: hashes of what the weights were trained on, as text.

    Raises:
        StorageError: the folder cannot be written, or the disk is full.
    """
    from safetensors.torch import save as to_bytes

    from rdp_bench.cache.files import write_atomic

    def small(tensor: "Tensor") -> "Tensor":
        tensor = tensor.detach().cpu().contiguous()
        if not (half and tensor.is_floating_point()):
            return tensor
        # Running variances may exceed the largest half, 65504.
        return tensor if (rounded := tensor.half()).isinf().any() else rounded

    tensors = {name: small(tensor) for name, tensor in state.items()}
    more = {PHOTOGRAPHS: photographs} if photographs else {}
    write_atomic(path, to_bytes(tensors, {OURS: json.dumps(metadata, sort_keys=True), **more}))


def require_safe_torch(path: Path) -> None:
    """Refuse to unpickle under a torch whose `weights_only` lets a file run code (CVE-2025-32434).

    Raises:
        BadModelError: torch is older than 2.6.
    """
    import torch

    if tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < (2, 6):
        raise BadModelError(
            f"{path.name}: refused, because torch {torch.__version__} may run code from such a file. Install torch 2.6 "
            "or newer, or convert the file to .safetensors"
        )


def is_torch(path: Path) -> bool:
    """Return whether a file starts like torch's files: a zip, or a pickle."""
    with path.open("rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02")


def read_tensors(path: Path) -> "State":
    """Return the tensors of a `.safetensors` file, or of a file that torch reads with `weights_only`.

    Containers of training scripts (`state_dict`, `model`, `ema`, ...) are opened, and numbers beside tensors are
    dropped.

    Raises:
        BadModelError: the file has another format, is damaged, or contains anything but tensors.
    """
    import warnings
    from pickle import UnpicklingError

    import torch
    from torch.serialization import safe_globals

    if path.suffix != ".safetensors":
        require_safe_torch(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            with warnings.catch_warnings(), safe_globals(_inert()):
                warnings.simplefilter("ignore")  # a refusal is reported below
                found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each reader has its own types of errors with one meaning
        why = "holds more than tensors" if isinstance(error, UnpicklingError) else "damaged, or not a weight file"
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
    """Load `state` into `net` after `state_dict.fit` (a common prefix, counters); every tensor must match.

    Args:
        net: the network; unchanged if the file is refused.
        state: the tensors of the file.
        what: the network's name, for the error.
        path: the file, for the error.

    Raises:
        BadModelError: names, shapes or dtypes differ, or values are not finite; the message has one example of each.
    """
    wanted = net.state_dict()
    state = state_dict.fit(state, wanted)
    problems = state_dict.problems(state, wanted)
    if problems:
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        raise BadModelError(f"{path} does not fit {what}: {shown}")
    if not all(tensor.isfinite().all() for tensor in state.values() if tensor.is_floating_point()):
        raise BadModelError(f"{path}: contains NaN or infinite weights")
    net.load_state_dict(state)


def channels_last(net: "nn.Module") -> "nn.Module":
    """Convert all 4-d weights of `net` to channels-last; `Module.to` refuses a network with a 5-d weight."""
    import torch

    form = torch.channels_last
    net._apply(lambda tensor: tensor.to(memory_format=form) if tensor.ndim == 4 else tensor)  # type: ignore[no-untyped-call]
    return net


def _inert() -> list[Any]:
    """Classes that a torch file may contain beside tensors; their values are not used."""
    from argparse import Namespace

    from rdp_bench.weights.object_arrays import Dtype

    return [
        Namespace,  # HGD's checkpoints contain the command line
        (Dtype, "numpy.dtype"),
        *((state_dict.Scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    ]
