"""Comparison of two runs: cells in both, differences between their records, cells in only one."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdp_bench import csvtext
from rdp_bench.cache.store import Store, write_atomic
from rdp_bench.errors import RdpBenchError, UsageError, unknown_name
from rdp_bench.metrics import stats
from rdp_bench.metrics.significance import paired
from rdp_bench.reports.page import flat, write
from rdp_bench.results.rows import CellKey, Row, Run, common_names, display_name, given_name, load, shown_names
from rdp_bench.specs import CLEAN, show, show_level

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Index = NDArray[np.intp]

COLUMNS = (
    "grid", "source", "attack", "eps", "defense", "target", "metric", "a", "b", "difference", "ci_low", "ci_high", "p",
    "test", "images", "differs", "status_a", "status_b", "reason",
)  # fmt: skip
PAIRED, APART = "paired", "two-sample"

# Of a record, what makes one run another experiment.
_TELLING = (
    "profile", "dataset", "seed", "precision", "axes", "sources", "models", "attacks", "defenses", "environment",
)  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """A cell that both runs have, in percent; B minus A with its interval, where both are done.

    `same`: the same key and the same errors. `p` is Holm-adjusted over the others of the grid; None where the images
    are not the same: then only the interval speaks.
    """

    place: CellKey
    metric: str
    status: tuple[str, str]
    values: tuple[float | None, float | None]
    same: bool = False
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    gap: str = ""
    """Why there is no difference."""

    @property
    def differs(self) -> bool:
        """Whether the two differ significantly."""
        if self.p is not None:
            return self.p <= 1 - stats.LEVEL
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


@dataclass(frozen=True)
class Comparison:
    """Two runs of one grid."""

    grid: str
    images: int
    """How many images both used: the numbers are of these alone. 0: none, or a run does not name its images."""
    pairs: list[Pair]
    records: list[tuple[str, str, str]]  # name, in A, in B
    only: tuple[list[CellKey], list[CellKey]]
    names: Mapping[str, str] = field(default_factory=dict)
    """What the runs call labels, where they agree."""

    @property
    def compared(self) -> int:
        """How many cells of both have a difference: both are done and their predictions could be read."""
        return sum(pair.difference is not None for pair in self.pairs)

    @property
    def gaps(self) -> list[Pair]:
        """The others."""
        return [pair for pair in self.pairs if pair.difference is None]

    @property
    def test(self) -> str:
        return PAIRED if self.images else APART


def compare(a: Run, b: Run) -> Comparison:
    """Every cell of both, largest difference first; paired image by image over the images that both used.

    Raises:
        UsageError: their budgets have different norms.
    """
    if a.norm != b.norm:
        raise UsageError(
            f"the two runs of {a.grid} have budgets in {a.norm} and in {b.norm}, so equal eps cannot be compared"
        )
    common = _common(a, b)
    rows = [{CellKey.of(row): row for row in run.rows} for run in (a, b)]
    pairs = [
        _pair(a, b, cell_key, rows[0][cell_key], rows[1][cell_key], common)
        for cell_key in rows[0]
        if cell_key in rows[1]
    ]
    adjusted = iter(stats.holm([pair.p for pair in pairs if pair.p is not None]))
    pairs = [pair if pair.p is None else replace(pair, p=next(adjusted)) for pair in pairs]
    pairs.sort(key=lambda pair: (not pair.differs, -abs(pair.difference or 0.0)))
    only = ([p for p in rows[0] if p not in rows[1]], [p for p in rows[1] if p not in rows[0]])
    labels = {label for key in (*rows[0], *rows[1]) for label in (key.source, key.attack, key.defense, key.target)}
    names = common_names(a.names, b.names, beside=labels)
    return Comparison(a.grid, len(common[0]) if common else 0, pairs, differing(a.record, b.record), only, names)


def _common(a: Run, b: Run) -> "tuple[Index, Index] | None":
    """Where the images of both are, in each; None where they have none in common, or do not name them.

    An image is one with the same pixels and the same label.
    """
    import numpy as np

    if all(a.record["dataset"][name] == b.record["dataset"][name] for name in ("images", "n")):
        everything = np.arange(int(a.record["dataset"]["n"]))
        return everything, everything
    places = []
    for run in (a, b):
        file = run.stored.file if run.stored else None
        if file is None:
            return None
        images = zip(file.image_hashes, file.label.tolist(), strict=True)
        places.append({image: i for i, image in enumerate(images)})
    shared = [image for image in places[0] if image in places[1]]
    if not shared:
        return None
    first, second = (np.array([place[image] for image in shared]) for place in places)
    return first, second


def _pair(a: Run, b: Run, cell_key: CellKey, first: Row, second: Row, common: "tuple[Index, Index] | None") -> Pair:
    values = tuple(float(row["value"]) if row["value"] else None for row in (first, second))
    pair = Pair(cell_key, first["metric"], (first["status"], second["status"]), (values[0], values[1]))
    if gap := "; ".join(f"{side}: {found}" for side, run in (("A", a), ("B", b)) if (found := _gap(run, cell_key))):
        return replace(pair, gap=gap)
    error = first["metric"].startswith("error")
    if common is None:
        low, high = newcombe(*((float(r["value"]), float(r["ci_low"]), float(r["ci_high"])) for r in (first, second)))
        return replace(pair, difference=float(second["value"]) - float(first["value"]), low=low, high=high)
    wrong = [run.wrong[cell_key][places].astype(float) for run, places in zip((a, b), common, strict=True)]
    if len(common[0]) < max(map(len, (a.wrong[cell_key], b.wrong[cell_key]))):
        means = [100 * float(each.mean()) for each in wrong]
        pair = replace(pair, values=(means[0], means[1]) if error else (100 - means[0], 100 - means[1]))
    if first["eval_key"] == second["eval_key"] and (wrong[0] == wrong[1]).all():
        return replace(pair, same=True, difference=0.0, low=0.0, high=0.0)
    # Over as many draws each, so that runs of one draw and of ten can be told apart or not.
    errors = (
        run.errors(cell_key)[places] * other.defense_samples
        for run, other, places in ((a, b, common[0]), (b, a, common[1]))
    )
    change = (wrong[1] - wrong[0]) * (1 if error else -1)
    low, high = stats.mean_interval(change, least=-1)
    return replace(pair, difference=100 * float(change.mean()), low=100 * low, high=100 * high, p=paired(*errors))


def _gap(run: Run, cell_key: CellKey) -> str:
    """Why a cell of a run has no predictions; empty if it has them."""
    if cell_key in run.wrong:
        return ""
    if reason := run.unread.get(cell_key):
        return f"predictions cannot be read: {reason}"
    return next(cell.status for cell in run.cells if cell.key == cell_key)


def newcombe(a: tuple[float, float, float], b: tuple[float, float, float]) -> tuple[float, float]:
    """Interval of b - a of two independent samples from (value, low, high) of each: Newcombe 1998, method 10."""
    (x, x_low, x_high), (y, y_low, y_high) = a, b
    low = y - x - math.hypot(y - y_low, x_high - x)
    return low, y - x + math.hypot(y_high - y, x - x_low)


def differing(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Names and values that two records do not share: versions, seed, images, parameters, weights.

    A model, attack or defense that one of them lacks is no difference of parameters and is left to the cells.
    """
    lines: list[tuple[str, str, str]] = []
    for kind in _TELLING:
        first, second = a.get(kind), b.get(kind)
        if kind in ("models", "sources", "attacks", "defenses") and first and second:
            shared = [name for name in first if name in second]
            first, second = ({name: part[name] for name in shared} for part in (first, second))
        left, right = flat({kind: first}), flat({kind: second})
        names = (name for name in dict.fromkeys([*left, *right]) if left.get(name) != right.get(name))
        lines += [(name, left.get(name, "–"), right.get(name, "–")) for name in names]
    return lines


def comparison_csv(comparisons: Sequence[Comparison]) -> str:
    """Every common cell as a line of CSV, then the cells that only one run has."""
    return csvtext.rows(COLUMNS, [line for found in comparisons for line in _lines(found)])


def _lines(found: Comparison) -> Iterator[Sequence[str]]:
    with shown_names(found.names):
        for pair in found.pairs:
            numbers = (*pair.values, pair.difference, pair.low, pair.high)
            yield (
                found.grid, *_words(pair.place), pair.metric, *("" if x is None else f"{x:.4f}" for x in numbers),
                "" if pair.p is None else f"{pair.p:.6g}", found.test, str(found.images or ""),
                str(pair.differs).lower(), *pair.status, pair.gap,
            )  # fmt: skip
        for places, status in zip(found.only, (("", "absent"), ("absent", "")), strict=True):
            for cell_key in places:
                yield (found.grid, *_words(cell_key), *[""] * 10, *status, "")


def _words(cell_key: CellKey) -> tuple[str, ...]:
    names = map(given_name, (cell_key.source, cell_key.attack, cell_key.defense, cell_key.target))
    source, attack, defense, target = names
    return source, attack, show(cell_key.eps), defense, target


def render(
    folders: tuple[Path, Path], store: Store, out: Path, only: Sequence[str] = (), to: Path | None = None
) -> tuple[Path, str]:
    """Write compare.html and compare.csv into OUT/report, or into `to`, from the runs of two OUT folders.

    Returns:
        The page's path, and how many cells could be compared, in words, with the first that could not.

    Raises:
        UsageError: no run in one of them, or no grid in common.
        RdpBenchError: no cell could be compared; nothing is written.
    """
    runs = [{run.grid: run for run in load(folder, store)} for folder in folders]
    for name in only:
        if not any(name in grids for grids in runs):
            raise unknown_name("run of grid", name, [*runs[0], *runs[1]])
    shared = [grid for grid in runs[0] if grid in runs[1] and (not only or grid in only)]
    if not shared:
        names = [", ".join(grids) for grids in runs]
        wanted = f" named {', '.join(only)}" if only else ""
        raise UsageError(
            f"no grid{wanted} in common: {folders[0]} holds {names[0]}, {folders[1]} holds {names[1]}; "
            "run the same grid into both"
        )
    found = [compare(runs[0][grid], runs[1][grid]) for grid in shared]
    said = _compared(found, store)
    report = to or out / "report"
    views = [{"id": f"grid-{i}", "found": f, "a": runs[0][f.grid], "b": runs[1][f.grid]} for i, f in enumerate(found)]
    write_atomic(report / "compare.csv", comparison_csv(found).encode())
    names = [folder.name or str(folder) for folder in folders]
    page = write("compare.html.j2", views=views, names=names, label=_label)
    write_atomic(report / "compare.html", page.encode())
    return report / "compare.html", said


def _compared(found: Sequence[Comparison], store: Store) -> str:
    """How many cells of both runs were compared, and the first that was not with its reason.

    Raises:
        RdpBenchError: none was.
    """
    cells, compared = (sum(counts) for counts in zip(*((len(f.pairs), f.compared) for f in found), strict=True))
    gaps = [(pair, f.names) for f in found for pair in f.gaps]
    first = ""
    if gaps:
        with shown_names(gaps[0][1]):
            first = f"the first: {_label(gaps[0][0].place)} ({gaps[0][0].gap})"
    if not cells:
        raise RdpBenchError(
            "0 cells could be compared: the two runs have no cell in common; run the same grid into both"
        )
    if not compared:
        raise RdpBenchError(
            f"0 of {cells} cells of both runs could be compared: they are not done, or their predictions are neither "
            f"in the folders nor in the cache {store.root}; name the cache of the runs with --cache, or run again; "
            f"{first}"
        )
    return f"{compared} of {cells} cells of both runs were compared" + f"; {len(gaps)} were not, {first}" * bool(gaps)


def _label(cell_key: CellKey) -> str:
    """A cell in words."""
    if cell_key.attack == CLEAN:
        return f"clean, {display_name(cell_key.defense)}, {display_name(cell_key.target)}"
    crafted = f"{display_name(cell_key.attack)} from {display_name(cell_key.source)}, ε = {show_level(cell_key.eps)}"
    return f"{crafted}, {display_name(cell_key.defense)}, {display_name(cell_key.target)}"
