"""Weight files of older formats, as float arrays by name. `rdp-bench weights convert` is their only reader.

No reader runs what a file contains. Each raises `BadModelError` for a file of another format, a damaged file, and a
file that unpacks to more than `object_arrays.LARGEST` bytes.
"""

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from rdp_bench.weights import files, object_arrays, tf_checkpoint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def read_mmdnn(path: Path) -> "dict[str, NDArray[np.float32]]":
    """The arrays of a pickled `.npy` file that holds a dictionary of dictionaries of arrays, as MMdnn writes them.

    Args:
        path: the file; the outer dictionary has one entry per node of the graph, the inner one `weights`, `bias`, ....

    Returns:
        `outer/inner` -> array.

    Raises:
        BadModelError: the file is refused.
    """
    with object_arrays.refused(path, ".npy with one dictionary of dictionaries of float arrays, as MMdnn's files are"):
        kinds = ("f4", "f8", "i4", "i8")  # the graph's constants may be stored beside the weights
        (table,) = object_arrays.object_array(path)
        return {
            f"{outer}/{inner}": array.numbers(kinds) for outer, part in table.items() for inner, array in part.items()
        }


def read_tf_checkpoint(path: Path) -> "dict[str, NDArray[np.float32]]":
    """The float variables by name of a TensorFlow checkpoint in one file (TF-slim's `.ckpt`).

    Raises:
        BadModelError: the file is refused.
    """
    with object_arrays.refused(path, "a TensorFlow checkpoint in one file, as TF-slim's are"), path.open("rb") as file:
        return tf_checkpoint.variables(object_arrays.limited(file))


def read_npz(path: Path) -> "dict[str, NDArray[np.float32]]":
    """The arrays by name of a `.npz` file of numbers (tensorpack's format).

    Raises:
        BadModelError: the file is refused.
    """
    import numpy as np

    with object_arrays.refused(path, ".npz of arrays of numbers"):
        with zipfile.ZipFile(path) as archive:
            if sum(part.file_size for part in archive.infolist()) > object_arrays.LARGEST:
                raise ValueError(f"larger than {object_arrays.LARGEST >> 20} MiB")
        with np.load(path, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
        if odd := [name for name, array in arrays.items() if array.dtype.kind not in "fiu"]:
            raise ValueError(f"{odd[0]} is an array of {arrays[odd[0]].dtype}")
        return {name: array.astype(np.float32) for name, array in arrays.items()}


def legacy_format(path: Path) -> str | None:
    """The name of the older format that a file is in; None for a file that models load.

    Decided by the ending and, for `.ckpt`, by the first bytes: PyTorch Lightning's checkpoints have that ending, too.
    """
    if path.suffix == ".npy":
        return "pickled NumPy arrays"
    if path.suffix == ".npz":
        return "NumPy arrays"
    if path.suffix == ".ckpt" and not files.is_torch(path):
        return "a TensorFlow checkpoint"
    return None
