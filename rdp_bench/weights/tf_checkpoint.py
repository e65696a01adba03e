"""Reader of TensorFlow checkpoints of version 1 (one file, as TF-slim's `.ckpt`), without TensorFlow.

The file is a LevelDB table (google/leveldb, doc/table_format.md), which TensorFlow writes without compression. Each
value is a protocol buffer, SavedTensorSlices: the list of all variables with their shapes, or the numbers of one
variable. Checksums are not compared, because Python's standard library has no CRC-32C.
"""

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48
_FLOAT = 1  # of DataType

Field = tuple[int, int | memoryview]


def variables(content: bytes) -> "dict[str, NDArray[np.float32]]":
    """Return the float variables in the bytes of a checkpoint by name, without others (global_step).

    Raises:
        Exception: of any type, if `content` is damaged or not such a checkpoint.
    """
    import numpy as np

    shapes: dict[str, list[int]] = {}
    numbers: dict[str, NDArray[np.float32]] = {}
    for value in _values(memoryview(content)):
        for number, part in _fields(value):
            if number == 1:
                shapes.update(_shapes(_bytes(part)))
            elif number == 2:
                name, floats = _slice(_bytes(part))
                numbers[name] = np.frombuffer(floats, "<f4")
    if not shapes:
        raise ValueError("it contains no variables")
    return {name: numbers[name].reshape(shape) for name, shape in shapes.items()}


# --- the table -------------------------------------------------------------------------------------------


def _values(table: memoryview) -> Iterator[memoryview]:
    """Yield the values of a table in order; the footer locates the index, and the index locates the blocks."""
    if len(table) < _FOOTER or struct.unpack("<Q", table[-8:])[0] != _MAGIC:
        raise ValueError("not a TensorFlow checkpoint of version 1, or truncated")
    at = len(table) - _FOOTER
    _, _, offset, size = _numbers(table[at:], 4)
    for handle in _entries(table, offset, size):
        yield from _entries(table, *_numbers(handle, 2))


def _entries(table: memoryview, offset: int, size: int) -> Iterator[memoryview]:
    """Yield the values of one block. Its keys, stored as differences, add no information to the values."""
    if table[offset + size] != 0:
        raise ValueError("it is compressed; TensorFlow writes no compressed checkpoints")
    block = table[offset : offset + size]
    end = size - 4 - 4 * struct.unpack("<I", block[-4:])[0]
    at = 0
    while at < end:
        _, at = _varint(block, at)
        key, at = _varint(block, at)
        length, at = _varint(block, at)
        yield _cut(block, at + key, length)
        at += key + length


# --- protocol buffers ------------------------------------------------------------------------------------


def _shapes(meta: memoryview) -> Iterator[tuple[str, list[int]]]:
    """Yield name and shape of every float variable in a SavedTensorSliceMeta."""
    for number, tensor in _fields(meta):
        if number == 1:  # SavedSliceMeta: name 1, shape 2, type 3
            fields = dict(_fields(_bytes(tensor)))
            if fields.get(3) == _FLOAT:
                sides = [_bytes(dim) for inside, dim in _fields(_bytes(fields.get(2, b""))) if inside == 2]
                yield _text(fields[1]), [int(dict(_fields(side)).get(1, 0)) for side in sides]


def _slice(saved: memoryview) -> tuple[str, bytes]:
    """Return the name and the packed float_val (5) of a SavedSlice (name 1, TensorProto 3)."""
    fields = dict(_fields(saved))
    floats = [bytes(_bytes(part)) for number, part in _fields(_bytes(fields.get(3, b""))) if number == 5]
    return _text(fields[1]), b"".join(floats)


def _fields(message: memoryview) -> Iterator[Field]:
    """Yield the field numbers and values of a message; a value is an integer or bytes."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == 2:
            size, at = _varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"damaged (a field of kind {kind})")
        yield number, _cut(message, at, size)
        at += size


def _numbers(data: memoryview, count: int) -> list[int]:
    at, found = 0, []
    for _ in range(count):
        value, at = _varint(data, at)
        found.append(value)
    return found


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return the varint at `at` (seven bits per byte) and the position after it."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("damaged (a number without end)")


def _cut(data: memoryview, at: int, size: int) -> memoryview:
    if at + size > len(data):
        raise ValueError("damaged (a part exceeds its container)")
    return data[at : at + size]


def _bytes(value: int | bytes | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("damaged (a number instead of a message)")
    return memoryview(value)


def _text(value: int | memoryview) -> str:
    return str(bytes(_bytes(value)), "utf-8")
