"""Named entries. A decorator registers a factory; the docstring's first line is its summary."""

import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from types import FunctionType
from typing import Any, Generic, ParamSpec, TypeVar

from rdp_bench.errors import RdpBenchError, UsageError, unknown_name, wrap_errors
from rdp_bench.keys import Record, canonical_json, without_neutral
from rdp_bench.protocols import Attack, Classifier, Dataset, Defense, FunctionAttack
from rdp_bench.specs import FileSearch, cut, files_from, outline, parse_spec, split, with_params
from rdp_bench.user_reads import Reads, watching

T = TypeVar("T")
P = ParamSpec("P")

_NAME = re.compile(r"[a-z0-9][a-z0-9&._+-]*(/[a-z0-9][a-z0-9&._+-]*)?")


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A registered factory with its description."""

    name: str
    factory: Callable[..., T]
    summary: str
    source: str
    number: int
    origin: str
    id: str = ""
    """Permanent, part of cache keys; by default the name."""
    stamp: str | None = None
    """Hash of the code that registered it (`plugins.load`); None: computed on demand."""
    title: str = ""
    """How reports write it; by default as its name."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", self.id or self.name)

    @property
    def version(self) -> str:
        """The number in its decorator and, of code outside this package, a hash of that code."""
        from rdp_bench import local_code

        version_suffix = local_code.stamp_of(self.factory) if self.stamp is None else self.stamp
        return f"{self.number}+{version_suffix}" if version_suffix else str(self.number)


def version_with(entry: Entry[Any], reads: Reads, label: str) -> str:
    """An entry's version, and a hash of the files and environment variables that its code read when it was made."""
    return "-".join(filter(None, (entry.version, reads.digest(label))))


@dataclass(frozen=True)
class Resolved(Generic[T]):
    """The object that a label names, with the description of its entry."""

    label: str
    value: T
    summary: str
    source: str
    version: str
    id: str = ""


def identity(made: Resolved[Any], *at: Any) -> Record:
    """What identifies an attack or defense in cache keys: `{"id", "version", "params"}`; another record may nest it.

    An object that is a setting of an engine of this package has a method `identity` in its own class, which gives this
    record with the engine's id and version. Labels that set an engine equally then share a key, whatever their names.

    Args:
        made: the resolved label.
        at: arguments of its method `resolved`: eps in /255 for an attack, none for a defense.

    Raises:
        Exception: whatever `resolved` raises, or a value that JSON has no exact form for.
    """
    kind = type(made.value)
    # Of no base, for a subclass computes something else; and of no plugin, for its version holds the hash of its code.
    engine = "identity" in vars(kind) and kind.__module__.startswith("rdp_bench.")
    if engine:
        record = made.value.identity(*at)
        if made.version.partition("+")[0] != "1":
            raise ValueError(
                f"a setting of {record['id']} has no version of its own; bump that of the engine or of its part"
            )
    else:
        params = without_neutral(kind, made.value.resolved(*at))
        record = {"id": made.id, "version": made.version, "params": params}
    plain: Record = json.loads(canonical_json(record))  # a copy: what the entry returned may still be its own
    return plain


def refuse_shared_keys(kind: str, made: list[tuple[Resolved[Any], Record]]) -> None:
    """Refuse different objects with the same identity record.

    Two objects count as the same if they have one class and are equal in all fields that `resolved` leaves out. Fields
    that it returns may differ: `steps=auto` and `steps=10` resolve to the same at some eps.

    Raises:
        UsageError: two labels share a record and differ; the message names both.
    """
    groups: dict[str, list[tuple[Resolved[Any], Record]]] = {}
    for one, record in made:
        groups.setdefault(canonical_json(record), []).append((one, record))
    for group in groups.values():
        for (one, record), (two, _) in combinations(group, 2):
            if one.label == two.label:
                continue  # a factory may make a class anew in every call
            if what := _hidden_difference(one.value, two.value, set(record["params"])):
                raise UsageError(
                    f"{kind}s '{one.label}' and '{two.label}' would share one cache key and differ in {what}. Return "
                    "everything that the output depends on from resolved(), or leave one of them out"
                )


def left_out(value: object, params: Record) -> list[str]:
    """Names of parameters that differ from their defaults and are missing in the record."""
    found = []
    for each in dataclasses.fields(value) if dataclasses.is_dataclass(value) else ():
        default = each.default
        parameter = each.init and each.metadata.get("parameter", True)
        if not parameter or each.name in params or default is dataclasses.MISSING:
            continue
        now = getattr(value, each.name)
        if not _equal(now, default) and not _equal(now, each.metadata.get("neutral", default)):
            found.append(each.name)
    return found


def _hidden_difference(one: object, two: object, known: set[str]) -> str:
    """How two objects differ in attributes that `resolved` does not return (`known`: those it returns), or nothing."""
    if type(one) is not type(two):
        return f"their class ({type(one).__qualname__}, {type(two).__qualname__})"
    if dataclasses.is_dataclass(one):
        names = {f.name for f in dataclasses.fields(one)}
    else:
        names = {name for each in (one, two) for name in getattr(each, "__dict__", {}) if not name.startswith("_")}
    differing = [
        name for name in sorted(names - known) if not _equal(getattr(one, name, None), getattr(two, name, None))
    ]
    return ", ".join(differing)


def _equal(one: object, two: object) -> bool:
    try:
        return one is two or bool(one == two)
    except Exception:  # arrays and whatever else compares in its own way
        return False


@dataclass(frozen=True)
class LabelScheme(Generic[T]):
    """A family of names with a grammar of its own, such as `timm:...` or `MI|DI|TI`."""

    name: str
    pattern: str
    example: str
    make: Callable[[str], T | Resolved[T]]
    id: str
    number: int = 1
    stamp: str | None = None
    mark: str = ""
    """What a label contains outside of parentheses, too."""

    def matches(self, text: str) -> bool:
        """Whether `text` is one of its labels."""
        found = re.fullmatch(self.pattern, outline(text)) is not None
        return found and (not self.mark or len(split(text, self.mark)) > 1)

    @property
    def version(self) -> str:
        """As of an entry: of what `make` makes."""
        from rdp_bench import local_code

        version_suffix = local_code.stamp_of(self.make) if self.stamp is None else self.stamp
        return f"{self.number}+{version_suffix}" if version_suffix else str(self.number)


@dataclass
class Registry(Generic[T]):
    """Entries of one kind by name; calling it returns the decorator that adds one."""

    kind: str
    from_function: Callable[[Callable[..., Any]], T] | None = None
    """Makes the object of a registered function that takes arguments, and so is no factory."""
    entries: dict[str, Entry[T]] = field(default_factory=dict)
    label_schemes: list[LabelScheme[T]] = field(default_factory=list)

    def __call__(
        self,
        name: str,
        *,
        source: str,
        version: int = 1,
        id: str = "",  # noqa: A002 - the word that keys use
        title: str = "",
    ) -> Callable[[Callable[P, T]], Callable[P, T]]:
        """Register a class, a function that makes an object, or a plain function that is an attack, under `name`.

        Args:
            name: the name in labels.
            source: the paper or code that it follows.
            version: bump it whenever the entry's output changes. Part of every cache key.
            id: the name in cache keys, by default `name`. A renamed entry states its old name here.
            title: how reports write it, by default `name`. Not part of any key.

        Raises:
            RdpBenchError: a bad name, or a name or id that another entry has.
        """

        def enter(factory: Callable[P, T]) -> Callable[P, T]:
            origin = f"{factory.__module__}.{factory.__qualname__}"
            if not _NAME.fullmatch(name):
                raise RdpBenchError(f"{self.kind} '{name}' ({origin}): a name is lower case, like mine/noise-2")
            if name in self.entries:
                raise RdpBenchError(
                    f"{self.kind} '{name}' is taken: by {self.entries[name].origin}, wanted by {origin}; rename one"
                )
            self._refuse_taken(id or name, f"{self.kind} '{name}' ({origin})")
            summary = (factory.__doc__ or "").strip().partition("\n")[0]
            self.entries[name] = Entry(name, factory, summary, source, version, origin, id or name, title=title)
            return factory

        return enter

    def label_scheme(
        self,
        name: str,
        pattern: str,
        example: str,
        make: Callable[[str], T | Resolved[T]],
        *,
        id: str = "",  # noqa: A002 - as in __call__
        version: int = 1,
        mark: str = "",
    ) -> None:
        """Let `make` read every label that `pattern` matches as a whole and that names no entry.

        With `mark`, only labels that contain it outside of parentheses and quotes. Where a label stands for an entry,
        `make` may return that entry as `Resolved`. `id` (by default `name`) and `version` are part of the cache keys of
        everything else that it makes.
        """
        self._refuse_taken(id or name, f"{self.kind} scheme '{name}'")
        self.label_schemes.append(LabelScheme(name, pattern, example, make, id or name, version, mark=mark))

    def _refuse_taken(self, wanted: str, what: str) -> None:
        taken = [(other.id, other.name) for other in self.entries.values()]
        taken += [(other.id, other.name) for other in self.label_schemes]
        for id_, name in taken:
            if id_ == wanted:
                raise RdpBenchError(
                    f"{what}: the id '{wanted}' is that of {self.kind} '{name}'; cache keys need one of its own"
                )

    def resolve(self, text: str, *, files: FileSearch | None = None) -> Resolved[T]:
        """The object that `text` names: an entry, with parameters, or a label of a scheme.

        Args:
            text: the label.
            files: where the files that it names are looked for; None: as for the label that contains it, or from the
                current folder.

        Raises:
            UsageError: an unknown name or parameter, or a bad value.
        """
        if files is not None:
            with files_from(files):
                return self.resolve(text)
        text = text.strip()
        if cut(text)[0] not in self.entries:
            for scheme in self.label_schemes:
                if scheme.matches(text):
                    try:
                        made = scheme.make(text)
                    except (ValueError, TypeError) as error:
                        raise UsageError(f"{self.kind} '{text}': {error}") from error
                    if isinstance(made, Resolved):
                        return made
                    return Resolved(text, made, scheme.name, scheme.name, scheme.version, scheme.id)
        spec = parse_spec(text)
        entry = self.get(spec.name)
        with watching() as reads:
            value = with_params(self.make(entry.name), spec, self.kind)
        return Resolved(str(spec), value, entry.summary, entry.source, version_with(entry, reads, text), entry.id)

    def make(self, name: str) -> T:
        """A new object of the entry `name`.

        Raises:
            UsageError: no such entry exists, or its factory raises.
        """
        entry = self.get(name)
        with wrap_errors(f"{self.kind} '{name}' cannot be made"):
            if self.from_function and isinstance(entry.factory, FunctionType) and _needs_arguments(entry.factory):
                return self.from_function(entry.factory)
            return entry.factory()

    def get(self, name: str) -> Entry[T]:
        """The entry `name`.

        Raises:
            UsageError: it does not exist; the message names the nearest.
        """
        if name not in self.entries:
            raise unknown_name(self.kind, name, self.entries, f"See: rdp-bench list {self.kind}s")
        return self.entries[name]


def _needs_arguments(function: FunctionType) -> bool:
    """Whether a function has positional arguments without defaults."""
    return function.__code__.co_argcount > len(function.__defaults__ or ())


attack: Registry[Attack] = Registry("attack", FunctionAttack)
defense: Registry[Defense] = Registry("defense")
dataset: Registry[Dataset] = Registry("dataset")
model: Registry[Classifier] = Registry("model")

registries: dict[str, Registry[Any]] = {r.kind: r for r in (attack, defense, dataset, model)}
