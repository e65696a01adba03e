"""What a user writes, parsed: `name(key=value, ...)`, and the cell a grid is made of."""

import dataclasses
import re
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from rdp_bench.errors import UsageError, unknown

Param = bool | int | float | str | None
T = TypeVar("T")

_CALL = re.compile(r"(?P<name>[^()|=,]+?)\s*(?:\((?P<args>[^()]*)\))?", re.DOTALL)


@dataclass(frozen=True)
class Spec:
    """A name with the parameters that differ from its defaults.

    `positional` values are only for the parts of a composed attack (`TI(15)`).
    """

    name: str
    params: tuple[tuple[str, Param], ...] = ()
    positional: tuple[Param, ...] = ()

    def __str__(self) -> str:
        args = [show(value) for value in self.positional]
        args += [f"{key}={show(value)}" for key, value in self.params]
        return f"{self.name}({', '.join(args)})" if args else self.name


@dataclass(frozen=True)
class Cell:
    """One number of a table: who attacks what, and who defends it. All fields are labels.

    `attack` is "clean" (with `source` "-" and `eps` 0) where nobody attacks. `eps` is in /255.
    """

    dataset: str
    source: str
    attack: str
    eps: float
    target: str
    defense: str

    def __str__(self) -> str:
        crafted = "clean" if self.attack == "clean" else f"{self.source} {self.attack} eps {show(self.eps)}"
        return f"{crafted} -> {self.defense} -> {self.target}"


def show(value: Param) -> str:
    """A value as a user would write it.

    >>> show(True), show(16.0), show(0.7)
    ('true', '16', '0.7')
    """
    if value is None:
        return "auto"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def parse_value(text: str) -> Param:
    """A literal: true/false, auto (None), an integer, a decimal, else the text itself.

    >>> parse_value(".7"), parse_value("15"), parse_value("true"), parse_value("own")
    (0.7, 15, True, 'own')
    """
    text = text.strip().strip("\"'")
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text.lower() == "auto":
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def parse_spec(text: str) -> Spec:
    """Read `name`, `name(key=value)` or `NAME(value)`.

    >>> parse_spec("jpeg(quality=95)")
    Spec(name='jpeg', params=(('quality', 95),), positional=())

    Raises:
        UsageError: the text is not of that form.
    """
    match = _CALL.fullmatch(text.strip())
    if not match:
        raise UsageError(f"cannot read '{text}': expected a name or name(key=value, ...)")
    params: dict[str, Param] = {}
    positional: list[Param] = []
    for piece in filter(str.strip, (match["args"] or "").split(",")):
        key, equals, value = piece.partition("=")
        key = key.strip()
        if not equals:
            positional.append(parse_value(piece))
        elif not key.isidentifier() or key in params:
            raise UsageError(f"cannot read '{text}': '{key}' is not a parameter name, or stands there twice")
        else:
            params[key] = parse_value(value)
    return Spec(match["name"].strip(), tuple(sorted(params.items())), tuple(positional))


def with_params(default: T, spec: Spec, kind: str) -> T:
    """`default` (a frozen dataclass) with the fields that `spec` names replaced.

    Raises:
        UsageError: an unknown field, or a value of another type than the default's.
    """
    if spec.positional:
        raise UsageError(f"{kind} '{spec}': parameters are written name=value")
    known = dataclasses.fields(default) if dataclasses.is_dataclass(default) else ()
    fields: dict[str, Any] = {f.name: getattr(default, f.name) for f in known if f.init}
    changes: dict[str, Param] = {}
    for key, value in spec.params:
        if key not in fields:
            raise unknown(f"parameter of {kind} '{spec.name}'", key, fields)
        changes[key] = _coerce(value, fields[key], f"{kind} '{spec.name}', parameter '{key}'")
    try:
        return replace(default, **changes) if changes else default  # type: ignore[type-var]
    except (ValueError, TypeError) as error:
        raise UsageError(f"{kind} '{spec}': {error}") from error


def _coerce(value: Param, default: object, where: str) -> Param:
    if isinstance(default, bool) or isinstance(value, bool):
        fits = isinstance(default, bool) and isinstance(value, bool)
    elif isinstance(default, float) and isinstance(value, int):
        return float(value)
    else:
        # None stands for "derived from the others"; a number may replace it, and it a number.
        fits = default is None or value is None or type(value) is type(default)
    if not fits:
        raise UsageError(f"{where}: expected a value like {default!r}, found {value!r}")
    return value
