"""Conversion of a plugin's data set to the types of `Dataset`: labels as int, images as uint8 arrays `[3, s, s]`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rdp_bench.data._labelled import Images
from rdp_bench.errors import BadImageError, wrap_errors
from rdp_bench.protocols import Dataset, classes_of, note_of, targets_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass
class Converted:
    """A data set with converted ids, labels and targets, whose images are converted when they are read."""

    name: str
    size: int
    ids: Sequence[str]
    labels: Sequence[int]
    targets: Sequence[int]
    classes: int | None
    note: str
    whole: Dataset

    def image(self, index: int) -> NDArray[np.uint8]:
        """Return image `index`, converted. The caller checks its shape and type."""
        with wrap_errors(f"dataset '{self.name}', image '{self.ids[index]}'"):
            return _array(self.whole.image(index))

    def first(self, limit: int) -> Converted:
        """Return the first `limit` images."""
        return replace(self, ids=self.ids[:limit], labels=self.labels[:limit], targets=self.targets[:limit])


def convert(found: Dataset, spec: str) -> Images | Converted:
    """Convert labels and targets to int, ids to text, and images to arrays.

    Integers of numpy and torch and floats without a fraction are accepted as int. Images may be PIL images, torch
    tensors, or arrays with the channels last.

    Args:
        found: the data set of a plugin.
        spec: its label, for errors.

    Raises:
        UsageError: an attribute is missing or cannot be converted.
        BadImageError: the number of targets differs from the number of ids.
    """
    if isinstance(found, Images):
        return found
    with wrap_errors(f"dataset '{spec}'"):
        name, size, ids = str(found.name), _whole(found.size), [str(id_) for id_ in found.ids]
        labels = [_whole(label) for label in found.labels]
        targets = targets_of(found)
        classes = classes_of(found)
        note = note_of(found)
        aims = [_whole(target) for target in targets]
        count = None if classes is None else _whole(classes)
    if aims and len(aims) != len(ids):
        raise BadImageError(f"dataset '{spec}': {len(ids)} ids but {len(aims)} targets")
    return Converted(name, size, ids, labels, aims, count, note, found)


def _whole(value: Any) -> int:
    plain = value.item() if hasattr(value, "item") else value
    if not isinstance(plain, int | float) or not float(plain).is_integer():
        raise TypeError(f"expected a whole number, found {value!r}")
    return int(plain)


def _array(image: Any) -> NDArray[np.uint8]:
    import numpy as np

    if hasattr(image, "convert"):  # PIL
        image = image.convert("RGB")
    elif hasattr(image, "detach"):  # torch
        image = image.detach().cpu().numpy()
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[-1] == 3 and array.shape[0] != 3:
        array = np.ascontiguousarray(array.transpose(2, 0, 1))
    if np.issubdtype(array.dtype, np.integer) and array.size and array.min() >= 0 and array.max() <= 255:
        array = array.astype(np.uint8)
    return array
