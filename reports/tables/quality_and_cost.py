"""Image quality and cost: how near a defense brings images to the clean ones, and what it takes.

A run has these where its grid asks for `image_quality` and `cost`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rdp_bench.budgets import LINF
from rdp_bench.metrics import stats
from rdp_bench.reports.tables.table import Group, Row, Table, TableCell, slug
from rdp_bench.results.rows import UNDEFENDED, CellKey, Run, display_name
from rdp_bench.specs import CLEAN, show

_ABSENT = TableCell(reason="not measured")
_DISTANCES = {"psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS"}
_COST = ("ms", "× time", "k param.", "MiB")


@dataclass(frozen=True)
class Setting:
    """What a table's group, or a figure's panel, is about: every attack on one source against one target."""

    source: str
    target: str
    eps: float

    def places(self, run: Run, defense: str, target: str = "") -> list[CellKey]:
        """A cell an attack; `target` "-" for what all targets share."""
        attacks = [attack for attack in run.axis("attacks") if attack != "clean"]
        return [CellKey(self.source, attack, self.eps, target or self.target, defense) for attack in attacks]


def tables(run: Run) -> list[Table]:
    """A table a target and eps: rows are defenses by source; none where nothing of it was asked for."""
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
        where = f"target {display_name(target)}, ε = {run.eps(eps)}"
        caption = (
            f"Error in percent{' over all attacks' * several}; how far attacked images, and clean ones, are from the "
            f"{run.record['dataset']['n']} clean images once purified; what the defense takes; {where}."
        )
        near = [_DISTANCES[name] for name in _measured(run)]
        columns = ["error", *near, *(f"clean {name}" for name in near), *_COST * bool(cost)]
        name = slug(run.grid, "beyond", target, f"eps{show(eps)}" if run.norm == LINF else f"{run.norm}-eps{show(eps)}")
        found.append(Table(name, f"Restoration and cost: {where}", caption, "beyond", columns, groups, _notes(run)))
    return found


def run_settings(run: Run) -> list[Setting]:
    """Every source, target and eps of the run whose target has more than one defense."""
    cells = [cell for cell in run.cells if cell.attack != CLEAN]
    targets = [name for name in run.axis("targets") if len(defenses_against(run, name)) > 1]
    found = dict.fromkeys(Setting(cell.source, cell.target, cell.eps) for cell in cells)
    return [setting for setting in found if setting.target in targets]


def defenses_against(run: Run, target: str) -> list[str]:
    """The defenses judged with this target, the undefended row first."""
    here = {cell.defense for cell in run.cells if cell.target == target}
    return sorted((name for name in run.axis("defenses") if name in here), key=lambda name: name != UNDEFENDED)


def average_error(run: Run, places: Sequence[CellKey]) -> tuple[float, float, float] | None:
    """Mean and interval in percent over these cells, or None where one is not done."""
    if not all(cell_key in run.wrong for cell_key in places):
        return None
    rates = np.mean([run.wrong[cell_key] for cell_key in places], axis=0)
    low, high = stats.mean_interval(rates)
    return 100 * float(rates.mean()), 100 * low, 100 * high


def _table_cells(run: Run, setting: Setting, defense: str) -> list[TableCell]:
    error = average_error(run, setting.places(run, defense))
    entries = [TableCell("done", "", *error) if error else TableCell("pending", "not every attack is done")]
    if run.image_quality:
        entries += _restored(run, setting.places(run, defense, "-"))
        entries += _restored(run, [CellKey("-", "clean", 0.0, "-", defense)])
    if about := run.record.get("cost"):
        entries += _cost(about["defenses"].get(defense, {}))
    return entries


def _measured(run: Run) -> list[str]:
    """The distances that the run has of some purified set."""
    return [name for name in _DISTANCES if any(name in near for near in run.image_quality.values())]


def _restored(run: Run, places: Sequence[CellKey]) -> list[TableCell]:
    """Means over the images of these places, one a distance that the run has."""

    def entry(name: str) -> TableCell:
        if not all(name in run.image_quality.get(cell_key, {}) for cell_key in places):
            return _ABSENT
        value = float(np.mean([run.image_quality[cell_key][name] for cell_key in places]))
        if name == "psnr" and value == np.inf:
            return TableCell(reason="the very image")
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
        notes.append(
            "PSNR in dB, the others in percent, means over images of what the classifier is shown, unrounded; SSIM has "
            "a Gaussian window of 11 pixels, σ 1.5, over red, green and blue each. Enlarged images are brought back. "
            "Moving or mirroring pixels, as R&P does, is far from the image by design. Of a random defense it is the "
            "first draw."
        )
        if "lpips" in _measured(run):
            notes.append("LPIPS with AlexNet: the lower, the more alike.")
        else:
            notes.append("LPIPS is left out: no package installs AlexNet's ImageNet weights. See rdp-bench doctor.")
    if "cost" in run.record and not run.record["cost"]:
        notes.append("What the defenses cost is not measured yet: run the grid again.")
    if about := run.record.get("cost"):
        notes.append(
            f"Cost: on {machine_in_words(about)}, images of {about['size']} pixels, the best of five. ms: purifying "
            f"one image. × time: of a prediction by {display_name(about['target'])} behind the defense, over its "
            f"{about['forward_ms']:.1f} ms without one. k param.: thousand parameters of the defense's network. MiB: "
            "the most that purifying a batch held at once, beyond what was held before."
        )
    return notes


def machine_in_words(about: dict[str, Any]) -> str:
    """What the costs were measured on."""
    threads = f"{about['threads']} thread{'s' * (about['threads'] != 1)}"
    return f"{about['processor']} ({about['device']}, {threads}), batches of {about['batch']}"
