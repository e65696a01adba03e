"""Every resolved parameter of a run's attacks, for the appendix of a paper."""

from collections.abc import Iterable
from typing import Any

from rdp_bench.reports.tables.table import Group, Row, Table, TableCell, slug
from rdp_bench.results.rows import Run, display_name, given_name
from rdp_bench.specs import show

_NAMES = {
    "norm": "norm",
    "steps": "steps",
    "alpha": "step size α",
    "step_ratio": "step size × steps / ε",
    "momentum": "momentum μ",
    "label": "label attacked",
    "kernel_size": "kernel size",
    "diversity_prob": "diversity probability",
    "diversity_size": "diversity size, × image",
    "resize_back": "resized back",
    "scale_copies": "scale copies",
    "nesterov": "Nesterov",
    "random_start": "random start",
}
"""How papers write parameters; others are written as the code names them."""
_NOTE = "Sizes and steps are for images in [0, 1]; ε is in /255, or in the norm that it names."


def parameters(run: Run) -> Table | None:
    """Rows are parameters, columns attacks; groups are eps where a parameter depends on it. None without attacks."""
    attacks = run.attacks
    resolved = {name: run.record["attacks"].get(name, {}).get("resolved") or {} for name in attacks}
    every = list(dict.fromkeys(eps for found in resolved.values() for eps in found))
    if not attacks or not every:
        return None
    apart = [eps for eps in every if any(found.get(eps) != found.get(every[0]) for found in resolved.values())]
    groups = []
    for eps in [every[0], *apart]:
        here = {name: _flat(found.get(eps, {})) for name, found in resolved.items()}
        names = dict.fromkeys(parameter for found in here.values() for parameter in found)
        rows = [
            Row("", [_cell(here[attack].get(parameter)) for attack in attacks], title=_NAMES.get(parameter, parameter))
            for parameter in names
        ]
        alike = [each for each in every if each not in apart] if eps == every[0] else [eps]
        groups.append(Group(f"ε = {_levels(run, alike)}" if apart else "-", rows))
    levels = _levels(run, every)
    where = "" if apart else f" They are the same at every ε of the run ({levels})."
    return Table(
        slug(run.grid, "attack-parameters"),
        "Attack parameters",
        f"Resolved parameters of the attacks at ε = {levels}. {_NOTE}{where * (len(every) > 1)}",
        "parameters",
        [display_name(name) for name in attacks],
        groups,
        [],
        keys=tuple(map(given_name, attacks)),
        head="Parameter",
    )


def _levels(run: Run, eps: Iterable[str]) -> str:
    return ", ".join(run.eps(float(each)) for each in eps)


def _flat(record: dict[str, Any], path: str = "") -> dict[str, Any]:
    """A nested record with dotted names."""
    lines: dict[str, Any] = {}
    for name, value in record.items():
        lines |= _flat(value, f"{path}{name}.") if isinstance(value, dict) else {f"{path}{name}": value}
    return lines


def _cell(value: Any) -> TableCell:
    if value is None:
        return TableCell()
    if isinstance(value, bool):
        return TableCell(text="yes" if value else "no")
    if isinstance(value, int | float):
        return TableCell(text=f"{value:.3g}" if 0 < abs(value) < 1e-4 else show(round(value, 6)))
    return TableCell(text=", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value))
