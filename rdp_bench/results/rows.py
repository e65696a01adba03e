"""Predictions -> numbers: the rows of results.csv, and what reports read of a run.

`row` and `write_results` serve the run and load neither pandas nor torch; `load` serves the reports.
"""

import contextlib
import csv
import io
import logging
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdp_bench import csvtext
from rdp_bench.budgets import LINF, norm_of, show_eps
from rdp_bench.cache.store import Store, exclusive_lock, write_atomic
from rdp_bench.environment import differing, merged
from rdp_bench.errors import RdpBenchError, UsageError, unknown_name
from rdp_bench.keys import Record
from rdp_bench.metrics import measurements, stats
from rdp_bench.metrics.correctness import AGGREGATIONS, error_flags
from rdp_bench.results.prediction_file import tidy
from rdp_bench.results.predictions import Predictions
from rdp_bench.results.record import CellResult, read_run
from rdp_bench.specs import CLEAN, cut, plain, show, split
from rdp_bench.specs import UNDEFENDED as UNDEFENDED
from rdp_bench.specs import CellKey as CellKey
from rdp_bench.terminal import utf8

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Counts = NDArray[np.int64]
    Flags = NDArray[np.bool_]
    Rates = NDArray[Any]  # flags, or shares

log = logging.getLogger(__name__)

COLUMNS = (
    "grid", "dataset", "n", "source", "attack", "eps", "defense", "target", "metric", "value", "ci_low", "ci_high",
    "paper", "status", "reason", "adv_key", "eval_key", "seconds",
)  # fmt: skip

Row = dict[str, Any]


# --- the paper's numbers ---------------------------------------------------------------------------------


@cache
def paper_metadata() -> Record:
    """data/paper/paper.toml: captions, notes, and how names are written."""
    text = files("rdp_bench.data").joinpath("paper", "paper.toml").read_text("utf-8")
    return tomllib.loads(text)


@cache
def _paper_values(name: str) -> dict[CellKey, tuple[str, float]]:
    text = files("rdp_bench.data").joinpath("paper", f"{name}.csv").read_text("utf-8")
    return {CellKey.of(line): (line["metric"], float(line["value"])) for line in csv.DictReader(io.StringIO(text))}


PAPERS_SIZE = 299
"""Side of the paper's images in pixels."""


def paper_value(run: Record, cell_key: CellKey, metric: str) -> float | None:
    """The paper's number for this very cell, in `metric`; None where it prints none.

    The run's own table is asked first, then the others in their order: two of them share cells. A run on
    some of the data set's images still has the paper's cells; its interval says how far it can be trusted. The paper's
    budgets are L-infinity.
    """
    if norm_of(run) != LINF or run["dataset"].get("image_size") not in (None, PAPERS_SIZE):
        return None
    if cell_key.source in run.get("sources", {}):
        source = run["sources"][cell_key.source]
        cell_key = replace(cell_key, source=plain(cell_key.source))
        if not source.get("attacked_defense") and sorted(source.get("members", [])) == sorted(
            paper_metadata()["ensemble"]
        ):
            cell_key = replace(cell_key, source="ensemble")
        elif cell_key.source == "ensemble":
            return None
    tables = paper_metadata()["tables"]
    order = sorted(tables, key=lambda name: (name != run["grid"], name))
    if cell_key.attack == "average":
        order = ["table1-averages"]
    for name in order:
        found = _paper_values(name).get(cell_key)
        if found and tables[name.removesuffix("-averages")]["dataset"] == run["dataset"]["name"]:
            return found[1] if found[0] == metric else round(100 - found[1], 4)
    return None


_names: ContextVar[Mapping[str, str] | None] = ContextVar("names", default=None)


def common_names(*names: Mapping[str, str], beside: Iterable[str] = ()) -> dict[str, str]:
    """The names of labels on a page about several runs: what the records of the runs call `names`.

    Where they contradict each other, labels have no name: two names of a label, two labels of a name that no run calls
    both so, or a name that a label of `beside`, which has none itself, is written as.
    """
    given = {(label, name) for each in names for label, name in each.items()}
    labels = Counter(label for label, _ in given)
    meant: dict[str, set[tuple[str, str]]] = {}
    for pair in given:
        meant.setdefault(pair[1], set()).add(pair)
    shared = {name for name, pairs in meant.items() if not any(pairs <= each.items() for each in names)}
    token = _names.set({})
    usual = {display_name(label) for label in beside if plain(label) not in labels}
    _names.reset(token)
    return {label: name for label, name in given if labels[label] == 1 and name not in {*shared, *usual}}


@contextlib.contextmanager
def shown_names(*names: Mapping[str, str], beside: Iterable[str] = ()) -> Iterator[None]:
    """Inside this block, `display_name` writes labels as `common_names` says."""
    token = _names.set(common_names(*names, beside=beside))
    try:
        yield
    finally:
        _names.reset(token)


def given_name(label: str) -> str:
    """The name that `shown_names` gives a label, or the entries in it; the label where there is none."""
    return named(label, _names.get() or {})


def named(label: str, names: Mapping[str, str]) -> str:
    """A label by its name; or its entries by theirs, with their parameters.

    >>> named("mine(a=1,b=2)>>jpeg", {"mine": "Ours"}), named("fd(inner=25,outer=30)", {"mine": "Ours"})
    ('Ours(a=1, b=2) >> jpeg', 'fd(inner=25,outer=30)')
    """
    if (given := names.get(plain(label))) is not None:
        return given
    try:
        parts = split(label, ">>")
        if not any(cut(part)[0] in names for part in parts):
            return label
        return " >> ".join(_named_entry(part, names) for part in parts)
    except UsageError:  # a name of a plugin or a file that is no label
        return label


def _named_entry(part: str, names: Mapping[str, str]) -> str:
    stem, inside = cut(part)
    return names.get(stem, stem) + ("" if inside is None else f"({', '.join(split(inside, ','))})")


def display_name(name: str) -> str:
    """A label as its user or the paper writes it; its parameters, and other names, as they are.

    >>> display_name("mi-fgsm"), display_name("fd(inner=25,outer=30)"), display_name("effnet-lite2")
    ('MI-FGSM', 'FD(inner=25, outer=30)', 'effnet-lite2')
    >>> display_name("jpeg>>rdp")
    'JPEG >> RDP'
    """
    names = {**paper_metadata()["names"], **(_names.get() or {})}
    try:
        return names.get(plain(name)) or " >> ".join(_named_entry(part, names) for part in split(name, ">>"))
    except UsageError:  # a name of a plugin or a file that is no label
        return name


# --- results.csv -----------------------------------------------------------------------------------------


def row(run: Record, cell: CellResult, predicted: "NDArray[np.int32] | None", label: "NDArray[np.int32] | None") -> Row:
    """One line of results.csv; `predicted` and `label` are `[n]`, or None where there is no prediction.

    An error counts every image, also those that the target gets wrong without an attack: the paper's
    Table 1 is over all 1000. Predictions `[n, draws]` give the mean over the draws, with an interval whose units
    are images. A cell that says "done" without predictions becomes a failed one. Under an L2 budget, of which eps says
    nothing by itself, the metric is error_l2.
    """
    metric = "accuracy" if cell.attack == CLEAN else f"error{_suffix(run)}"
    status: str = cell.status
    reason = cell.reason
    value, low, high = "", "", ""
    if status == "done":
        if predicted is None or label is None or not len(predicted) == len(label) == run["dataset"]["n"]:
            have = 0 if predicted is None else len(predicted)
            status, reason = "failed", f"{have} of {run['dataset']['n']} predictions are stored; run the grid again"
        else:
            value, low, high = percent(error_flags(predicted, label), metric)
    number = paper_value(run, cell.key, metric)
    return {
        "grid": run["grid"],
        "dataset": run["dataset"]["name"],
        "n": run["dataset"]["n"],
        "source": cell.source,
        "attack": cell.attack,
        "eps": show(cell.eps),
        "defense": cell.defense,
        "target": cell.target,
        "metric": metric,
        "value": value,
        "ci_low": low,
        "ci_high": high,
        "paper": "" if number is None else show(number),
        "status": status,
        "reason": " ".join(reason.split()),
        "adv_key": cell.adv_key or "",
        "eval_key": cell.eval_key or "",
        "seconds": f"{cell.seconds:.3f}",
    }


def _suffix(run: Record) -> str:
    """What metrics of attacked cells end with: the norm, where it is not L-infinity."""
    norm = norm_of(run)
    return "" if norm == LINF else f"_{norm}"


def aggregation_rows(line: Row, predicted: "NDArray[np.int32] | None", label: "NDArray[np.int32] | None") -> list[Row]:
    """What `row` says of a cell of several draws, `predicted` `[n, draws]`, in each of the other `AGGREGATIONS`."""
    rows = []
    for aggregation in AGGREGATIONS:
        value, low, high = "", "", ""
        if line["status"] == "done" and predicted is not None and label is not None:
            value, low, high = percent(error_flags(predicted, label, aggregation), line["metric"])
        found = {"metric": f"{line['metric']}_{aggregation}", "value": value, "ci_low": low, "ci_high": high}
        rows.append({**line, **found, "paper": "", "seconds": "0.000"})
    return rows


def success_row(line: Row, attacked: "Flags | None", unharmed: Row, clean: "Flags | None") -> Row:
    """The success rate of the attack of an attacked cell's line, as a line of its own.

    Of the images that the cell's target gets right behind its defense without an attack, the share that it gets wrong
    under the attack; `n` is how many those are.

    Args:
        line: what `row` says of the cell.
        attacked: which images are wrong under the attack, `[n]`; of several draws, in the first. None: not known.
        unharmed: what `row` says of the same cell without the attack.
        clean: which images are wrong there.
    """
    metric = line["metric"].replace("error", "success", 1)
    found = {**line, "metric": metric, "value": "", "ci_low": "", "ci_high": "", "paper": "", "seconds": "0.000"}
    if line["status"] != "done" or attacked is None:
        return found
    if clean is None:
        state = "failed" if unharmed["status"] == "failed" else "pending"
        return found | {"status": state, "reason": f"the same cell without an attack is {_state(unharmed)}"}
    lost = attacked[~clean]
    if not len(lost):
        return found | {"n": 0, "reason": "no image is right without an attack"}
    value, low, high = percent(lost, "error")
    return found | {"n": len(lost), "value": value, "ci_low": low, "ci_high": high}


def _state(line: Row) -> str:
    return f"{line['status']}{': ' if line['reason'] else ''}{line['reason']}"


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


def image_quality_rows(line: Row, key: str, near: "Mapping[str, Rates]") -> list[Row]:
    """The measurements of the purified images of a cell, `near` as `measurements.values` returns it; no target.

    Args:
        line: what `row` says of the cell.
        key: of the artefact that holds them.
        near: one number per image, by measurement.
    """
    shared = {**line, "target": "-", "ci_low": "", "ci_high": "", "paper": "", "status": "done", "reason": ""}
    norm = line["metric"].removeprefix("error") if line["metric"].startswith("error") else ""
    return [
        {**shared, "metric": name + norm, "value": f"{measured:.4f}", "eval_key": key, "seconds": "0.000"}
        for name, measured in (
            (name, measurements.MEASUREMENTS[name].aggregate(values)) for name, values in near.items()
        )
    ]


def percent(errors: "Rates", metric: str) -> tuple[str, str, str]:
    """Mean and interval of `[n]` errors, or of accuracies, as results.csv has them: Wilson's where each is 0 or 1."""
    rates = errors if metric.startswith("error") else 1 - errors
    count, hits = len(rates), float(rates.sum())
    ends = stats.wilson(int(hits), count) if errors.dtype == bool else stats.mean_interval(rates)
    value, low, high = (f"{100 * part:.4f}" for part in (hits / count, *ends))
    return value, low, high


def write_results(out: Path, rows: Sequence[Row]) -> Path:
    """Write OUT/results.csv whole; lines of other grids stay if OUT/runs has their record.

    Raises:
        UsageError: the file that is there has other columns; it is left as it is.
    """
    path = out / "results.csv"
    with exclusive_lock(out):
        others = {record.stem for record in (out / "runs").glob("*.json")} - {line["grid"] for line in rows}
        write_atomic(path, utf8(csvtext.records(COLUMNS, [*_others(path, others), *rows])))
    return path


def forget(out: Path, grid: str) -> None:
    """Delete a run from OUT: its record, its predictions and its lines of results.csv.

    Raises:
        UsageError: as `write_results`.
    """
    (out / "runs" / f"{grid}.json").unlink(missing_ok=True)
    tidy(out, grid, None)
    write_results(out, ())


def _others(path: Path, grids: set[str]) -> list[Row]:
    """The lines of these grids."""
    if not path.exists():
        return []
    try:
        columns, lines = csvtext.read(path.read_bytes().decode("utf-8"))
        if columns == COLUMNS:
            return [line for line in lines if line["grid"] in grids]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read ({error}); move it away, or name another --out") from error
    raise UsageError(f"{path} has other columns than results.csv; move it away, or name another --out")


# --- what reports read -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A run as its reports need it: the record, its cells and rows, and who was wrong on which image."""

    record: Record  # `results.record.RunRecord` as JSON, without the cells
    cells: list[CellResult]
    rows: list[Row]  # as in results.csv, one a cell
    wrong: "dict[CellKey, Rates]"  # [n] of every cell that is done: flags, or the share of several draws
    predicted: "dict[CellKey, NDArray[np.int32]]"  # [n], of the first draw
    by_aggregation: "dict[tuple[CellKey, str], Flags]" = field(
        default_factory=dict
    )  # of several draws: AGGREGATIONS, and "first"
    image_quality: "dict[CellKey, dict[str, Rates]]" = field(default_factory=dict)
    """`measurements.values` of the purified images of a cell; the cell's target is "-"."""
    unread: dict[CellKey, str] = field(default_factory=dict)
    """Why what the record calls done could not be read, by place; image quality has the target "-"."""
    made: list[Record] = field(default_factory=list)
    """What made the stored batches that the numbers come from: versions, device, threads, time."""
    stored: "Predictions | None" = None
    """Where the predictions are read from: OUT, or the cache."""

    @property
    def grid(self) -> str:
        return str(self.record["grid"])

    @property
    def names(self) -> dict[str, str]:
        """How reports write labels, where that is not the usual way."""
        return {str(label): str(name) for label, name in self.record.get("names", {}).items()}

    @property
    def made_between(self) -> tuple[str, str] | None:
        """When the first and the last stored batch behind the numbers was made; None where no batch says."""
        times = sorted(str(made["time"]) for made in self.made if "time" in made)
        return (times[0], times[-1]) if times else None

    @property
    def norm(self) -> str:
        """The norm of the run's budgets."""
        return norm_of(self.record)

    def eps(self, value: float) -> str:
        """A budget of the run in words: of other norms than L-infinity the name is said."""
        return show_eps(value, self.norm)

    @property
    def defense_samples(self) -> int:
        """How many draws of a random defense the run evaluates."""
        return int(self.record["axes"].get("defense_samples", 1))

    def errors(self, cell_key: CellKey) -> "Counts":
        """In how many draws each image is wrong, `[n]`; in all or none where nothing is random."""
        return (self.wrong[cell_key] * self.defense_samples).round().astype(int)

    def wrong_first_sample(self, cell_key: CellKey) -> "Flags | None":
        """Which images the target gets wrong, `[n]`, as they are kept for a look: behind the first draw."""
        return self.by_aggregation.get((cell_key, "first"), self.wrong.get(cell_key))

    @cached_property
    def lines(self) -> dict[CellKey, Row]:
        """The rows by cell."""
        return {cell.key: line for cell, line in zip(self.cells, self.rows, strict=True)}

    @property
    def attacks(self) -> list[str]:
        """The attacks in the run's order, without "clean"."""
        return [name for name in self.axis("attacks") if name != CLEAN]

    def axis(self, name: str) -> list[str]:
        """The labels of an axis in the run's order, cells beyond the recorded axes included."""
        singular = {"sources": "source", "targets": "target", "attacks": "attack", "defenses": "defense"}[name]
        seen = [getattr(cell, singular) for cell in self.cells]
        return [label for label in dict.fromkeys([*self.record["axes"].get(name, []), *seen]) if label in seen]


def select_runs(runs: list[Run], only: Sequence[str]) -> list[Run]:
    """The runs of the grids in `only`; all where it names none.

    Raises:
        UsageError: a grid of `only` has no run.
    """
    grids = [run.grid for run in runs]
    for name in only:
        if name not in grids:
            raise unknown_name("run", name, grids)
    return [run for run in runs if not only or run.grid in only]


def load(out: Path, store: Store) -> list[Run]:
    """Every run recorded under `out`, by grid name, with the predictions in OUT or else those in `store`.

    A cell whose predictions cannot be read is a failed one.

    Raises:
        UsageError: there is no run, a record cannot be read or was edited, or is not named by its grid.
    """
    paths = sorted((out / "runs").glob("*.json"))
    if not paths:
        raise UsageError(f"{out} holds no run; start with: rdp-bench run table1 --out {out}")
    return [load_run(path, store) for path in paths]


def load_run(path: Path, store: Store | None) -> Run:
    """The run of one record, OUT/runs/<grid>.json; without a store, OUT must hold its predictions.

    Raises:
        UsageError: the record cannot be read or was edited.
    """
    stored = read_run(path)
    record = stored.header
    predictions = Predictions(path, record, store)
    run = Run(record, stored.cells, [], {}, {}, stored=predictions)
    for cell in stored.cells:
        key = cell.key
        arrays: dict[str, Any] = {}
        asked_done = cell.status == "done"
        if asked_done:
            try:
                arrays = predictions.evaluated(cell)
            except RdpBenchError as error:
                cell = replace(cell, status="failed", reason=str(error))
        line = row(record, cell, arrays.get("predicted"), arrays.get("label"))
        if asked_done and line["status"] != "done":
            run.unread[key] = line["reason"]
        run.rows.append(line)
        if line["status"] == "done":
            predicted, label = arrays["predicted"], arrays["label"]
            run.wrong[key] = error_flags(predicted, label)
            run.predicted[key] = predicted if predicted.ndim == 1 else predicted[:, 0]
            if predicted.ndim > 1:
                for aggregation in AGGREGATIONS:
                    run.by_aggregation[key, aggregation] = error_flags(predicted, label, aggregation)
                run.by_aggregation[key, "first"] = error_flags(predicted[:, 0], label)
        image = replace(key, target="-")
        if cell.image_quality_key and image not in run.image_quality and image not in run.unread:
            try:
                run.image_quality[image] = predictions.image_quality(cell)
            except RdpBenchError as error:
                if asked_done:  # else it was not measured either
                    run.unread[image] = str(error)
    run.made.extend(predictions.made)
    if run.made:
        record["environment"] = merged(run.made)
    if predictions.remark:
        log.warning("%s", predictions.remark)
        record["warnings"] = [*record["warnings"], predictions.remark]
    if run.unread:
        record["warnings"] = [*record["warnings"], lost(run)]
    if apart := differing(run.made):
        told = "; ".join(f"{name} {text}" for name, text in apart.items())
        record["warnings"] = [
            *record["warnings"],
            f"These numbers were not all made under the same conditions: {told}.",
        ]
    return run


def lost(run: Run) -> str:
    """How many results the run record calls done and could not be read, and why the first of them could not."""
    cell_key, reason = next(iter(run.unread.items()))
    return (
        f"{len(run.unread)} of the results that the record of {run.grid} calls done could not be read; run the grid "
        "again. "
        f"The first: {cell_key.defense}, {cell_key.attack}, {cell_key.target}: {reason}"
    )
