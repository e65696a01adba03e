"""A grid: a TOML file (or a built-in name), a profile and the user's changes, expanded into cells.

`load` reads the file and resolves nothing. `settle`, once plugins are loaded, fills in what depends on entries.
"""

import logging
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from rdp_bench import schema
from rdp_bench.budgets import LINF, NORMS, parse_eps
from rdp_bench.data.open import in_folder
from rdp_bench.engine.options import Placement
from rdp_bench.errors import BadModelError, RdpBenchError, UsageError, unknown_name
from rdp_bench.metrics.stats import FINEST
from rdp_bench.protocols import only_by_name, purifies
from rdp_bench.registry import dataset as datasets
from rdp_bench.registry import defense as defenses
from rdp_bench.reports.figures.registry import FIGURES
from rdp_bench.results.display import stems
from rdp_bench.specs import UNDEFENDED, CellKey, FileSearch, cut, plain, show_level

log = logging.getLogger(__name__)

AUDIT = "audit"
"""The table that makes a file a grid of audits; see `audits.grid`."""

LEAST_SIZE = 8
"""Pixels across the smallest images that a run may resize its data set to."""


Text = Annotated[str, "a text"]
Names = Annotated[tuple[str, ...], "a list of names"]
Count = Annotated[int, "a whole number"]
Switch = Annotated[bool, "true or false"]


@dataclass(frozen=True)
class Axes:
    """The values a grid runs over, as labels in table order, and its settings; the schema of `[axes]` in a file."""

    dataset: Text = ""
    sources: Names = ()
    targets: Names = ()
    baselines: Names = ()  # targets shown undefended beside the others; their weights may be absent
    attacks: Names = ()
    defenses: Names = ()
    eps: Annotated[tuple[float, ...], "a list of numbers, like [8, 16]"] = ()  # in /255, or in `norm`
    norm: Text = LINF
    clean: Switch = True
    ensembles: Annotated[Mapping[str, tuple[str, ...]], 'a table of lists of models, like { both = ["a", "b"] }'] = (
        field(default_factory=dict)
    )
    checks: Names = ()  # models that only the cross-check uses
    defense_samples: Count = 1  # draws of a random defense, each evaluated on its own
    image_quality: Switch = False  # also the distance of purified images to the clean ones
    success: Switch = False  # also the share of originally right images that an attack makes wrong
    cost: Switch = False  # also what a defense takes: time, memory, parameters
    limit: Annotated[int | None, "a whole number"] = None  # at most this many images
    image_size: Annotated[int | None, "a whole number"] = None  # pixels that images are resized to before any attack
    samples: Count = 2  # images of each purified set that are kept for the report
    figures: Names = ()  # what a report draws; empty: what it draws of every table
    note: Text = ""

    def targets_for(self, defense: str) -> tuple[str, ...]:
        """The targets that are evaluated behind this defense."""
        return self.targets + (self.baselines if defense == UNDEFENDED else ())


@dataclass(frozen=True)
class Grid:
    """A named grid under one profile."""

    name: str
    title: str
    profile: str
    axes: Axes
    folders: Mapping[str, Path] = field(default_factory=dict)
    """Where relative file names in the labels of an axis start; the current folder for axes that are not listed."""
    names: Mapping[str, str] = field(default_factory=dict)
    """How reports write labels."""
    plugins: tuple[Path, ...] = ()
    """Plugin files that were loaded for it."""
    run: Mapping[str, Any] = field(default_factory=dict)
    """Where its jobs are done, by field of `options.Placement`."""

    def files(self, axis: str, models_dir: Path | None) -> FileSearch:
        """Where the files that labels of this axis name are looked for."""
        return FileSearch(self.folders.get(axis, Path()), models_dir)

    @property
    def count(self) -> int:
        """How many cells there are, without making them."""
        a = self.axes
        crafted = len(a.eps) * len(a.sources) * len(a.attacks)
        return (a.clean + crafted) * sum(len(a.targets_for(defense)) for defense in a.defenses)

    def cells(self) -> Iterator[CellKey]:
        """Every cell: first the clean ones, then grouped by adversarial set."""
        a = self.axes
        behind = [(defense, target) for defense in a.defenses for target in a.targets_for(defense)]
        if a.clean:
            yield from (CellKey.clean(target, defense) for defense, target in behind)
        for eps, source, attack, (defense, target) in product(a.eps, a.sources, a.attacks, behind):
            yield CellKey(source, attack, eps, target, defense)


@dataclass(frozen=True)
class _GridFile:
    """A grid file; `axes` and each profile are read as `Axes` once they are merged."""

    title: Text = ""
    axes: Annotated[dict[str, Any], "a table"] = field(default_factory=dict)
    profile: Annotated[dict[str, dict[str, Any]], "a table of profiles"] = field(default_factory=dict)
    plugins: Annotated[tuple[str, ...], "a list of paths"] = ()
    names: Annotated[dict[str, str], "a table of texts"] = field(default_factory=dict)
    run: Annotated[dict[str, Any], "a table"] = field(default_factory=dict)  # read as `Placement`


@dataclass(frozen=True)
class _SuiteFile:
    """A file that lists grids."""

    grids: Annotated[tuple[str, ...], "a list of names and paths ending in .toml"]
    title: Text = ""


@dataclass(frozen=True)
class _Budgets:
    """The budgets of a grid file as they are written: 8, 2.5 or "8/255"."""

    eps: Annotated[tuple[float | str, ...], "a list of numbers, like [8, 16]"] = ()


def builtin() -> dict[str, str]:
    """Title of every built-in grid by name."""
    found = {
        file.name.removesuffix(".toml"): str(tomllib.loads(file.read_text())["title"])
        for file in files("rdp_bench.data").joinpath("grids").iterdir()
        if file.name.endswith(".toml")
    }
    return dict(sorted(found.items()))


def load(name: str, profile: str, changes: Mapping[str, Any]) -> tuple[Grid, tuple[Path, ...]]:
    """The grid `name` (built-in, or a path ending in .toml) under `profile`, with `changes` to its axes.

    Nothing that the grid names is resolved, so its plugins need not be loaded yet. `make_plan` settles the grid.

    Returns:
        The grid, and the plugin files that it asks for.

    Raises:
        UsageError: an unknown name, key or profile, a value of the wrong type, or an empty axis.
    """
    name, table, folder = read_table(name)
    if AUDIT in table:
        raise UsageError(
            f"grid {name} holds audits, which have no cells of their own; run it alone: rdp-bench run {name}"
        )
    file = schema.read(table, _GridFile, f"grid {name}", "key of {}".format)
    return _read(name, file, profile, changes, folder), tuple(folder / each for each in file.plugins)


def settle(grid: Grid, models_dir: Path | None) -> Grid:
    """The grid with its wildcards replaced by labels and the path of its data set relative to the current folder.

    Every plugin must be loaded. A settled grid stays as it is.

    Raises:
        UsageError: a label that cannot be read, an axis that is empty, or a label that an axis lists twice.
    """
    axes = grid.axes
    if "dataset" in grid.folders:
        axes = replace(axes, dataset=based_on(axes.dataset, grid.folders["dataset"]))
    axes = replace(axes, defenses=expand_wildcards(axes.defenses, grid.files("defenses", models_dir)))
    _check_labels(grid.name, axes)
    folders = {axis: folder for axis, folder in grid.folders.items() if axis != "dataset"}
    return replace(grid, axes=axes, folders=folders)


def from_axes(
    name: str,
    title: str,
    axes: Mapping[str, Any],
    profile: str = "embedded",
    changes: Mapping[str, Any] | None = None,
    *,
    alone: bool = True,
) -> Grid:
    """A grid without a file: `axes` as the `[axes]` table of a grid file holds them, with `changes` to them.

    Where it is not `alone`, the undefended row may be in another grid.

    Raises:
        UsageError: as `load`.
    """
    file = schema.read({"title": title, "axes": dict(axes)}, _GridFile, f"grid {name}")
    return _read(name, file, profile, changes or {}, Path(), alone=alone)


def extend(grid: Grid, more: Mapping[str, Sequence[str]]) -> Grid:
    """`grid` with more labels at the end of its axes; those that it has already are not repeated.

    Relative file names in a label start where those of its axis do: in the folder of the grid file.

    Raises:
        UsageError: an attack, source or eps for a grid without attacks.
    """
    found: dict[str, Any] = {}
    for axis, labels in more.items():
        if axis in ("sources", "attacks", "eps") and not grid.axes.attacks:
            raise UsageError(f"grid {grid.name} has no attacks, so that nothing can be added to its {axis}")
        values = [parse_eps(label, grid.axes.norm) for label in labels] if axis == "eps" else labels
        have = list(getattr(grid.axes, axis))
        known = {plain(label) for label in have}
        if axis == "targets":
            known |= {plain(label) for label in grid.axes.baselines}
        for value in values:
            if plain(value) not in known:
                have.append(value)
                known.add(plain(value))
        found[axis] = tuple(have)
    return replace(grid, axes=replace(grid.axes, **found)) if found else grid


def expand_suite(name: str, within: tuple[Path, ...] = ()) -> list[str]:
    """The grids that a suite lists, in order; `[name]` for a grid. A suite within a suite stands for its own grids.

    Raises:
        UsageError: as `load`; or it lists nothing, itself, or two grids that would write the same run record.
    """
    stem, table, folder = read_table(name)
    if "grids" not in table:
        return [name]
    names = schema.read(table, _SuiteFile, f"grid {stem}", "key of {}, which lists grids".format).grids
    if not names:
        raise UsageError(f"grid {stem}: 'grids' is a list of names and paths ending in .toml, found []")
    within = (*within, (folder / f"{stem}.toml").resolve())
    found: list[str] = []
    for each in names:
        path = str(folder / each) if each.endswith(".toml") else each
        if Path(path).resolve() in within:
            raise UsageError(f"grid {stem}: the suite includes itself ({each})")
        found += expand_suite(path, within)
    stems = [Path(each).name.removesuffix(".toml") for each in found]
    twice = sorted({each for each in stems if stems.count(each) > 1})
    if twice:
        raise UsageError(f"grid {stem}: {', '.join(twice)} is listed twice")
    return found


def is_audit(name: str) -> bool:
    """Whether a grid, built in or a file, is one of audits; see `audits.grid`.

    Raises:
        UsageError: there is no such grid.
    """
    return AUDIT in read_table(name)[1]


def read_table(name: str) -> tuple[str, dict[str, Any], Path]:
    """A grid's name, what its file says, and the folder that paths in it start from."""
    file: Traversable
    if name.endswith(".toml"):
        own = Path(name)
        if not own.is_file():
            raise UsageError(f"grid file {name} does not exist")
        name, file, folder = own.stem, own, own.parent
    elif name in builtin():
        file, folder = files("rdp_bench.data").joinpath("grids", f"{name}.toml"), Path()
    else:
        raise unknown_name("grid", name, builtin(), "A grid of your own is a path ending in .toml")
    try:
        return name, tomllib.loads(file.read_text(encoding="utf-8-sig")), folder
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"grid {name}: not valid TOML: {error}") from error


def narrow(grid: Grid, wanted: Mapping[str, Sequence[str | float]]) -> Grid | None:
    """`grid` with what its axes share with `wanted`; None where that is nothing. An axis without use is left alone.

    Of baselines alone, which are evaluated undefended, the grid has them as targets of the undefended row.
    """
    kept: dict[str, Any] = {}
    for axis, labels in wanted.items():
        if axis in ("sources", "attacks", "eps") and not grid.axes.attacks:
            continue
        if axis == "eps":
            labels = [parse_eps(label, grid.axes.norm) for label in labels]
        names = {plain(label) for label in labels}
        both = (axis, "baselines") if axis == "targets" else (axis,)
        kept |= {name: tuple(label for label in getattr(grid.axes, name) if plain(label) in names) for name in both}
        if not any(kept[name] for name in both):
            return None
    axes = replace(grid.axes, **kept)
    if not axes.targets:
        undefended = tuple(label for label in axes.defenses if label == UNDEFENDED)
        axes = replace(axes, targets=axes.baselines, baselines=(), defenses=undefended)
    return replace(grid, axes=axes) if axes.defenses else None


def _read(
    name: str, file: _GridFile, profile: str, changes: Mapping[str, Any], folder: Path, *, alone: bool = True
) -> Grid:
    if file.profile and profile not in file.profile:
        raise unknown_name(f"profile of grid {name}", profile, file.profile)
    values = {**file.axes, **file.profile.get(profile, {})}
    budgets = schema.read({"eps": values["eps"]} if "eps" in values else {}, _Budgets, f"grid {name}").eps
    read = schema.read({**values, "eps": ()}, Axes, f"grid {name}", "axis of {}".format)
    norm = changes.get("norm", read.norm)
    if norm != read.norm and "eps" not in changes:
        raise UsageError(
            f"grid {name}: its eps are budgets in {read.norm}; --norm {norm} needs --eps, for example "
            f"{'--eps 8' if norm == LINF else '--eps 3.0'}"
        )
    if norm not in NORMS:
        raise unknown_name(f"norm of grid {name}", norm, NORMS)
    eps = tuple(parse_eps(value, norm) for value in changes.get("eps", budgets))
    typed = schema.read({**changes, "eps": ()}, Axes, f"grid {name}")
    axes = replace(read, **{axis: getattr(typed, axis) for axis in changes} | {"eps": eps})
    _check_settings(name, axes, alone=alone)
    folders = {axis: folder for axis in values if axis not in changes}
    schema.read(file.run, Placement, f"[run] of grid {name}", "key of {}".format)
    _say_unknown_names(name, file.names, read)
    return Grid(name, file.title or name, profile, axes, folders, file.names, run=file.run)


def _say_unknown_names(name: str, names: Mapping[str, str], axes: Axes) -> None:
    """Warn of [names] for labels that the file does not have; a flag may still add them."""
    axes_of_labels = (axes.defenses, axes.attacks, axes.sources, axes.targets, axes.baselines)
    given = [label.removesuffix("?") for axis in axes_of_labels for label in axis]
    labels = {plain(label) for label in given} | {stem for label in given for stem in stems(label)}
    if "*" in labels:
        return
    for label in names:
        if plain(label) not in labels:
            log.warning("grid %s: [names] has '%s', and no axis of the grid has this label", name, label)


def based_on(label: str, folder: Path) -> str:
    """A grid file's data set, a path as it is from the current folder."""
    if not label or label.startswith("~") or folder == Path():
        return label
    if cut(label)[0] in datasets.entries:
        return in_folder(label, folder)
    path = folder / label
    is_path = label.startswith(".") or label.lower().endswith(".csv")
    # A folder of that name in the current folder is another one.
    return str(path) if is_path or path.exists() or Path(label).exists() else label


def expand_wildcards(labels: Sequence[str], search: FileSearch) -> tuple[str, ...]:
    """The labels with "*" replaced by every other registered defense, and names ending in "?" left out if unusable."""
    named = [label.removesuffix("?") for label in labels]
    rest = [name for name in sorted(defenses.entries) if name not in named] if "*" in labels else []
    missing: dict[tuple[str, str], list[str]] = {}
    usable = [name for name in rest if _usable(name, "*", search, missing)]
    found: list[str] = []
    for label, name in zip(labels, named, strict=True):
        if label == "*":
            found += usable
        elif label == name or _usable(name, label, search, missing):
            found.append(name)
    for (of, reason), names in missing.items():
        who = f"defense{'s' * (len(names) > 1)} {', '.join(names)}"
        log.warning("left out%s: %s: %s", of, who, reason)
    return tuple(found)


def _usable(name: str, label: str, search: FileSearch, missing: dict[tuple[str, str], list[str]]) -> bool:
    """Whether a defense is one for `*` (or is asked for by name) and its weights are here; if not, it is `missing`."""
    try:
        value = defenses.resolve(name, files=search).value
        if label == "*" and (not purifies(value) or only_by_name(value)):
            return False
        value.resolved()
    except RdpBenchError as error:
        if label != "*" and not isinstance(error, BadModelError):
            raise
        # Several defenses use the denoiser's weights, whose error names that one.
        reason = re.sub(r"^defense \S+: ", "", str(error))
        missing.setdefault((" of '*'" if label == "*" else "", reason), []).append(name)
        return False
    return True


def _check_settings(grid: str, axes: Axes, *, alone: bool) -> None:
    """Refuse what no plugin can make valid."""
    if alone and axes.defenses and not {UNDEFENDED, f"{UNDEFENDED}?"} & {*axes.defenses}:
        log.warning("no undefended row to compare with; add none to the defenses")
    _check_labels(grid, axes)
    if not axes.attacks and not axes.clean:
        raise UsageError(f"grid {grid}: no attacks and clean = false leave nothing to run")
    if axes.success and not axes.clean:
        raise UsageError(f"grid {grid}: success is a share of images that are right when clean; it needs clean = true")
    if not axes.dataset:
        raise UsageError(f"grid {grid}: no data set; give it in the file or with --dataset")
    if not 1 <= axes.defense_samples <= FINEST:
        raise UsageError(
            f"grid {grid}: defense_samples is {axes.defense_samples}; a random defense is evaluated on at least one, "
            f"at most {FINEST}"
        )
    cells = max(len(axes.sources), 1) * max(len(axes.attacks), 1)
    if axes.defense_samples * cells > FINEST:
        raise UsageError(
            f"grid {grid}: defense_samples is {axes.defense_samples} for {cells} attacks and sources; the interval of "
            f"their mean can be computed for at most {FINEST} draws in all, {FINEST // cells} each"
        )
    for key in ("limit", "samples"):
        if (count := getattr(axes, key)) is not None and count < 1:
            raise UsageError(f"grid {grid}: {key} is {count}; at least one image is needed")
    if axes.image_size is not None and axes.image_size < LEAST_SIZE:
        raise UsageError(f"image size is at least {LEAST_SIZE} pixels, found {axes.image_size}")
    for figure in axes.figures:
        if figure not in FIGURES:
            raise unknown_name(f"figure of grid {grid}", figure, FIGURES)
        if FIGURES[figure].of == "cards":
            raise UsageError(f"grid {grid}: figure '{figure}' is drawn of audits, not of the cells of a grid")


def _check_labels(grid: str, axes: Axes) -> None:
    for key in ("targets", "defenses", *(("sources", "eps") if axes.attacks else ())):
        if not getattr(axes, key):
            flag = key if key == "eps" else key.removesuffix("s")
            raise UsageError(f"grid {grid}: the axis '{key}' is empty; give it in the file or with --{flag}")
    for key in ("sources", "targets", "attacks", "defenses", "eps"):
        labels = getattr(axes, key) + (axes.baselines if key == "targets" else ())
        labels = [show_level(label) if key == "eps" else label for label in labels]  # two that are shown alike too
        twice = {label for label in labels if labels.count(label) > 1}
        if twice:
            raise UsageError(f"grid {grid}: the axis '{key}' lists {', '.join(sorted(twice))} twice")
