"""Cache keys: the SHA-256 of a record in canonical JSON. Two things share a key only if all their facts are equal.

Rules of key format 2:

* The record of an entry is `{"id", "version", "params"}` (`registry.identity`). Parameters are nested, so no parameter
  name can overwrite another fact. Module paths and class names are in no record.
* `id` is permanent. A renamed entry states its old name as `id`.
* `version` belongs to the code that computes: the entry, or, where an entry is only a setting of an engine (the presets
  of `attacks/presets.py`), the engine and its parts. Bump it when the output changes.
* A field that is added to an existing dataclass must not change the keys of what does not use it. Declare it with
  `neutral(VALUE)`, where VALUE makes the output what it was without the field. A record leaves the field out where it
  holds VALUE. The rule compares with VALUE and not with the default, so a default that is changed later
  (`neutral(VALUE, default=OTHER)`) changes the keys, as it must. VALUE itself is never edited.
"""

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KEY_VERSION = 2
"""Bump it when the meaning of records changes; all cached artefacts are then recomputed."""

_NEUTRAL = "neutral"

Record = dict[str, Any]


def canonical_json(record: Record) -> str:
    """A record in canonical form: sorted keys, no spaces, integral floats as integers.

    >>> canonical_json({"eps": 16.0, "attack": "fgsm"})
    '{"attack":"fgsm","eps":16}'

    Raises:
        TypeError, ValueError: a value that JSON has no exact form for (NaN, a set, an object).
    """
    return json.dumps(plain(record), sort_keys=True, separators=(",", ":"), allow_nan=False)


def key_of(record: Record) -> str:
    """The key of a record under this `KEY_VERSION`, 64 hex digits."""
    return hashlib.sha256(f"rdp-bench {KEY_VERSION}\n{canonical_json(record)}".encode()).hexdigest()


def hash_pixels(image: "NDArray[np.uint8]") -> str:
    """SHA-256 of one uint8 image `[3, h, w]`: of its shape and pixels, not of its file."""
    digest = hashlib.sha256(str(image.shape).encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def hash_many(parts: Iterable[str]) -> str:
    """SHA-256 of an ordered list of short strings (hashes, labels)."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, read now."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_state(path: Path) -> tuple[int, ...]:
    """Size, times and inode of a file, which change when it is written or replaced."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def known_hash(path: Path) -> str:
    """`hash_file`, cached while `file_state` of the file stays the same."""
    place, state = str(path.absolute()), file_state(path)
    if place in _hashes and _hashes[place][0] == state:
        return _hashes[place][1]
    found = hash_file(path)
    if time.time_ns() - max(path.stat().st_mtime_ns, path.stat().st_ctime_ns) > _SETTLED:
        _hashes[place] = state, found
    return found


_hashes: dict[str, tuple[tuple[int, ...], str]] = {}
_SETTLED = 2 * 10**9
"""Nanoseconds since the last write before a hash is remembered: times of files are coarse, and a second write within
the same tick would change no time."""


def neutral(value: Any, **options: Any) -> Any:
    """A dataclass field, added to a class that has keys already, that records leave out where it holds `value`.

    Args:
        value: the value with which the output is the same as before the field existed; also the default.
        options: as for `dataclasses.field`; `default` where the default is to be another value.
    """
    return dataclasses.field(**{"default": value, **options}, metadata={_NEUTRAL: value})


def without_neutral(kind: type, params: Record) -> Record:
    """`params` without the fields of dataclass `kind` that hold their `neutral` value."""
    known = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
    idle = {f.name: f.metadata[_NEUTRAL] for f in known if _NEUTRAL in f.metadata}
    return {
        name: value
        for name, value in params.items()
        if name not in idle
        or canonical_json({name: value}) != canonical_json({name: idle[name]})  # in Python, 0 == False
    }


def diff_records(wanted: Record, found: Record, path: str = "") -> list[str]:
    """The differences between two records, one line each; explains why a cached set was not used.

    >>> diff_records({"attack": {"steps": 20}}, {"attack": {"steps": 10}})
    ['attack.steps: 10 -> 20']
    """
    lines: list[str] = []
    for name in sorted({*wanted, *found}):
        new, old = wanted.get(name), found.get(name)
        if isinstance(new, dict) and isinstance(old, dict):
            lines += diff_records(new, old, f"{path}{name}.")
        elif new != old:
            lines.append(f"{path}{name}: {old} -> {new}")
    return lines


def plain(value: Any) -> Any:
    """`value` in JSON's types: scalars and arrays of numpy and torch are converted, integral floats become int.

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
