"""Record -> canonical JSON -> sha256. Two things share a key only if every fact about them is equal."""

import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KEY_VERSION = 1
"""Bump when the meaning of a record changes; every cached artefact is then recomputed."""

Record = dict[str, Any]


def canonical(record: Record) -> str:
    """The one spelling of a record: sorted keys, no spaces, integral floats as integers.

    >>> canonical({"eps": 16.0, "attack": "fgsm"})
    '{"attack":"fgsm","eps":16}'

    Raises:
        TypeError, ValueError: a value that JSON has no exact form for (NaN, a set, an object).
    """
    return json.dumps(plain(record), sort_keys=True, separators=(",", ":"), allow_nan=False)


def key_of(record: Record) -> str:
    """64 hex digits that name this record under this `KEY_VERSION`."""
    return hashlib.sha256(f"rdp-bench {KEY_VERSION}\n{canonical(record)}".encode()).hexdigest()


def hash_pixels(image: "NDArray[np.uint8]") -> str:
    """sha256 of one uint8 image, `[3, h, w]`: its shape and its bytes, nothing of its file."""
    digest = hashlib.sha256(str(image.shape).encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def hash_many(parts: Iterable[str]) -> str:
    """One sha256 for an ordered list of short strings (hashes, labels)."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def explain(wanted: Record, found: Record, path: str = "") -> list[str]:
    """Where two records differ, one line a difference: why a cached set did not fit.

    >>> explain({"attack": {"steps": 20}}, {"attack": {"steps": 10}})
    ['attack.steps: 10 -> 20']
    """
    lines: list[str] = []
    for name in sorted({*wanted, *found}):
        new, old = wanted.get(name), found.get(name)
        if isinstance(new, dict) and isinstance(old, dict):
            lines += explain(new, old, f"{path}{name}.")
        elif new != old:
            lines.append(f"{path}{name}: {old} -> {new}")
    return lines


def plain(value: Any) -> Any:
    """`value` in the types that JSON has: scalars and arrays of numpy and torch converted, integral floats as int.

    Raises:
        TypeError, ValueError: JSON has no exact form for it.
    """
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} has no form in JSON")
        return int(value) if value.is_integer() else value
    if value is None or isinstance(value, bool | int | str):
        return value
    raise TypeError(f"{type(value).__name__} has no form in JSON; use numbers, text, lists and dicts")
