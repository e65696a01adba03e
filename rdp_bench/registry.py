"""Named entries. A decorator registers a factory; the docstring's first line is its summary."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, ParamSpec, TypeVar

from rdp_bench.errors import RdpBenchError, UsageError, naming, unknown
from rdp_bench.protocols import Attack, Classifier, Dataset, Defense
from rdp_bench.specs import cut, outline, parse_spec, with_params

T = TypeVar("T")
P = ParamSpec("P")

_NAME = re.compile(r"[a-z0-9][a-z0-9&._+-]*(/[a-z0-9][a-z0-9&._+-]*)?")


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A registered factory and what is said about it."""

    name: str
    factory: Callable[..., T]
    summary: str
    source: str
    version: str
    origin: str


@dataclass(frozen=True)
class Resolved(Generic[T]):
    """What a label stands for: the object, and what its registry says about it."""

    label: str
    value: T
    summary: str
    source: str
    version: str


@dataclass(frozen=True)
class Dialect(Generic[T]):
    """A family of names with a grammar of its own, such as `timm:...` or `MI|DI|TI`."""

    name: str
    pattern: str
    example: str
    make: Callable[[str], T | Resolved[T]]


@dataclass
class Registry(Generic[T]):
    """Entries of one kind by name; calling it gives the decorator that adds one."""

    kind: str
    entries: dict[str, Entry[T]] = field(default_factory=dict)
    dialects: list[Dialect[T]] = field(default_factory=list)
    stamp: str = ""  # joined to the version of what is added: the hash of a plugin file

    def __call__(self, name: str, *, source: str, version: int = 1) -> Callable[[Callable[P, T]], Callable[P, T]]:
        """Register a class or function under `name`; `source` cites the paper or code it follows.

        Bump `version` whenever the entry's output changes: it is part of every cache key.
        """

        def enter(factory: Callable[P, T]) -> Callable[P, T]:
            origin = f"{factory.__module__}.{factory.__qualname__}"
            if not _NAME.fullmatch(name):
                raise RdpBenchError(f"{self.kind} '{name}' ({origin}): a name is lower case, like mine/noise-2")
            if name in self.entries:
                raise RdpBenchError(
                    f"{self.kind} '{name}' is taken: by {self.entries[name].origin}, wanted by {origin}; rename one"
                )
            summary = (factory.__doc__ or "").strip().partition("\n")[0]
            stamp = f"{version}+{self.stamp}" if self.stamp else str(version)
            self.entries[name] = Entry(name, factory, summary, source, stamp, origin)
            return factory

        return enter

    def dialect(self, name: str, pattern: str, example: str, make: Callable[[str], T | Resolved[T]]) -> None:
        """Let `make` read every label that `pattern` matches whole and no entry has.

        Where a word stands for an entry, `make` may say what its registry says about that.
        """
        self.dialects.append(Dialect(name, pattern, example, make))

    def resolve(self, text: str) -> Resolved[T]:
        """The object that `text` names: an entry, with parameters, or a word of a dialect.

        Raises:
            UsageError: an unknown name or parameter, or a bad value.
        """
        text = text.strip()
        if cut(text)[0] not in self.entries:
            for dialect in self.dialects:
                if re.fullmatch(dialect.pattern, outline(text)):
                    try:
                        made = dialect.make(text)
                    except (ValueError, TypeError) as error:
                        raise UsageError(f"{self.kind} '{text}': {error}") from error
                    if isinstance(made, Resolved):
                        return made
                    return Resolved(text, made, dialect.name, dialect.name, "1")
        spec = parse_spec(text)
        entry = self.get(spec.name)
        value = with_params(self.make(entry.name), spec, self.kind)
        return Resolved(str(spec), value, entry.summary, entry.source, entry.version)

    def make(self, name: str) -> T:
        """A new object of the entry called `name`.

        Raises:
            UsageError: there is no such entry, or its factory raises.
        """
        entry = self.get(name)
        with naming(f"{self.kind} '{name}' cannot be made"):
            return entry.factory()

    def get(self, name: str) -> Entry[T]:
        """The entry called `name`; an unknown one raises `UsageError` with the nearest name."""
        if name not in self.entries:
            raise unknown(self.kind, name, self.entries, f"See: rdp-bench list {self.kind}s")
        return self.entries[name]


attack: Registry[Attack] = Registry("attack")
defense: Registry[Defense] = Registry("defense")
dataset: Registry[Dataset] = Registry("dataset")
model: Registry[Classifier] = Registry("model")

registries: dict[str, Registry[Any]] = {r.kind: r for r in (attack, defense, dataset, model)}
