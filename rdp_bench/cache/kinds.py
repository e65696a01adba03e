"""The kinds of artefacts, and the arrays that each may hold."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ArraySpec:
    """What a kind declares of one array.

    `axes` follow the first one, which is images: a number is a size, equal names are equal sizes, and an axis whose
    name ends in "?" may be absent.
    """

    dtypes: tuple[str, ...]
    axes: tuple[int | str, ...] = ()
    optional: bool = False


ANY = "*"
"""Declares arrays of any names, at least one."""

KINDS: dict[str, dict[str, ArraySpec]] = {
    "adv": {"delta": ArraySpec(("int8", "int16"), (3, "size", "size"))},
    "eval": {
        "predicted": ArraySpec(("int32",), ("draws?",)),
        "label": ArraySpec(("int32",)),
        "margin": ArraySpec(("float32",), ("draws?",)),
        "seconds": ArraySpec(("float32",)),
    },
    # One array per measurement, which the record names; see `metrics.measurements`.
    "image_quality": {ANY: ArraySpec(("float32",))},
    "sample": {"purified": ArraySpec(("uint8",), (3, "size", "size"))},
    # What a probe of an audit found, as JSON: one row.
    "probe": {"json": ArraySpec(("uint8",), ("bytes",))},
    # One photograph per shard, of a training: its pixels, or why it could not be read.
    "photos": {
        "pixels": ArraySpec(("uint8",), (3, "height", "width"), optional=True),
        "refused": ArraySpec(("uint8",), ("bytes",), optional=True),
    },
}
"""Every kind of artefact and its arrays; a shard that holds anything else is damaged."""

UNLIKE = frozenset({"photos"})
"""Kinds whose shards may differ from each other in their arrays and in the sizes of their axes."""


def misshapen(kind: str, arrays: Any, rows: int, facts: frozenset[str] = frozenset()) -> str:
    """Why `arrays` (name -> dtype, shape) are not those that `kind` declares for `rows` images; empty if they are.

    Args:
        kind: a key of `KINDS`.
        arrays: what a header says of its arrays.
        rows: the number of images.
        facts: what the header must say of each array besides dtype, shape and sha256.
    """
    specs = KINDS.get(kind)
    if specs is None:
        return f"there is no kind '{kind}'"
    if ANY in specs and isinstance(arrays, dict):
        specs = dict.fromkeys(arrays, specs[ANY])
    required = {name for name, spec in specs.items() if not spec.optional}
    if not isinstance(arrays, dict) or not arrays or not required <= {*arrays} <= {*specs}:
        return f"its arrays are {', '.join(map(str, arrays or ())) or 'none'}, not {', '.join(specs)}"
    wanted = {"dtype", "shape", "sha256"} | facts
    sizes: dict[str, int] = {}
    for name, about in arrays.items():
        if not isinstance(about, dict) or {*about} != wanted:
            return f"'{name}' is not described by {', '.join(sorted(wanted))}"
        spec, dtype, shape = specs[name], about["dtype"], about["shape"]
        if dtype not in spec.dtypes:
            return f"'{name}' is {str(dtype)[:20]}, not {' or '.join(spec.dtypes)}"
        if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
            return f"'{name}' has no shape"
        axes = [axis for axis in spec.axes if len(shape) == 1 + len(spec.axes) or not str(axis).endswith("?")]
        absent = [axis for axis in spec.axes if axis not in axes]
        if len(shape) != 1 + len(axes) or shape[0] != rows:
            return f"'{name}' has shape {shape} for {rows} images"
        found = [*zip(axes, shape[1:], strict=True), *((axis, 0) for axis in absent)]
        for axis, size in found:
            if size != (axis if isinstance(axis, int) else sizes.setdefault(axis, size)):
                return f"'{name}' has shape {shape}, expected {list(spec.axes)} after the images"
    return ""
