"""The rows of results.csv beyond the first of each cell, and all rows of a run as results.csv has them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rdp_bench.keys import Record
from rdp_bench.metrics.correctness import error_flags
from rdp_bench.results import rows
from rdp_bench.results.record import CellResult
from rdp_bench.results.rows import Row, Run
from rdp_bench.specs import CLEAN, CellKey

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pandas import DataFrame


def first_draw(predicted: "NDArray[Any]", label: "NDArray[Any]") -> Any:
    """Which images are wrong, `[n]` flags, in the first draw of `predicted`, `[n]` or `[n, draws]`."""
    return error_flags(predicted if predicted.ndim == 1 else predicted[:, 0], label)


def rows_beside(
    record: Record, line: Row, cell: CellResult, predicted: Any, label: Any, near: Mapping[str, Any] | None
) -> list[Row]:
    """The rows of a cell after its first one and its success rate.

    Args:
        record: the run record.
        line: the first row: `rows.row`.
        cell: the cell.
        predicted: `[n]` or `[n, draws]`; None without predictions.
        label: `[n]`, or None.
        near: `measurements.values` of its purified images; None if they are not measured.
    """
    found = rows.aggregation_rows(line, predicted, label) if cell.defense_samples > 1 else []
    if cell.attack != CLEAN and record["attacks"].get(cell.attack, {}).get("aims_at_targets"):
        found.append(rows.targeted_row(line, _hits(record, predicted)))
    if near is not None and shows_images(record, cell):
        found += rows.image_quality_rows(line, cell.image_quality_key or "", near)
    return found


def shows_images(record: Record, cell: CellResult) -> bool:
    """Whether the image quality of a purified set stands after this cell: that of the first target."""
    return bool(cell.image_quality_key) and cell.target == record["axes"]["targets"][0]


def success_rows(record: Record, first: Mapping[CellKey, Row], wrong: Mapping[CellKey, Any], key: CellKey) -> list[Row]:
    """The success rate of an attacked cell, if the run asks for it.

    Args:
        record: the run record.
        first: the first row of each cell.
        wrong: `first_draw` of each cell that is done.
        key: the cell.
    """
    if not record["axes"].get("success") or key.attack == CLEAN:
        return []
    clean = CellKey.clean(key.target, key.defense)
    return [rows.success_row(first[key], wrong.get(key), first[clean], wrong.get(clean))]


def every_row(run: Run) -> list[Row]:
    """All rows of a run, in the order of results.csv, from its predictions."""
    wrong: dict[CellKey, Any] = {key: run.wrong_first_sample(key) for key in run.wrong}
    found: list[Row] = []
    for cell in run.cells:
        predicted: Any = None
        label: Any = None
        if cell.key in run.wrong and run.stored:
            arrays = run.stored.evaluated(cell)
            predicted, label = arrays["predicted"], arrays["label"]
        near = run.image_quality.get(CellKey(cell.source, cell.attack, cell.eps, "-", cell.defense))
        found += [
            run.lines[cell.key],
            *success_rows(run.record, run.lines, wrong, cell.key),
            *rows_beside(run.record, run.lines[cell.key], cell, predicted, label, near),
        ]
    return found


def frame(run: Run) -> "DataFrame":
    """All rows of a run as pandas reads results.csv: numbers are numbers, NaN where there is none."""
    import pandas as pd  # half a second, which a command that does without it need not spend

    found = pd.DataFrame(every_row(run), columns=list(rows.COLUMNS))
    for name in ("eps", "value", "ci_low", "ci_high", "paper", "seconds"):
        found[name] = pd.to_numeric(found[name])
    return found


def _hits(record: Record, predicted: Any) -> Any:
    """Which images are taken for their target class, `[n]`; None without predictions."""
    if predicted is None:
        return None
    import numpy as np

    missed = error_flags(predicted, np.array(record["dataset"].get("targets", ())))
    return ~missed if missed.dtype == bool else 1 - missed
