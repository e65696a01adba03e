"""A grid: a TOML file (or a built-in name), a profile and the user's narrowing, expanded into cells."""

import logging
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from rdp_bench.budgets import LINF, NORMS, parse_eps
from rdp_bench.errors import BadModelError, RdpBenchError, UsageError, unknown_name
from rdp_bench.registry import dataset as datasets
from rdp_bench.registry import defense as defenses
from rdp_bench.specs import Cell, cut, files_from, plain, show

log = logging.getLogger(__name__)

CLEAN = "clean"
UNDEFENDED = "none"

LEAST_SIZE = 8
"""Pixels across the smallest images that a run may resize its data set to."""

KEYS = ("title", "axes", "profile", "plugins", "names")
"""Of a grid file."""

FIGURES = ("heat", "dots", "sweep", "pareto", "spectra", "gallery", "error-maps", "branches", "ablation")
"""What a grid may ask a report to draw; `reports/figures/registry.py` does it."""


@dataclass(frozen=True)
class Axes:
    """The values a grid runs over, as labels in table order; eps in /255, or as `norm` says (`budgets.parse_eps`)."""

    dataset: str = ""
    sources: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()  # targets that stand beside the others undefended; their weights may be absent
    attacks: tuple[str, ...] = ()
    defenses: tuple[str, ...] = ()
    eps: tuple[float, ...] = ()
    norm: str = LINF
    clean: bool = True
    ensembles: dict[str, list[str]] = field(default_factory=dict)
    checks: tuple[str, ...] = ()  # models that the cross-check alone looks at
    defense_samples: int = 1  # of a random defense, each judged on its own
    image_quality: bool = False  # how near purified images come to the clean ones
    success: bool = False  # also the share of originally right images that an attack makes wrong
    cost: bool = False  # what a defense takes: time, memory, parameters
    limit: int | None = None  # at most so many images: pictures need few
    image_size: int | None = None  # pixels that images are resized to as they are read, before any attack
    samples: int = 2  # images of each purified set that are kept for a look
    figures: tuple[str, ...] = ()  # what a report draws; none named: what it draws of every table
    note: str = ""

    def targets_for(self, defense: str) -> tuple[str, ...]:
        """The targets that are judged behind this defense."""
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

    @property
    def count(self) -> int:
        """How many cells there are, without making them."""
        a = self.axes
        crafted = len(a.eps) * len(a.sources) * len(a.attacks)
        return (a.clean + crafted) * sum(len(a.targets_for(defense)) for defense in a.defenses)

    def cells(self) -> Iterator[Cell]:
        """Every cell: first the clean ones, then grouped by adversarial set."""
        a = self.axes
        if a.clean:
            for defense in a.defenses:
                for target in a.targets_for(defense):
                    yield Cell(a.dataset, "-", CLEAN, 0.0, target, defense)
        for eps in a.eps:
            for source in a.sources:
                for attack in a.attacks:
                    for defense in a.defenses:
                        for target in a.targets_for(defense):
                            yield Cell(a.dataset, source, attack, eps, target, defense)


def builtin() -> dict[str, str]:
    """Title of every built-in grid by name."""
    found = {
        file.name.removesuffix(".toml"): str(tomllib.loads(file.read_text())["title"])
        for file in files("rdp_bench.data").joinpath("grids").iterdir()
        if file.name.endswith(".toml")
    }
    return dict(sorted(found.items()))


def load(name: str, profile: str, changes: dict[str, Any]) -> tuple[Grid, tuple[Path, ...]]:
    """The grid `name` (built-in, or a path ending in .toml) under `profile`, with `changes` to its axes.

    Returns the grid and the plugin files it asks for.

    Raises:
        UsageError: an unknown name, key or profile, a value of the wrong kind, or an empty axis.
    """
    name, table, folder = _table(name)
    plugins = table.get("plugins", [])
    if not isinstance(plugins, list) or not all(isinstance(each, str) for each in plugins):
        raise UsageError(f"grid {name}: 'plugins' is a list of paths, found {plugins!r}")
    return _read(name, table, profile, changes, folder), tuple(folder / each for each in plugins)


def from_axes(name: str, title: str, axes: Mapping[str, Any]) -> Grid:
    """A grid without a file: `axes` as the `[axes]` table of a grid file holds them.

    Raises:
        UsageError: as `load`.
    """
    return _read(name, {"title": title, "axes": dict(axes)}, "embedded", {}, Path())


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
    """The grids that `name`, a grid of grids, lists, in order; [name] for any other. A listed list stands for its own.

    Raises:
        UsageError: as `load`; or it lists nothing, itself, or two grids that would write the same run record.
    """
    stem, table, folder = _table(name)
    if "grids" not in table:
        return [name]
    for key in table:
        if key not in ("title", "grids"):
            raise unknown_name(f"key of grid {stem}, which lists grids", key, ("title", "grids"))
    names = table["grids"]
    if not isinstance(names, list) or not names or not all(isinstance(each, str) for each in names):
        raise UsageError(f"grid {stem}: 'grids' is a list of names and paths ending in .toml, found {names!r}")
    within = (*within, (folder / f"{stem}.toml").resolve())
    found: list[str] = []
    for each in names:
        path = str(folder / each) if each.endswith(".toml") else each
        if Path(path).resolve() in within:
            raise UsageError(f"grid {stem}: {each} is the list that it stands in")
        found += expand_suite(path, within)
    stems = [Path(each).name.removesuffix(".toml") for each in found]
    twice = sorted({each for each in stems if stems.count(each) > 1})
    if twice:
        raise UsageError(f"grid {stem}: {', '.join(twice)} stands twice in its list")
    return found


def _table(name: str) -> tuple[str, dict[str, Any], Path]:
    """A grid's name, what its file says, and the folder that paths in it start from."""
    file: Traversable
    if name.endswith(".toml"):
        own = Path(name)
        if not own.is_file():
            raise UsageError(f"grid file {name} is not there")
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
    """`grid` with what its axes share with `wanted`; None where that is nothing. An axis without use is left alone."""
    kept: dict[str, Any] = {}
    for axis, labels in wanted.items():
        if axis in ("sources", "attacks", "eps") and not grid.axes.attacks:
            continue
        if axis == "eps":
            labels = [parse_eps(label, grid.axes.norm) for label in labels]
        names = {plain(label) for label in labels}
        for name in (axis, "baselines") if axis == "targets" else (axis,):
            kept[name] = tuple(label for label in getattr(grid.axes, name) if plain(label) in names)
        if not (kept[axis] or kept.get("baselines")):
            return None
    chosen = replace(grid, axes=replace(grid.axes, **kept))
    return chosen if any(True for _ in chosen.cells()) else None


def _read(name: str, table: dict[str, Any], profile: str, changes: dict[str, Any], folder: Path) -> Grid:
    for key in table:
        if key not in KEYS:
            raise unknown_name(f"key of grid {name}", key, KEYS)
    profiles, names = table.get("profile", {}), table.get("names", {})
    for key, part in (("axes", table.get("axes", {})), ("profile", profiles), ("names", names)):
        if not isinstance(part, dict):
            raise UsageError(f"grid {name}: '{key}' is a table, found {part!r}")
    for key, part in profiles.items():
        if not isinstance(part, dict):
            raise UsageError(f"grid {name}: profile '{key}' is a table, found {part!r}")
    if not isinstance(table.get("title", ""), str):
        raise UsageError(f"grid {name}: 'title' is a text, found {table['title']!r}")
    if profiles and profile not in profiles:
        raise unknown_name(f"profile of grid {name}", profile, profiles)
    values = {**table.get("axes", {}), **profiles.get(profile, {})}
    known = [f.name for f in fields(Axes)]
    for key in values:
        if key not in known:
            raise unknown_name(f"axis of grid {name}", key, known)
    read = {key: _value(name, key, value) for key, value in values.items()}
    norm = read.get("norm", LINF)
    if changes.get("norm", norm) != norm and "eps" not in changes:
        raise UsageError(
            f"grid {name}: its eps are budgets in {norm}; --norm {changes['norm']} needs --eps, for example "
            f"{'--eps 8' if changes['norm'] == LINF else '--eps 3.0'}"
        )
    if "dataset" in read:
        read["dataset"] = _dataset(read["dataset"], folder)
    read |= changes
    if "norm" in read and read["norm"] not in NORMS:
        raise unknown_name(f"norm of grid {name}", read["norm"], NORMS)
    read["eps"] = tuple(parse_eps(value, read.get("norm", LINF)) for value in read.get("eps", ()))
    axes = replace(Axes(), **read)
    folders = {key: folder for key in values if key not in changes}
    with files_from(folders.get("defenses")):
        axes = replace(axes, defenses=_expand_wildcards(axes.defenses))
    for label, shown in names.items():
        if not isinstance(shown, str):
            raise UsageError(f"grid {name}: 'names' is a table of texts; '{label}' is {shown!r}")
    return Grid(name, table.get("title", name), profile, _checked(name, axes), folders, names)


def _dataset(label: str, folder: Path) -> str:
    """A grid file's data set, a path as it is from the current folder."""
    if not label or label.startswith("~") or cut(label)[0] in datasets.entries or folder == Path():
        return label
    path = folder / label
    is_path = label.startswith(".") or label.lower().endswith(".csv")
    # A folder of that name in the current folder is another one.
    return str(path) if is_path or path.exists() or Path(label).exists() else label


def _value(grid: str, key: str, value: Any) -> Any:
    """A TOML value as the type its axis has."""
    numbers = isinstance(value, list) and all(
        isinstance(v, int | float | str) and not isinstance(v, bool) for v in value
    )
    words = isinstance(value, list) and all(isinstance(v, str) for v in value)
    lists = list(value.values()) if isinstance(value, dict) else [0]
    members = all(isinstance(each, list) and all(isinstance(name, str) for name in each) for each in lists)
    whole = isinstance(value, int) and not isinstance(value, bool)
    good, wanted = {
        **dict.fromkeys(("dataset", "norm", "note"), (isinstance(value, str), "a text")),
        **dict.fromkeys(("clean", "image_quality", "success", "cost"), (isinstance(value, bool), "true or false")),
        **dict.fromkeys(("defense_samples", "limit", "samples", "image_size"), (whole, "a whole number")),
        "eps": (numbers, "a list of numbers, like [8, 16]"),
        "ensembles": (members, 'a table of lists of models, like { both = ["a", "b"] }'),
    }.get(key, (words, "a list of names"))
    if not good:
        raise UsageError(f"grid {grid}: '{key}' is {wanted}, found {value!r}")
    return tuple(value) if isinstance(value, list) else value


def _expand_wildcards(labels: Sequence[str]) -> tuple[str, ...]:
    """Only those that can be used here: of every registered defense in the place of "*", and of names ending in "?"."""
    named = [label.removesuffix("?") for label in labels]
    rest = [name for name in sorted(defenses.entries) if name not in named] if "*" in labels else []
    usable = [name for name in rest if _usable(name, "*")]
    found: list[str] = []
    for label, name in zip(labels, named, strict=True):
        if label == "*":
            found += usable
        elif label == name or _usable(name, label):
            found.append(name)
    return tuple(found)


def _usable(name: str, label: str) -> bool:
    """Whether a defense purifies (or is asked for by name) and its weights are here; if they are not, says so."""
    try:
        value = defenses.resolve(name).value
        if label == "*" and not getattr(value, "purifies", True):
            return False
        value.resolved()
    except RdpBenchError as error:
        if label != "*" and not isinstance(error, BadModelError):
            raise
        log.warning("left out of '*': %s" if label == "*" else "left out: %s", error)
        return False
    return True


def _checked(grid: str, axes: Axes) -> Axes:
    if axes.defenses and UNDEFENDED not in axes.defenses:
        log.warning("no undefended row to compare with; --defense none brings it")
    for key in ("targets", "defenses", *(("sources", "eps") if axes.attacks else ())):
        if not getattr(axes, key):
            raise UsageError(f"grid {grid}: the axis '{key}' is empty; give it in the file or with --{key.rstrip('s')}")
    if not axes.attacks and not axes.clean:
        raise UsageError(f"grid {grid}: no attacks and clean = false leave nothing to run")
    if axes.success and not axes.clean:
        raise UsageError(f"grid {grid}: success is a share of images that are right when clean; it needs clean = true")
    if not axes.dataset:
        raise UsageError(f"grid {grid}: no data set; give it in the file or with --dataset")
    if not 1 <= axes.defense_samples <= 10_000:
        raise UsageError(
            f"grid {grid}: defense_samples is {axes.defense_samples}; a random defense is judged on at least one, at "
            "most 10000"
        )
    for key in ("limit", "samples"):
        if (count := getattr(axes, key)) is not None and count < 1:
            raise UsageError(f"grid {grid}: {key} is {count}; at least one image is needed")
    if axes.image_size is not None and axes.image_size < LEAST_SIZE:
        raise UsageError(f"image size is at least {LEAST_SIZE} pixels, found {axes.image_size}")
    for figure in axes.figures:
        if figure not in FIGURES:
            raise unknown_name(f"figure of grid {grid}", figure, FIGURES)
    for key in ("sources", "targets", "attacks", "defenses", "eps"):
        labels = getattr(axes, key) + (axes.baselines if key == "targets" else ())
        twice = {show(label) for label in labels if labels.count(label) > 1}
        if twice:
            raise UsageError(f"grid {grid}: {', '.join(sorted(twice))} stands twice in the axis '{key}'")
    return axes
