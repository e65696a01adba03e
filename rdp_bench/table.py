"""Predictions -> numbers: the rows of results.csv, and what reports read of a run.

`row` and `write_results` serve the run and load neither pandas nor torch; `load` serves the reports.
"""

import contextlib
import csv
import io
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rdp_bench import stats
from rdp_bench.budgets import LINF, norm_of, show_eps
from rdp_bench.errors import RdpBenchError, UsageError, unknown
from rdp_bench.keys import Record
from rdp_bench.outcomes import WAYS, distances, wrong
from rdp_bench.specs import show
from rdp_bench.store import Store, alone, write_atomic
from rdp_bench.verdict import UNDEFENDED as UNDEFENDED

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from pandas import DataFrame

    Counts = NDArray[np.int64]
    Flags = NDArray[np.bool_]
    Rates = NDArray[Any]  # flags, or shares

COLUMNS = (
    "grid", "dataset", "n", "source", "attack", "eps", "defense", "target", "metric", "value", "ci_low", "ci_high",
    "paper", "status", "reason", "adv_key", "eval_key", "seconds",
)  # fmt: skip

FORMAT = 1
"""Of OUT/runs/*.json."""

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
    some of the data set's images still has the paper's cells; its interval says how far it can be trusted. The paper's
    budgets are L-infinity.
    """
    if norm_of(run) != LINF:
        return None
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
    Table 1 is over all 1000. Predictions `[n, draws]` give the mean over the draws, with an interval whose units
    are images. A cell that says "done" without predictions becomes a failed one. Under an L2 budget, of which eps says
    nothing by itself, the metric is error_l2.
    """
    place = Place.of(cell)
    metric = "accuracy" if place.attack == "clean" else f"error{_suffix(run)}"
    status, reason = cell["status"], cell.get("reason", "")
    value, low, high = "", "", ""
    if status == "done":
        if predicted is None or label is None or not len(predicted) == len(label) == run["dataset"]["n"]:
            have = 0 if predicted is None else len(predicted)
            status, reason = "failed", f"{have} of {run['dataset']['n']} predictions are stored; run the grid again"
        else:
            value, low, high = percent(wrong(predicted, label), metric)
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


def _suffix(run: Record) -> str:
    """What metrics of attacked cells end with: the norm, where it is not L-infinity."""
    norm = norm_of(run)
    return "" if norm == LINF else f"_{norm}"


def draw_rows(line: Row, predicted: "NDArray[np.int32] | None", label: "NDArray[np.int32] | None") -> list[Row]:
    """What `row` says of a cell of several draws, `predicted` `[n, draws]`, in each of the other `WAYS`."""
    rows = []
    for way in WAYS:
        value, low, high = "", "", ""
        if line["status"] == "done" and predicted is not None and label is not None:
            value, low, high = percent(wrong(predicted, label, way), line["metric"])
        found = {"metric": f"{line['metric']}_{way}", "value": value, "ci_low": low, "ci_high": high}
        rows.append({**line, **found, "paper": "", "seconds": "0.000"})
    return rows


def success_row(line: Row, attacked: "Flags | None", clean: "Flags | None") -> Row:
    """The success rate of the attack of an attacked cell's line, as a line of its own.

    Of the images that the cell's target gets right behind its defense without an attack, the share that it gets wrong
    under the attack; `n` is how many those are.

    Args:
        line: what `row` says of the cell.
        attacked: which images are wrong under the attack, `[n]`; of several draws, in the first. None: not known.
        clean: the same without the attack.
    """
    metric = line["metric"].replace("error", "success", 1)
    found = {**line, "metric": metric, "value": "", "ci_low": "", "ci_high": "", "paper": "", "seconds": "0.000"}
    if line["status"] != "done" or attacked is None:
        return found
    if clean is None:
        return found | {"status": "pending", "reason": "the same cell without an attack is not done"}
    lost = attacked[~clean]
    if not len(lost):
        return found | {"n": 0, "reason": "no image is right without an attack"}
    value, low, high = percent(lost, "error")
    return found | {"n": len(lost), "value": value, "ci_low": low, "ci_high": high}


def targeted_row(line: Row, hits: "Rates | None") -> Row:
    """The targeted success rate of an attacked cell's line, as a line of its own.

    Args:
        line: what `row` says of the cell.
        hits: which images the target takes for their target class, `[n]` flags, or shares of several draws.
    """
    metric = line["metric"].replace("error", "targeted_success", 1)
    value, low, high = percent(hits, "error") if hits is not None and line["status"] == "done" else ("", "", "")
    found = {"metric": metric, "value": value, "ci_low": low, "ci_high": high}
    return {**line, **found, "paper": "", "seconds": "0.000"}


def restoration_rows(line: Row, key: str, near: "Mapping[str, Rates]") -> list[Row]:
    """How near the images behind a cell's line come to the clean ones: means of `outcomes.distances`; no target."""
    shared = {**line, "target": "-", "ci_low": "", "ci_high": "", "paper": "", "status": "done", "reason": ""}
    norm = line["metric"].removeprefix("error") if line["metric"].startswith("error") else ""
    return [
        {**shared, "metric": metric + norm, "value": f"{values.mean():.4f}", "eval_key": key, "seconds": "0.000"}
        for metric, values in near.items()
    ]


def percent(errors: "Rates", metric: str) -> tuple[str, str, str]:
    """Mean and interval of `[n]` errors, or of accuracies, as results.csv has them: Wilson's where each is 0 or 1."""
    rates = errors if metric.startswith("error") else 1 - errors
    count, hits = len(rates), float(rates.sum())
    ends = stats.wilson(int(hits), count) if errors.dtype == bool else stats.mean_interval(rates)
    value, low, high = (f"{100 * part:.4f}" for part in (hits / count, *ends))
    return value, low, high


def write_results(out: Path, rows: Sequence[Row]) -> Path:
    """Write OUT/results.csv whole; lines of grids that `rows` says nothing about stay.

    Raises:
        UsageError: the file that is there has other columns; it is left as it is.
    """
    path = out / "results.csv"
    with alone(out):
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows([*_others(path, {line["grid"] for line in rows}), *rows])
        write_atomic(path, text.getvalue().encode())
    return path


def _others(path: Path, grids: set[str]) -> list[Row]:
    """The lines of all grids but these."""
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) == COLUMNS:
                return [line for line in reader if line["grid"] not in grids]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read ({error}); move it away, or name another --out") from error
    raise UsageError(f"{path} has other columns than results.csv; move it away, or name another --out")


# --- what reports read -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A run as its reports need it: the record, its tidy rows, and who was wrong on which image."""

    record: Record
    rows: list[Row]  # as in results.csv, one a cell
    wrong: "dict[Place, Rates]"  # [n] of every cell that is done: flags, or the share of several draws
    predicted: "dict[Place, NDArray[np.int32]]"  # [n], of the first draw
    ways: "dict[tuple[Place, str], Flags]" = field(default_factory=dict)  # of several draws: WAYS, and "first"
    restored: "dict[Place, dict[str, Rates]]" = field(default_factory=dict)
    """`outcomes.distances` of the purified images of a place whose target is "-"."""

    @property
    def grid(self) -> str:
        return str(self.record["grid"])

    @property
    def norm(self) -> str:
        """The norm of the run's budgets."""
        return norm_of(self.record)

    def eps(self, value: float) -> str:
        """A budget of the run in words: of other norms than L-infinity the name is said."""
        return show_eps(value, self.norm)

    @property
    def draws(self) -> int:
        """How many draws of a random defense the run judges."""
        return int(self.record["axes"].get("draws", 1))

    def errors(self, place: Place) -> "Counts":
        """How many of `draws` looks at each image were wrong, `[n]`; all or none where nothing is random."""
        return (self.wrong[place] * self.draws).round().astype(int)

    def mistaken(self, place: Place) -> "Flags | None":
        """Which images the target gets wrong, `[n]`, as they are kept for a look: behind the first draw."""
        return self.ways.get((place, "first"), self.wrong.get(place))

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


def chosen(runs: list[Run], only: Sequence[str]) -> list[Run]:
    """The runs of the grids in `only`; all where it names none.

    Raises:
        UsageError: a grid of `only` has no run.
    """
    grids = [run.grid for run in runs]
    for name in only:
        if name not in grids:
            raise unknown("run of grid", name, grids)
    return [run for run in runs if not only or run.grid in only]


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
    run = Run(record, [], {}, {})
    for cell in record["cells"]:
        arrays: dict[str, Any] = {}
        if cell["status"] == "done":
            try:
                arrays = dict(store.open("eval", cell["eval_key"] or "").read())
            except RdpBenchError as error:
                cell = {**cell, "status": "failed", "reason": str(error)}
        line = row(record, cell, arrays.get("predicted"), arrays.get("label"))
        run.rows.append(line)
        place = Place.of(cell)
        if line["status"] == "done":
            predicted, label = arrays["predicted"], arrays["label"]
            run.wrong[place] = wrong(predicted, label)
            run.predicted[place] = predicted if predicted.ndim == 1 else predicted[:, 0]
            if predicted.ndim > 1:
                run.ways.update({(place, way): wrong(predicted, label, way) for way in WAYS})
                run.ways[place, "first"] = wrong(predicted[:, 0], label)
        image = place._replace(target="-")
        if (key := cell.get("restoration_key")) and image not in run.restored:
            with contextlib.suppress(RdpBenchError):  # not there: not measured
                run.restored[image] = distances(store.open("restoration", key).read())
    return run


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
