"""Success rates of attacks: over images that are classified correctly without an attack, and towards target classes."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from rdp_bench.budgets import LINF
from rdp_bench.metrics import stats
from rdp_bench.reports.tables.table import Group, Row, Table, TableCell, eps_slug, not_done, setting, slug
from rdp_bench.results.rows import CellKey, Run, display_name, given_name
from rdp_bench.specs import UNDEFENDED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Flags = NDArray[np.bool_]

Count = Callable[[Run, CellKey], "Flags | None"]
"""On which of the images that count the attack succeeds; None if that is not known."""


def success_tables(run: Run) -> list[Table]:
    """Attack success, a table per target and eps; none unless the grid asks for it."""
    if not run.record["axes"].get("success"):
        return []
    attacks = run.attacks
    return _tables(run, attacks, "success", "Attack success", _SUCCESS, _lost)


def targeted_tables(run: Run) -> list[Table]:
    """Targeted success of the attacks that aim at target classes, a table per target and eps."""
    aiming = [name for name in run.axis("attacks") if run.record["attacks"].get(name, {}).get("aims_at_targets")]
    return _tables(run, aiming, "targeted", "Targeted success", _TARGETED, _hit)


_SUCCESS = (
    "Attack success rate in percent: of the images that the defended target classifies correctly without an attack, "
    "the share that it misclassifies under the attack. Higher means a stronger attack. Random defenses are evaluated "
    "on their first draw."
)
_TARGETED = (
    "Targeted success rate in percent: the share of all images that the target classifies as the data set's target "
    "class. Higher means a stronger attack. Random defenses are evaluated on their first draw."
)


def _lost(run: Run, cell_key: CellKey) -> "Flags | None":
    attacked, clean = (
        run.wrong_first_sample(cell_key),
        run.wrong_first_sample(CellKey.clean(cell_key.target, cell_key.defense)),
    )
    return None if attacked is None or clean is None else attacked[~clean]


def _hit(run: Run, cell_key: CellKey) -> "Flags | None":
    predicted = run.predicted.get(cell_key)
    return None if predicted is None else predicted == np.array(run.record["dataset"]["targets"])


def _tables(run: Run, attacks: list[str], name: str, title: str, caption: str, count: Count) -> list[Table]:
    cells = {cell.key: cell for cell in run.cells if cell.attack in attacks}
    defenses = sorted(run.axis("defenses"), key=lambda each: each != UNDEFENDED)
    found = []
    for target, eps in dict.fromkeys((cell_key.target, cell_key.eps) for cell_key in cells):
        where = setting(run, target, eps)
        groups = []
        for source in dict.fromkeys(cell_key.source for cell_key in cells):
            lines = []
            for defense in defenses:
                places = [CellKey(source, attack, eps, target, defense) for attack in attacks]
                if any(cell_key in cells for cell_key in places):
                    lines.append(Row(defense, [_entry(run, cell_key, count) for cell_key in places]))
            if lines:
                groups.append(Group(source, lines))
        key = slug(run.grid, name, target, eps_slug(run, eps))
        columns = [display_name(attack) for attack in attacks]
        keys = tuple(map(given_name, attacks))
        text = f"{caption} Setting: {where}."
        measure = "" if run.norm == LINF else f"{name}_{run.norm}"
        found.append(Table(key, f"{title}: {where}", text, name, columns, groups, [], measure, keys))
    return found


def _entry(run: Run, cell_key: CellKey, count: Count) -> TableCell:
    flags = count(run, cell_key)
    if flags is None:
        clean = CellKey.clean(cell_key.target, cell_key.defense)
        return not_done(run, [cell_key, clean] if count is _lost and cell_key in run.lines else [cell_key])
    if not len(flags):
        return TableCell("failed", "no image is classified correctly without an attack")
    hits = int(flags.sum())
    low, high = stats.wilson(hits, len(flags))
    return TableCell("done", "", 100 * hits / len(flags), 100 * low, 100 * high)
