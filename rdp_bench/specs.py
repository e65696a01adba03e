"""Labels, parsed: `name(key=value, ...)`, what nests in them, and `CellKey`, the labels that name one number.

Every label is read by `split` and `cut`, which know parentheses and quotes; no other code takes labels apart.

    jpeg(quality=95)                      a name and its parameters
    purifier:"my file (1).pth"            a scheme and a file; quotes are needed where the name holds ()=,
    MI|DI(p=.7)|TI(15)     a+b     jpeg >> rdp     bpda(tvm, a+b, 20)

A value that holds a comma or an unbalanced parenthesis, or begins or ends with a space, is written in '...' or "...",
with that quote doubled inside. A backslash has no special meaning.
"""

import dataclasses
import math
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar, get_args, get_origin, runtime_checkable

from rdp_bench.errors import UsageError, unknown_name

Param = bool | int | float | str | None
T = TypeVar("T")

_QUOTES = "'\""
_MARKS = "()|=,>" + _QUOTES
_BEFORE_QUOTE = "(,=:|+>"  # a quote opens at the start of a word, not inside one: it's.pth


class Quoted(str):
    """A word that was written in quotes: `"auto"` is a text, while `auto` means None."""

    __slots__ = ()


@dataclass(frozen=True)
class FileSearch:
    """Where the files that labels name are looked for.

    Attributes:
        folder: where relative names start: the folder of the grid file that the label is from, or the current folder.
        models_dir: searched first for weight files (`--models-dir`); None: no such folder.
    """

    folder: Path = Path()
    models_dir: Path | None = None

    def __post_init__(self) -> None:
        if self.models_dir is not None and not self.models_dir.is_dir():
            raise UsageError(f"--models-dir {self.models_dir}: no such folder")

    def places(self, name: str) -> list[Path]:
        """The paths that a weight file called `name` may have, in the order in which they are tried."""
        return [start / name for start in (self.models_dir, self.folder) if start is not None]


class FileName(str):
    """A file that a label names, and where it is looked for."""

    search: FileSearch

    def __new__(cls, text: str, search: FileSearch = FileSearch()) -> typing.Self:
        made = super().__new__(cls, text)
        made.search = search
        return made


WeightFile = Annotated[str, FileName]
"""The annotation of a field that names a file."""


@dataclass(frozen=True)
class Spec:
    """A name and its given parameters as unparsed words; `with_params` converts them.

    `positional` words are for the parts of a composed attack (`TI(15)`) and for sources (`bpda(jpeg, a+b)`).
    """

    name: str
    params: tuple[tuple[str, str], ...] = ()
    positional: tuple[str, ...] = ()

    def __str__(self) -> str:
        args = [_written(word, positional=True) for word in self.positional]
        args += [f"{key}={_written(word)}" for key, word in self.params]
        scheme, colon, rest = self.name.partition(":")
        hard = not rest or rest != rest.strip() or any(letter in _MARKS + "+" for letter in rest)
        name = f"{scheme}:{_quoted(rest)}" if colon and hard else self.name
        return f"{name}({', '.join(args)})" if args else name


CLEAN = "clean"
"""The attack of cells that nobody attacks."""

UNDEFENDED = "none"
"""The defense that changes nothing."""

WHITE_BOX = "white-box"
"""The source, also `white-box(N)`, that is the target of each cell behind the defense of that cell."""

MODES = ("exact", "bpda", "adaptive", "smooth")
"""Gradients through a defense in front of a source, as in `bpda(DEFENSE, SOURCE)`; see `models/defended.py`."""


@dataclass(frozen=True, order=True)
class CellKey:
    """One number of a run: who attacks what, and who defends it. All fields except `eps` are labels.

    `attack` is `CLEAN` (with `source` "-" and `eps` 0) where nobody attacks. `eps` is in /255, or in the norm of the
    run. The target "-" stands for a number that needs no target, such as image quality.
    """

    source: str
    attack: str
    eps: float
    target: str
    defense: str

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> "CellKey":
        """The key of a line of results.csv, or of any other mapping that has these names."""
        return cls(line["source"], line["attack"], float(line["eps"]), line["target"], line["defense"])

    @classmethod
    def clean(cls, target: str, defense: str) -> "CellKey":
        """The key of a cell without an attack."""
        return cls("-", CLEAN, 0.0, target, defense)

    def __str__(self) -> str:
        crafted = CLEAN if self.attack == CLEAN else f"{self.source} {self.attack} eps {show_level(self.eps)}"
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


def show_level(eps: float) -> str:
    """A budget for readers, to six digits: those beyond are left by arithmetic.

    >>> show_level(0.1 + 0.2), show_level(16.0), show_level(128 / 255)
    ('0.3', '16', '0.501961')
    """
    return f"{eps:.6g}"


# --- the tokenizer ---------------------------------------------------------------------------------------


def _scan(text: str) -> Iterator[tuple[int, str, int]]:
    """Index, character and nesting depth of every character outside of quotes; a parenthesis has the outer depth.

    Raises:
        UsageError: a quote is not closed.
    """
    depth, quote, i, before = 0, "", 0, ""
    while i < len(text):
        letter = text[i]
        if quote:
            if letter == quote and text[i + 1 : i + 2] == quote:
                i += 1
            elif letter == quote:
                quote = ""
        elif letter in _QUOTES and (not before or before in _BEFORE_QUOTE):
            quote = before = letter
        else:
            depth -= letter == ")"
            yield i, letter, depth
            depth += letter == "("
            before = letter if not letter.isspace() else before
        i += 1
    if quote:
        raise UsageError(f"cannot read '{text}': the quote {quote} is not closed")


def split(text: str, mark: str) -> list[str]:
    """`text` split at every `mark` outside of parentheses and quotes, each part stripped.

    >>> split("rdp(dynamic=true, sigma=.1), a+b, 20", ",")
    ['rdp(dynamic=true, sigma=.1)', 'a+b', '20']
    >>> split('jpeg >> purifier:"a >> b.pth"', ">>")
    ['jpeg', 'purifier:"a >> b.pth"']
    """
    parts, start = [], 0
    for i, _, depth in _scan(text):
        if depth == 0 and i >= start and text.startswith(mark, i):
            parts.append(text[start:i].strip())
            start = i + len(mark)
    return [*parts, text[start:].strip()]


def cut(text: str) -> tuple[str, str | None]:
    """The name, and what the parentheses at the end of `text` hold; None without such parentheses.

    >>> cut("bpda(jpeg, a)"), cut("a+b"), cut("files:my(1).pth")
    (('bpda', 'jpeg, a'), ('a+b', None), ('files:my(1).pth', None))
    """
    text = text.strip()
    letters = list(_scan(text))
    if not letters or letters[-1][:2] != (len(text) - 1, ")"):
        return text, None
    level = letters[-1][2]
    opening = [i for i, letter, depth in letters if letter == "(" and depth == level]
    if level < 0 or not opening:
        raise UsageError(f"cannot read '{text}': a closing parenthesis has no opening one; {_HINT}")
    return text[: opening[-1]].strip(), text[opening[-1] + 1 : -1]


def outline(text: str) -> str:
    """`text` with quoted parts emptied; label schemes match their patterns against it."""
    kept, last = [], -1
    for i, letter, _ in _scan(text):
        kept += ['""'] * (i > last + 1) + [letter]
        last = i
    return "".join([*kept, '""'] if last + 1 < len(text) else kept)


_HINT = "write a file name with such characters in quotes"


def parse_spec(text: str) -> Spec:
    """Read `name`, `name(key=value)`, `NAME(value)` or `scheme:FILE(key=value)`.

    >>> parse_spec("jpeg(quality=95)")
    Spec(name='jpeg', params=(('quality', '95'),), positional=())
    >>> parse_spec("nrp(weights=a,b(1).pth)").params
    (('weights', 'a,b(1).pth'),)

    Raises:
        UsageError: the text is not of that form.
    """
    name, inside = cut(text)
    scheme, colon, rest = name.partition(":")
    if colon:
        name = f"{scheme}:{unquoted(rest.strip())}"
    if not scheme or any(letter in _MARKS for letter in scheme):
        raise UsageError(
            f"cannot read '{text}': expected a name or name(key=value, ...), with closed parentheses; {_HINT}"
        )
    params: dict[str, str] = {}
    positional: list[str] = []
    last = ""
    for piece in split(inside, ",") if inside and inside.strip() else []:
        at = next((i for i, letter, depth in _scan(piece) if letter == "=" and depth == 0), -1)
        key = piece[: max(at, 0)].strip()
        if key.isidentifier():
            if key in params:
                raise UsageError(f"cannot read '{text}': the parameter '{key}' is given twice")
            params[key] = piece[at + 1 :].strip()
            last = key
        elif last:
            params[last] += f",{piece}"  # weights=a,b.pth: no parameter begins here
        elif not piece:
            raise UsageError(f"cannot read '{text}': there is nothing between two commas")
        else:
            positional.append(unquoted(piece))
    found = {key: unquoted(word) for key, word in params.items()}
    return Spec(name, tuple(sorted(found.items())), tuple(positional))


def unquoted(word: str) -> str:
    """The text inside the quotes of a quoted word, else the word itself (`"a"b` is not a quoted word)."""
    if len(word) > 1 and word[0] in _QUOTES and word[-1] == word[0]:
        inside = word[1:-1].replace(word[0] * 2, "")
        if word[0] not in inside:
            return Quoted(word[1:-1].replace(word[0] * 2, word[0]))
    return word


def _quoted(word: str) -> str:
    quote = '"' if '"' not in word else "'"
    return quote + word.replace(quote, quote * 2) + quote


def _written(word: str, *, positional: bool = False) -> str:
    """The word as `parse_spec` reads it back, quoted where needed."""
    if isinstance(word, Quoted) or not word or word != word.strip() or word[0] in _QUOTES:
        return _quoted(word)
    try:
        letters = list(_scan(word))
    except UsageError:
        return _quoted(word)
    top = {letter for _, letter, depth in letters if depth == 0}
    steps = [(letter == "(") - (letter == ")") for _, letter, _ in letters]
    whole = sum(steps) == 0 and min((depth for _, _, depth in letters), default=0) == 0
    return word if whole and "," not in top and not (positional and "=" in top) else _quoted(word)


def plain(label: Param) -> str:
    """A label without insignificant spaces, to compare labels by.

    >>> plain("fd(low=25, high=30)") == plain("fd(low=25,high=30)"), plain(16.0)
    (True, '16')
    """
    text = show(label)
    try:
        spaces = {i for i, letter, _ in _scan(text) if letter.isspace()}
    except UsageError:  # no label of ours; equal to itself alone
        return text
    return "".join(letter for i, letter in enumerate(text) if i not in spaces)


# --- words to values -------------------------------------------------------------------------------------

_search: ContextVar[FileSearch] = ContextVar("search", default=FileSearch())  # noqa: B039 - it is frozen


@contextmanager
def files_from(search: FileSearch) -> Iterator[None]:
    """Labels that are resolved inside this block look for the files they name with `search`.

    `Registry.resolve` and `find_source` enter it: a label may hold other labels, whose schemes resolve them in turn.
    """
    token = _search.set(search)
    try:
        yield
    finally:
        _search.reset(token)


def file_name(text: str) -> FileName:
    """A file that the label being resolved names."""
    return FileName(text, _search.get())


@runtime_checkable
class ReadsParams(Protocol):
    """An object whose parameters are not its own fields: it reads them itself."""

    def with_params(self, spec: Spec, kind: str) -> typing.Self:
        """A copy with the parameters that `spec` names set.

        Raises:
            UsageError: an unknown parameter, or a word that is no value of its type.
            ValueError: a value that is refused.
        """
        ...


def refuse_weights(text: str, spec: Spec) -> None:
    """Refuse a parameter `weights` of a label that names its file itself.

    Raises:
        UsageError: it has one.
    """
    if any(key == "weights" for key, _ in spec.params):
        raise UsageError(f"'{text}' names its weights twice; leave out weights=")


def with_params(default: T, spec: Spec, kind: str) -> T:
    """`default` (a frozen dataclass, or one that reads its parameters itself) with what `spec` names replaced.

    Raises:
        UsageError: an unknown field, or a word that is no value of the annotated type.
    """
    if spec.positional:
        raise UsageError(f"{kind} '{spec}': parameters are written name=value; {_HINT}")
    try:
        if isinstance(default, ReadsParams):
            return default.with_params(spec, kind)
        changes = values(default, spec, kind)
        return replace(default, **changes) if changes else default  # type: ignore[type-var]
    except (ValueError, TypeError) as error:
        raise UsageError(f"{kind} '{spec}': {error}") from error


def values(default: object, spec: Spec, kind: str) -> dict[str, Any]:
    """The parameters of `spec`, converted to the annotated types of the fields of the dataclass `default`.

    Raises:
        UsageError: as `with_params`.
    """
    known = dataclasses.fields(default) if dataclasses.is_dataclass(default) else ()
    fields = {field.name: field for field in known if field.init}
    found: dict[str, Any] = {}
    for key, word in spec.params:
        if key not in fields:
            raise unknown_name(f"parameter of {kind} '{spec.name}'", key, fields)
        now = getattr(default, key)
        found[key] = read(word, _annotation(default, fields[key], now), f"{kind} '{spec.name}', parameter '{key}'", now)
    return found


def _annotation(owner: object, field: "dataclasses.Field[Any]", value: object) -> Any:
    """A field's type; the type of its default where the annotation cannot be evaluated."""
    if not isinstance(field.type, str):
        return field.type
    home = next(kind for kind in type(owner).__mro__ if field.name in vars(kind).get("__annotations__", {}))
    shim = types.SimpleNamespace(__annotations__={field.name: field.type})
    try:
        space = vars(sys.modules[home.__module__])
        return typing.get_type_hints(shim, space, include_extras=True)[field.name]
    except (NameError, KeyError, TypeError, AttributeError):  # a name that is imported for type checkers only
        return Any if value is None else type(value)


_WANTED: Mapping[Any, str] = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text"}


def read(word: str, annotation: Any, where: str, default: object = None) -> Any:
    """The value of type `annotation` that `word` spells; `auto` is None where the type allows it.

    Raises:
        UsageError: it is no such value; the message begins with `where`.
    """
    options = _options(annotation)
    auto = word.lower() == "auto" and not isinstance(word, Quoted)
    if auto and types.NoneType in options:
        return None
    for option in options:
        if (value := _as(word, option)) is not _NOT:
            return value
    wanted = [
        " or ".join(repr(one) for one in get_args(option)) if get_origin(option) is Literal else _WANTED.get(option, "")
        for option in options
        if option is not types.NoneType
    ]
    if not all(wanted):
        raise UsageError(f"{where}: a label cannot spell a value of type {annotation}")
    wanted += ["auto"] * (types.NoneType in options)
    literal = any(get_origin(option) is Literal for option in options)
    told = not literal and isinstance(default, bool | int | float | str)
    usual = f", like {show(default)}" if told else ""  # type: ignore[arg-type]
    raise UsageError(f"{where}: expected {' or '.join(dict.fromkeys(wanted))}{usual}; found '{word}'")


_NOT: Any = object()


def _options(annotation: Any) -> list[Any]:
    """The simple types that `annotation` allows, the narrowest first."""
    if annotation is Any:
        annotation = bool | int | float | str | None
    found = get_args(annotation) if get_origin(annotation) in (typing.Union, types.UnionType) else (annotation,)
    order = [types.NoneType, bool, int, float]
    return sorted(found, key=lambda one: order.index(one) if one in order else 5 + (one is str))


def _as(word: str, option: Any) -> Any:
    """`word` as a value of a simple type, or `_NOT`."""
    if get_origin(option) is Literal:
        return next((one for one in get_args(option) if word == show(one)), _NOT)
    if get_origin(option) is Annotated:
        kind, *extras = get_args(option)
        if kind is str and FileName in extras:
            return file_name(word)
        return _as(word, kind)
    if option is str:
        return str(word)
    if option is Path:
        return _search.get().folder / word
    if option is bool:
        return {"true": True, "false": False}.get(word.lower(), _NOT)
    if option in (int, float):
        try:
            value = option(word)
        except ValueError:
            return _NOT
        return value if math.isfinite(value) else _NOT
    return _NOT
