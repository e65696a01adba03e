"""Success of attacks beside error over all images: over originally right images, and towards target classes."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from rdp_bench.budgets import LINF
from rdp_bench.metrics import stats
from rdp_bench.reports.tables.table import Entry, Exhibit, Group, Line, slug
from rdp_bench.results.rows import UNDEFENDED, Place, Run, pretty
from rdp_bench.specs import show

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Flags = NDArray[np.bool_]

Count = Callable[[Run, Place], "Flags | None"]
"""Which of the images that count the attack succeeds on; None where that is not known."""


def tables(run: Run) -> list[Exhibit]:
    """A table per target and eps: of success if the grid asks for it, of targeted success for attacks that have it."""
    aiming = [name for name, about in run.record["attacks"].items() if about.get("aims_at_targets")]
    attacks = [name for name in run.axis("attacks") if name != "clean"]
    found = (
        _tables(run, attacks, "success", "Attack success", _SUCCESS, _lost) if run.record["axes"].get("success") else []
    )
    return found + _tables(run, [a for a in attacks if a in aiming], "targeted", "Targeted success", _TARGETED, _hit)


_SUCCESS = (
    "Of the images that the target gets right behind the defense without an attack, the percentage that it gets wrong "
    "under the attack; higher is a stronger attack. Random defenses by their first draw."
)
_TARGETED = (
    "Percentage of all images that the target takes for the data set's target class. Random defenses by their first "
    "draw."
)


def _lost(run: Run, place: Place) -> "Flags | None":
    attacked, clean = run.mistaken(place), run.mistaken(place._replace(source="-", attack="clean", eps=0.0))
    return None if attacked is None or clean is None else attacked[~clean]


def _hit(run: Run, place: Place) -> "Flags | None":
    predicted = run.predicted.get(place)
    return None if predicted is None else predicted == np.array(run.record["dataset"]["targets"])


def _tables(run: Run, attacks: list[str], name: str, title: str, caption: str, count: Count) -> list[Exhibit]:
    cells = {place: cell for cell in run.record["cells"] if (place := Place.of(cell)).attack in attacks}
    defenses = sorted(run.axis("defenses"), key=lambda each: each != UNDEFENDED)
    found = []
    for target, eps in dict.fromkeys((place.target, place.eps) for place in cells):
        where = f"target {pretty(target)}, ε = {run.eps(eps)}"
        groups = []
        for source in dict.fromkeys(place.source for place in cells):
            lines = []
            for defense in defenses:
                places = [Place(source, attack, eps, target, defense) for attack in attacks]
                if any(place in cells for place in places):
                    lines.append(Line(defense, [_entry(count(run, place)) for place in places]))
            groups.append(Group(source, lines))
        key = slug(run.grid, name, target, f"{'' if run.norm == LINF else f'{run.norm}-'}eps{show(eps)}")
        columns = [pretty(attack) for attack in attacks]
        found.append(Exhibit(key, f"{title}: {where}", f"{caption} {where}.", name, columns, groups, []))
    return found


def _entry(flags: "Flags | None") -> Entry:
    if flags is None:
        return Entry("pending", "not run yet")
    if not len(flags):
        return Entry("failed", "no image is right without an attack")
    hits = int(flags.sum())
    low, high = stats.wilson(hits, len(flags))
    return Entry("done", "", 100 * hits / len(flags), 100 * low, 100 * high)
