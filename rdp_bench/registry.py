"""Named entries. A decorator registers a factory; the docstring's first line is its summary."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, ParamSpec, TypeVar

from rdp_bench.errors import RdpBenchError, unknown
from rdp_bench.protocols import Attack, Classifier, Dataset, Defense
from rdp_bench.specs import Spec, with_params

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

    def make(self, spec: Spec, kind: str) -> T:
        """The entry with the parameters of `spec` in place of its defaults."""
        return with_params(self.factory(), spec, kind)


@dataclass
class Registry(Generic[T]):
    """Entries of one kind by name; calling it gives the decorator that adds one."""

    kind: str
    entries: dict[str, Entry[T]] = field(default_factory=dict)
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
