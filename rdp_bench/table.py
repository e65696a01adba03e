"""Predictions -> numbers: the rows of results.csv, and the paired comparisons that reports mark.

`row` and `write_results` serve the run and load neither pandas nor torch; `load` serves the reports.
"""

import csv
import io
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rdp_bench import stats
from rdp_bench.errors import RdpBenchError, UsageError
from rdp_bench.keys import Record
from rdp_bench.specs import show
from rdp_bench.store import Store, write_atomic

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from pandas import DataFrame

    Flags = NDArray[np.bool_]
    Counts = NDArray[np.int64]

COLUMNS = (
    "grid", "dataset", "n", "source", "attack", "eps", "defense", "target", "metric", "value", "ci_low", "ci_high",
    "paper", "status", "reason", "adv_key", "eval_key", "seconds",
)  # fmt: skip

FORMAT = 1
"""Of OUT/runs/*.json."""

UNDEFENDED = "none"

Row = dict[str, Any]


class Place(NamedTuple):
    """Where a number stands: all of a cell but its run."""

    source: str
    attack: str
    eps: float
    target: str
    defense: str

    @classmethod
    def of(cls, cell: Mapping[str, Any]) -> "Place":
        return cls(cell["source"], cell["attack"], float(cell["eps"]), cell["target"], cell["defense"])


# --- the paper's numbers ---------------------------------------------------------------------------------


@cache
def paper() -> Record:
    """data/paper/paper.toml: captions, notes, and how names are written."""
    text = files("rdp_bench.data").joinpath("paper", "paper.toml").read_text("utf-8")
    return tomllib.loads(text)


@cache
def _printed(name: str) -> dict[Place, tuple[str, float]]:
    text = files("rdp_bench.data").joinpath("paper", f"{name}.csv").read_text("utf-8")
    return {Place.of(line): (line["metric"], float(line["value"])) for line in csv.DictReader(io.StringIO(text))}


def printed(run: Record, place: Place, metric: str) -> float | None:
    """The paper's number for this very cell, in `metric`; None where it prints none.

    The run's own table is asked first, then the others in their order: two of them share cells. A run on
    some of the data set's images still has the paper's cells; its interval says how far it can be trusted.
    """
    if place.source in run.get("sources", {}):
        source = run["sources"][place.source]
        place = place._replace(source=place.source.replace(" ", ""))
        if not source.get("through") and sorted(source.get("members", [])) == sorted(paper()["ensemble"]):
            place = place._replace(source="ensemble")
        elif place.source == "ensemble":
            return None
    tables = paper()["tables"]
    order = sorted(tables, key=lambda name: (name != run["grid"], name))
    if place.attack == "average":
        order = ["table1-averages"]
    for name in order:
        found = _printed(name).get(place)
        if found and tables[name.removesuffix("-averages")]["dataset"] == run["dataset"]["name"]:
            return found[1] if found[0] == metric else round(100 - found[1], 4)
    return None


def pretty(name: str) -> str:
    """A registry name as the paper writes it; its parameters, and other names, as they are.

    >>> pretty("mi-fgsm"), pretty("fd(inner=25,outer=30)"), pretty("effnet-lite2")
    ('MI-FGSM', 'FD(inner=25, outer=30)', 'effnet-lite2')
    """
    names: dict[str, str] = paper()["names"]
    stem, bracket, rest = name.partition("(")
    return names.get(stem, stem) + bracket + re.sub(r",\s*", ", ", rest)


# --- results.csv -----------------------------------------------------------------------------------------


def row(run: Record, cell: Record, predicted: "NDArray[np.int32] | None", label: "NDArray[np.int32] | None") -> Row:
    """One line of results.csv; `predicted` and `label` are `[n]`, or None where there is no prediction.

    An error counts every image, also those that the target gets wrong without an attack: the paper's
    Table 1 is over all 1000. A cell that says "done" without predictions becomes a failed one.
    """
    place = Place.of(cell)
    metric = "accuracy" if place.attack == "clean" else "error"
    status, reason = cell["status"], cell.get("reason", "")
    value, low, high = "", "", ""
    if status == "done":
        if predicted is None or label is None or not len(predicted) == len(label) == run["dataset"]["n"]:
            have = 0 if predicted is None else len(predicted)
            status, reason = "failed", f"{have} of {run['dataset']['n']} predictions are stored; run the grid again"
        else:
            hits = int((predicted != label).sum() if metric == "error" else (predicted == label).sum())
            rate = hits / len(predicted)
            value, low, high = (f"{100 * part:.4f}" for part in (rate, *stats.wilson(hits, len(predicted))))
    number = printed(run, place, metric)
    return {
        "grid": run["grid"],
        "dataset": run["dataset"]["name"],
        "n": run["dataset"]["n"],
        "source": place.source,
        "attack": place.attack,
        "eps": show(place.eps),
        "defense": place.defense,
        "target": place.target,
        "metric": metric,
        "value": value,
        "ci_low": low,
        "ci_high": high,
        "paper": "" if number is None else show(number),
        "status": status,
        "reason": " ".join(str(reason).split()),
        "adv_key": cell.get("adv_key") or "",
        "eval_key": cell.get("eval_key") or "",
        "seconds": f"{cell.get('seconds') or 0:.3f}",
    }


def write_results(out: Path, rows: Sequence[Row]) -> Path:
    """Write OUT/results.csv whole; lines of grids that `rows` says nothing about stay.

    Raises:
        UsageError: the file that is there has other columns; it is left as it is.
    """
    path = out / "results.csv"
    grids = {line["grid"] for line in rows}
    kept: list[Row] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise UsageError(f"{path} has other columns than results.csv; move it away, or name another --out")
            kept = [line for line in reader if line["grid"] not in grids]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows([*kept, *rows])
    write_atomic(path, text.getvalue().encode())
    return path


# --- what reports read -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A run as its reports need it: the record, its tidy rows, and who was wrong on which image."""

    record: Record
    rows: list[Row]  # as in results.csv, one a cell
    wrong: "dict[Place, Flags]"  # [n] of every cell that is done
    predicted: "dict[Place, NDArray[np.int32]]"

    @property
    def grid(self) -> str:
        return str(self.record["grid"])

    @cached_property
    def frame(self) -> "DataFrame":
        """The rows as pandas reads results.csv: numbers are numbers, NaN where there is none."""
        import pandas as pd  # half a second, which a report that does without it need not spend

        frame = pd.DataFrame(self.rows, columns=list(COLUMNS))
        for name in ("eps", "value", "ci_low", "ci_high", "paper", "seconds"):
            frame[name] = pd.to_numeric(frame[name])
        return frame

    def axis(self, name: str) -> list[str]:
        """The labels of an axis in the run's order, cells beyond the recorded axes included."""
        singular = {"sources": "source", "targets": "target", "attacks": "attack", "defenses": "defense"}[name]
        seen = [cell[singular] for cell in self.record["cells"]]
        return [label for label in dict.fromkeys([*self.record["axes"].get(name, []), *seen]) if label in seen]


def load(out: Path, store: Store) -> list[Run]:
    """Every run recorded under `out`, by grid name. A cell whose predictions are damaged is a failed one.

    Raises:
        UsageError: there is no run, or a record cannot be read.
    """
    paths = sorted((out / "runs").glob("*.json"))
    if not paths:
        raise UsageError(f"no run in {out}; make one: rdp-bench run --grid table1 --out {out}")
    return [_load(path, store) for path in paths]


def _load(path: Path, store: Store) -> Run:
    record = _record(path)
    rows: list[Row] = []
    wrong: dict[Place, Flags] = {}
    predicted: dict[Place, NDArray[np.int32]] = {}
    for cell in record["cells"]:
        arrays: dict[str, Any] = {}
        if cell["status"] == "done":
            try:
                arrays = dict(store.open("eval", cell["eval_key"] or "").read())
            except RdpBenchError as error:
                cell = {**cell, "status": "failed", "reason": str(error)}
        line = row(record, cell, arrays.get("predicted"), arrays.get("label"))
        rows.append(line)
        if line["status"] == "done":
            wrong[Place.of(cell)] = arrays["predicted"] != arrays["label"]
            predicted[Place.of(cell)] = arrays["predicted"]
    return Run(record, rows, wrong, predicted)


def _record(path: Path) -> Record:
    try:
        record: Record = json.loads(path.read_text("utf-8"))
        if record["format"] != FORMAT:
            raise UsageError(f"{path}: format {record['format']}, this version reads {FORMAT}; run the grid again")
        for cell in record["cells"]:
            Place.of(cell), cell["status"], cell["eval_key"]
        for name in ("axes", "environment", "models", "sources", "attacks", "defenses"):
            record[name].items()
        for name in ("grid", "profile", "command", "seed", "started", "seconds", "warnings"):
            record[name]
        for name in ("name", "size", "images"):
            record["dataset"][name]
        int(record["dataset"]["n"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is not a run record ({error!r}); run the grid again, or move it away") from error
    return record


# --- comparisons -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What may be said of one defense beside the others of its column.

    p-values are Holm-adjusted; None where there is nothing to compare with.
    """

    best: bool = False  # the lowest error of all defenses
    tied: bool = False  # not the lowest, but no test tells it from the lowest
    above: bool = False  # a higher error than no defense
    worse: bool = False  # ... and the test agrees
    p_none: float | None = None
    p_best: float | None = None


def judge(columns: "Sequence[Mapping[str, Counts]]") -> list[dict[str, Verdict]]:
    """Verdicts for the columns of one table; a column holds, per defense, each image's errors `[n]`.

    Each defense meets no defense and the column's best defense, image by image: McNemar's exact test
    where a column is one attack, the exact sign-flip test of the sums where it is several. Holm runs
    over each of the two questions for all columns given.
    """
    against_none: dict[tuple[int, str], float] = {}
    against_best: dict[tuple[int, str], float] = {}
    leaders: list[set[str]] = []
    for i, column in enumerate(columns):
        rivals = {name: errors for name, errors in column.items() if name != UNDEFENDED}
        totals = {name: int(errors.sum()) for name, errors in rivals.items()}
        least = min(totals.values(), default=0)
        # One defense alone is neither best nor tied.
        leaders.append({name for name in totals if totals[name] == least} if len(totals) > 1 else set())
        for name, errors in rivals.items():
            if UNDEFENDED in column:
                against_none[i, name] = paired(errors, column[UNDEFENDED])
            if leaders[i] and name not in leaders[i]:
                # Of several leaders the one that is hardest to tell apart: a tie with any is a tie.
                against_best[i, name] = max(paired(errors, rivals[leader]) for leader in leaders[i])
    p_none, p_best = _holm(against_none), _holm(against_best)
    verdicts: list[dict[str, Verdict]] = []
    for i, column in enumerate(columns):
        none = int(column[UNDEFENDED].sum()) if UNDEFENDED in column else None
        verdicts.append({})
        for name, errors in column.items():
            above = none is not None and int(errors.sum()) > none
            verdicts[i][name] = Verdict(
                best=name in leaders[i],
                tied=p_best.get((i, name), 0.0) > 1 - stats.LEVEL,
                above=above,
                worse=above and p_none[i, name] <= 1 - stats.LEVEL,
                p_none=p_none.get((i, name)),
                p_best=p_best.get((i, name)),
            )
    return verdicts


def paired(first: "Counts", second: "Counts") -> float:
    """Two-sided p of two defenses' errors on the same images `[n]`: McNemar's test, or the sign-flip test of sums."""
    difference = first.astype(int) - second.astype(int)
    if abs(difference).max(initial=0) <= 1:
        return stats.mcnemar(int((difference > 0).sum()), int((difference < 0).sum()))
    return stats.sign_flip(difference)


def _holm(p_values: dict[tuple[int, str], float]) -> dict[tuple[int, str], float]:
    return dict(zip(p_values, stats.holm(list(p_values.values())), strict=True))
