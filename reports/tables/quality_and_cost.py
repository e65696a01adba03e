"""Image quality of purified images, and the cost of defenses, for grids that ask for `image_quality` or `cost`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rdp_bench.metrics import stats
from rdp_bench.metrics.measurements import MEASUREMENTS
from rdp_bench.reports.tables.table import Group, Row, Table, TableCell, eps_slug, not_done, setting, slug
from rdp_bench.results.rows import CellKey, Run, display_name
from rdp_bench.specs import CLEAN, UNDEFENDED

_ABSENT = TableCell(reason="not measured")
_COST = {"ms": "ms", "× time": "time_ratio", "k param.": "parameters_k", "MiB": "memory_mib"}
"""Columns, and their names in CSV files."""


@dataclass(frozen=True)
class Setting:
    """One group of a table, or one panel of a figure: all attacks on one source, for one target and eps."""

    source: str
    target: str
    eps: float

    def places(self, run: Run, defense: str, target: str = "") -> list[CellKey]:
        """One cell per attack; `target` is "-" for measurements, which all targets share."""
        attacks = run.attacks
        return [CellKey(self.source, attack, self.eps, target or self.target, defense) for attack in attacks]


def tables(run: Run) -> list[Table]:
    """One table per target and eps, rows are defenses by source; none if the grid asks for neither."""
    cost = run.record.get("cost")
    if not run.image_quality and not cost:
        return []
    settings = run_settings(run)
    found = []
    for target, eps in dict.fromkeys((each.target, each.eps) for each in settings):
        groups = []
        for each in settings:
            if (each.target, each.eps) == (target, eps):
                lines = [Row(name, _table_cells(run, each, name)) for name in defenses_against(run, target)]
                groups.append(Group(each.source, lines))
        several = len(settings[0].places(run, "")) > 1
        where = setting(run, target, eps)
        caption = (
            f"Error in percent{', averaged over the attacks' * several}; quality of the purified attacked and the "
            f"purified clean images, compared with the {run.record['dataset']['n']} clean images; cost of the defense. "
            f"Setting: {where}."
        )
        near = [MEASUREMENTS[name].title for name in _measured(run)]
        columns = ["error", *near, *(f"clean {name}" for name in near), *(_COST if cost else ())]
        measured = _measured(run)
        keys = ("error", *measured, *(f"clean_{name}" for name in measured), *(_COST.values() if cost else ()))
        name, title = slug(run.grid, "beyond", target, eps_slug(run, eps)), f"Image quality and cost: {where}"
        found.append(Table(name, title, caption, "beyond", columns, groups, _notes(run), keys=keys))
    return found


def run_settings(run: Run) -> list[Setting]:
    """Every source, target and eps of the run, for targets with more than one defense."""
    cells = [cell for cell in run.cells if cell.attack != CLEAN]
    targets = [name for name in run.axis("targets") if len(defenses_against(run, name)) > 1]
    found = dict.fromkeys(Setting(cell.source, cell.target, cell.eps) for cell in cells)
    return [setting for setting in found if setting.target in targets]


def defenses_against(run: Run, target: str) -> list[str]:
    """The defenses that were evaluated with this target, the undefended row first."""
    here = {cell.defense for cell in run.cells if cell.target == target}
    return sorted((name for name in run.axis("defenses") if name in here), key=lambda name: name != UNDEFENDED)


def average_error(run: Run, places: Sequence[CellKey]) -> tuple[float, float, float] | None:
    """Mean and interval in percent over these cells, or None if one is not done."""
    if not all(cell_key in run.wrong for cell_key in places):
        return None
    rates = np.mean([run.wrong[cell_key] for cell_key in places], axis=0)
    low, high = stats.mean_interval(rates)
    return 100 * float(rates.mean()), 100 * low, 100 * high


def _table_cells(run: Run, setting: Setting, defense: str) -> list[TableCell]:
    places = setting.places(run, defense)
    error = average_error(run, places)
    entries = [TableCell("done", "", *error) if error else not_done(run, places)]
    if run.image_quality:
        entries += _restored(run, setting.places(run, defense, "-"))
        entries += _restored(run, [CellKey.clean("-", defense)])
    if about := run.record.get("cost"):
        entries += _cost(about["defenses"].get(defense, {}))
    return entries


def _measured(run: Run) -> list[str]:
    """The measurements that the run has of some purified set, in the order of `MEASUREMENTS`."""
    return [name for name in MEASUREMENTS if any(name in near for near in run.image_quality.values())]


def _restored(run: Run, places: Sequence[CellKey]) -> list[TableCell]:
    """One cell per measurement of the run: its aggregate over the images of these cells."""

    def entry(name: str) -> TableCell:
        if not all(name in run.image_quality.get(cell_key, {}) for cell_key in places):
            return _ABSENT
        value = MEASUREMENTS[name].aggregate(np.array([run.image_quality[cell_key][name] for cell_key in places]))
        if value == np.inf:
            return TableCell(reason="some image is unchanged")
        return TableCell("done", "", value) if np.isfinite(value) else _ABSENT

    return [entry(name) for name in _measured(run)]


def _cost(found: dict[str, Any]) -> list[TableCell]:
    units = {"ms": 1.0, "ratio": 1.0, "parameters": 1e-3, "memory": 2.0**-20}
    missing = TableCell(reason=found.get("reason", "not measured"))
    values = [(found.get(name), unit) for name, unit in units.items()]
    return [missing if value is None else TableCell("done", "", unit * value) for value, unit in values]


def _notes(run: Run) -> list[str]:
    notes = []
    if run.image_quality:
        measured = _measured(run)
        notes.append(
            " ".join(MEASUREMENTS[name].note for name in measured)
            + " They are means over the images that the classifier receives, not rounded to 8 bits; enlarged images "
            "are resized to the clean image's size first. Defenses that move or mirror pixels, such as R&P, differ "
            "from the clean image by design. Random defenses are measured on their first draw."
        )
        notes += [each.absent for name, each in MEASUREMENTS.items() if name not in measured and each.absent]
    if "cost" in run.record and not run.record["cost"]:
        notes.append("Costs are not measured yet; run the grid again.")
    if about := run.record.get("cost"):
        notes.append(
            f"Cost is the best of five measurements on {machine_in_words(about)}, with images of {about['size']} "
            f"pixels. "
            f"ms: time to purify one image. × time: time of one prediction by {display_name(about['target'])} with the "
            f"defense, relative to {about['forward_ms']:.1f} ms without it. k param.: parameters of the defense's "
            "network, in thousands. MiB: peak memory of purifying one batch, beyond what was allocated before."
        )
    return notes


def machine_in_words(about: dict[str, Any]) -> str:
    """The machine that costs were measured on."""
    threads = f"{about['threads']} thread{'s' * (about['threads'] != 1)}"
    return f"{about['processor']} ({about['device']}, {threads}), batches of {about['batch']}"
