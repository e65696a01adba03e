"""Which names the labels of a run may be shown by: never that of another entry, whose numbers theirs are not."""

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from rdp_bench.errors import UsageError
from rdp_bench.registry import registries
from rdp_bench.results.rows import paper_metadata
from rdp_bench.specs import cut, plain, split

_KINDS = {
    "attack": ("attacks",), "defense": ("defenses",), "model": ("sources", "targets", "baselines"),
}  # fmt: skip
"""Axes by the kind of entry that their labels name."""


def misleading(names: Mapping[str, str], axes: Mapping[str, Iterable[str]], *, built_in: bool = False) -> Iterator[str]:
    """A line for each label of a run that is shown by the name of another entry of its kind.

    Args:
        names: how labels, and the names of entries in them, are shown.
        axes: the labels of the run by axis.
        built_in: whether only built-in entries count as others.
    """
    for kind, found in _KINDS.items():
        labels = {plain(label) for axis in found for label in axes.get(axis, ())}
        labels |= {stem for label in labels for stem in stems(label)}
        for label in sorted(labels & names.keys()):
            if other := holder(kind, names[label], label, built_in=built_in):
                yield f"'{label}' cannot be called '{names[label]}': that is the {kind} {other}"


def holder(kind: str, name: str, label: str = "", *, built_in: bool = False) -> str:
    """The entry that `name` is the name or display name of, whatever the case, unless `label` is one of it; or ""."""
    own = stems(label)[0] if len(stems(label)) == 1 else ""
    usual, wanted = paper_metadata()["names"], _folded(name)
    shown = {each: usual.get(each, each) for each in (built_in_models() if kind == "model" else ())}
    for each, entry in registries[kind].entries.items():
        if not built_in or entry.origin.startswith("rdp_bench."):
            shown[each] = entry.title or usual.get(each, each)
    return next((each for each in shown if each != own and wanted in map(_folded, (each, shown[each]))), "")


def stems(label: str) -> list[str]:
    """The names in a label that may have a display name each."""
    try:
        return [cut(part)[0] for part in split(label, ">>")]
    except UsageError:  # a plugin's or a file's name
        return [label]


def _folded(name: str) -> str:
    return plain(name).casefold()


@cache
def built_in_models() -> dict[str, dict[str, Any]]:
    """The table of built-in models, data/models.toml."""
    return tomllib.loads(files("rdp_bench.data").joinpath("models.toml").read_text("utf-8"))
