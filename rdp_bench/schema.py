"""What grid files, model cards and run records may hold: dataclasses, checked by msgspec as they are read.

The annotations of a dataclass are its schema. A text in `Annotated` says in words what a field holds, for errors:

    eps: Annotated[tuple[float, ...], "a list of numbers, like [8, 16]"] = ()
"""

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any, TypeVar, get_args, get_origin

from rdp_bench.errors import UsageError, unknown_name

T = TypeVar("T")

_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]")
_WORDS = {
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "null": "nothing",
}
"""msgspec's names of types in words."""


def read(raw: Any, kind: type[T], what: str, names: Callable[[str], str] = "field of {}".format) -> T:
    """`raw`, as JSON or TOML gave it, as a `kind` (a dataclass).

    Args:
        raw: dicts, lists and scalars.
        kind: the dataclass.
        what: what `raw` is, for errors: "grid mine".
        names: what to call an unknown name, from `what`: "axis of grid mine".

    Raises:
        UsageError: a name that is not a field, a missing field, or a value of another type. The message names the
            field, what was expected and what was found.
    """
    import msgspec  # 30 ms, which a command that reads no such file need not spend

    _refuse_unknown_names(raw, kind, names(what))
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise _in_words(str(error), raw, kind, what) from error


def plain(value: Any) -> Any:
    """A dataclass as dicts, lists and scalars, for JSON.

    Raises:
        TypeError: it holds something that JSON has no form for.
    """
    import msgspec

    return msgspec.to_builtins(value, str_keys=True)


def _refuse_unknown_names(raw: Any, kind: Any, names: str) -> None:
    """Compare the names in `raw` with the fields of the dataclasses that `kind` is made of."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) in (typing.Union, types.UnionType):
        for option in get_args(kind):
            _refuse_unknown_names(raw, option, names)
    elif dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(raw, Mapping):
        known = _fields(kind)
        for name, value in raw.items():
            if name not in known:
                raise unknown_name(names, str(name), known)
            _refuse_unknown_names(value, known[name], names)
    elif isinstance(raw, Mapping):
        for inner in get_args(kind)[1:2]:
            for value in raw.values():
                _refuse_unknown_names(value, inner, names)
    elif isinstance(raw, list | tuple):
        for inner in get_args(kind)[:1]:
            if _holds_dataclass(inner):
                for value in raw:
                    _refuse_unknown_names(value, inner, names)


def _holds_dataclass(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind) or any(_holds_dataclass(part) for part in get_args(kind))


@cache
def _fields(kind: type) -> dict[str, Any]:
    """The annotation of each field by name."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _in_words(message: str, raw: Any, kind: type, what: str) -> UsageError:
    """The error for a message of msgspec: it names the place, what is expected there and what was found."""
    reason, _, path = message.partition(" - at `$")
    steps = [name or index for name, index in _STEP.findall(path.rstrip("`"))]
    if missing := re.fullmatch(r"Object missing required field `(.+)`", reason):
        place = "".join(f" of '{_place(steps)}'" if steps else "")
        return UsageError(f"{what}: the field '{missing[1]}'{place} is missing")
    wanted, found, annotation = "", raw, kind
    depth = 0  # steps up to the field that has a description
    for number, step in enumerate(steps):
        if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
            annotation = _fields(annotation).get(step, Any)
        else:
            annotation = (get_args(annotation) or (Any,))[-1 if step == "..." else 0]
        if get_origin(annotation) is Annotated:
            annotation, *notes = get_args(annotation)
            wanted, depth = next((note for note in notes if isinstance(note, str)), wanted), number + 1
        if not wanted:
            depth = number + 1
    try:
        for step in steps[:depth]:
            found = found[step] if isinstance(found, Mapping) else found[int(step)]
    except (KeyError, ValueError, IndexError, TypeError):  # an entry of a table: msgspec does not say which
        depth = 0
    if not wanted and (told := re.match(r"Expected `(.+?)`", reason)):
        wanted = " or ".join(_WORDS.get(each.strip(), each.strip()) for each in told[1].split("|"))
    if not depth:
        return UsageError(f"{what}: '{_place(steps)}' is {wanted}; {reason[:1].lower()}{reason[1:]}".replace("`", "'"))
    return UsageError(f"{what}: '{_place(steps[:depth])}' is {wanted or reason}, found {_shown(found)}")


def _place(steps: list[str]) -> str:
    """A path as a reader writes it.

    >>> _place(["axes", "eps", "0"])
    'axes.eps[0]'
    """
    return "".join(f"[{step}]" if step.isdecimal() or step == "..." else f".{step}" for step in steps).lstrip(".")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
