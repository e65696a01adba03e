"""How a run's labels are written in reports: titles of entries, a grid's [names], --name and `evaluate`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rdp_bench.errors import UsageError, unknown_name
from rdp_bench.registry import attack, defense, model
from rdp_bench.results.display import misleading, stems
from rdp_bench.results.rows import display_name, given_name, shown_names
from rdp_bench.specs import plain

if TYPE_CHECKING:
    from rdp_bench.engine.grid import Grid

LONGEST = 60
"""Letters of a name."""


def names_of(grid: "Grid", given: Mapping[str, str]) -> dict[str, str]:
    """Names of the labels of a grid, for its run record.

    Args:
        grid: its own [names] are for labels that it may lack once it is narrowed.
        given: names by label; they take precedence. A label that begins with "?" may be absent from the grid.

    Raises:
        UsageError: a name for a label that the grid lacks, an empty or overlong name, one for two labels, or that of
            another entry.
    """
    labels = {plain(label): label for label in _labels(grid)}
    parts = {stem for label in labels for stem in stems(label)}
    found = {
        name: entry.title
        for registry in (attack, defense, model)
        for name, entry in registry.entries.items()
        if entry.title and name in parts
    }
    for label, name in [*((f"?{label}", name) for label, name in grid.names.items()), *given.items()]:
        wanted = plain(label.removeprefix("?"))
        if wanted not in labels and wanted not in parts:
            if label.startswith("?"):
                continue
            raise unknown_name("label to name", wanted, labels)
        if not name or len(name) > LONGEST or not name.isprintable():
            raise UsageError(f"the name of '{wanted}' is one line of 1 to {LONGEST} letters, found {name!r}")
        found[wanted] = name
    if found:
        for problem in misleading(found, vars(grid.axes)):
            raise UsageError(f"{problem}; give another name")
        _refuse_shared(grid, found)
    return found


def refuse_unknown(grids: "Sequence[Grid]", given: Mapping[str, str]) -> None:
    """Compare the labels that are given names with those of several grids.

    Raises:
        UsageError: none of the grids has a label.
    """
    labels = {plain(label) for grid in grids for label in _labels(grid)}
    parts = {stem for label in labels for stem in stems(label)}
    for label in given:
        if plain(label) not in labels | parts:
            raise unknown_name("label to name", plain(label), labels)


def _refuse_shared(grid: "Grid", names: Mapping[str, str]) -> None:
    """Two rows or columns of a table must not be called the same."""
    axes = grid.axes
    with shown_names(names):
        for axis in (axes.defenses, axes.attacks, axes.sources, axes.targets + axes.baselines):
            seen: dict[str, str] = {}
            for label in axis:
                shown = names.get(plain(label), display_name(label))
                if (other := seen.setdefault(shown, label)) != label:
                    raise UsageError(
                        f"'{other}' and '{label}' would both be called '{shown}'; give one of them another name"
                    )
                if shown != label and plain(shown) in map(plain, axis) and given_name(label) == shown:
                    raise UsageError(f"'{label}' cannot be called '{shown}': that is another label of this axis")


def _labels(grid: "Grid") -> Iterator[str]:
    axes = grid.axes
    for axis in (axes.defenses, axes.attacks, axes.sources, axes.targets, axes.baselines):
        yield from axis
