"""Beyond the error: how near a defense brings images to the clean ones, what it costs, and error against cost.

A run has these where its grid asks for `image_quality` and `cost`.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rdp_bench.budgets import LINF
from rdp_bench.metrics import stats
from rdp_bench.reports.figures import drawing
from rdp_bench.reports.figures.drawing import ACCENT, COLUMN, INK, PAGE, SMALL, STYLE, ReportFigure, short, tidy
from rdp_bench.reports.tables.table import Group, Row, Table, TableCell, slug
from rdp_bench.results.rows import UNDEFENDED, CellKey, Run, display_name
from rdp_bench.specs import show

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = ("source", "target", "eps", "defense", "error", "ci_low", "ci_high", "ms", "front")

_MARKS: tuple[Any, ...] = (*"sD^vP*X<>hdp", (4, 1, 0))  # a circle is no defense
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
    settings = _settings(run)
    found = []
    for target, eps in dict.fromkeys((each.target, each.eps) for each in settings):
        groups = []
        for each in settings:
            if (each.target, each.eps) == (target, eps):
                lines = [Row(name, _table_cells(run, each, name)) for name in _defenses(run, target)]
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


def pareto(run: Run) -> ReportFigure | None:
    """Error against the time of a prediction, a panel a setting; None where times were not asked for."""
    if not run.record.get("cost"):
        return None
    points = [point for each in _settings(run) for point in _points(run, each)]
    if not points:
        return None
    about = run.record["cost"]
    caption = (
        "Average error over the attacks, with 95 % intervals, against the time of one prediction: defense and "
        f"{display_name(about['target'])} together, on {_machine(about)}. Filled and joined: no other defense is both "
        "faster "
        "and less often wrong."
    )
    return ReportFigure("pareto", caption, _draw(points), tidy(COLUMNS, points))


def _settings(run: Run) -> list[Setting]:
    cells = [cell for cell in run.record["cells"] if cell["attack"] != "clean"]
    targets = [name for name in run.axis("targets") if len(_defenses(run, name)) > 1]
    found = dict.fromkeys(Setting(cell["source"], cell["target"], float(cell["eps"])) for cell in cells)
    return [setting for setting in found if setting.target in targets]


def _defenses(run: Run, target: str) -> list[str]:
    here = {cell["defense"] for cell in run.record["cells"] if cell["target"] == target}
    return sorted((name for name in run.axis("defenses") if name in here), key=lambda name: name != UNDEFENDED)


def _error(run: Run, places: Sequence[CellKey]) -> tuple[float, float, float] | None:
    """Mean and interval in percent over these cells, or None where one is not done."""
    if not all(cell_key in run.wrong for cell_key in places):
        return None
    rates = np.mean([run.wrong[cell_key] for cell_key in places], axis=0)
    low, high = stats.mean_interval(rates)
    return 100 * float(rates.mean()), 100 * low, 100 * high


def _table_cells(run: Run, setting: Setting, defense: str) -> list[TableCell]:
    error = _error(run, setting.places(run, defense))
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
            f"Cost: on {_machine(about)}, images of {about['size']} pixels, the best of five. ms: purifying one image. "
            f"× time: of a prediction by {display_name(about['target'])} behind the defense, over its "
            f"{about['forward_ms']:.1f} ms without one. k param.: thousand parameters of the defense's network. MiB: "
            "the most that purifying a batch held at once, beyond what was held before."
        )
    return notes


def _machine(about: dict[str, Any]) -> str:
    threads = f"{about['threads']} thread{'s' * (about['threads'] != 1)}"
    return f"{about['processor']} ({about['device']}, {threads}), batches of {about['batch']}"


# --- figure ----------------------------------------------------------------------------------------------


def _points(run: Run, setting: Setting) -> list[dict[str, Any]]:
    """Every defense that has both numbers, the faster first; `front` where none is faster and as good."""
    about = run.record["cost"]
    found = []
    for name in _defenses(run, setting.target):
        error, ratio = _error(run, setting.places(run, name)), about["defenses"].get(name, {}).get("ratio")
        if error and ratio is not None:
            value, low, high = (round(part, 4) for part in error)
            ms = round(ratio * about["forward_ms"], 3)
            found.append({"defense": name, "error": value, "ci_low": low, "ci_high": high, "ms": ms})
    found.sort(key=lambda point: (point["ms"], point["error"]))
    least = float("inf")
    for point in found:
        point["front"] = int(point["error"] < least)
        least = min(least, point["error"])
    return [
        {"source": setting.source, "target": setting.target, "eps": run.eps(setting.eps), **point} for point in found
    ]


def _draw(points: list[dict[str, Any]]) -> drawing.Saved:
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    panels: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for point in points:
        panels.setdefault((point["source"], point["target"], point["eps"]), []).append(point)
    names = list(dict.fromkeys(point["defense"] for point in sorted(points, key=lambda point: point["error"])))
    marks = {UNDEFENDED: "o", **dict(zip((n for n in names if n != UNDEFENDED), itertools.cycle(_MARKS), strict=False))}
    across = min(len(panels), 2)
    down = -(-len(panels) // across)
    with mpl.rc_context(STYLE):
        height = 0.3 + 2.2 * down + 0.19 * -(-len(names) // (3 * across))
        figure = Figure((COLUMN if across == 1 else PAGE, height), layout="constrained")
        axes = list(figure.subplots(down, across, squeeze=False, sharex=True).flat)
        for ax, ((source, target, eps), here) in zip(axes, panels.items(), strict=False):
            _panel(ax, here, marks)
            ax.set_title(f"{short(display_name(source), 18)} to {short(display_name(target), 18)}, ε = {eps}")
        for ax in axes[len(panels) :]:
            ax.set_visible(False)
        figure.supxlabel("ms a prediction", fontsize=STYLE["font.size"])
        figure.supylabel("average error, %", fontsize=STYLE["font.size"])
        style: dict[str, Any] = {"linestyle": "none", "markersize": 4, "color": INK}
        lines = [Line2D([], [], marker=marks[name], **style) for name in names]
        labels = [short(display_name(name)) for name in names]
        figure.legend(lines, labels, loc="outside upper center", ncols=3 * across, frameon=False, fontsize=SMALL)
        return drawing.save(figure)


def _panel(ax: "Axes", points: list[dict[str, Any]], marks: dict[str, Any]) -> None:
    """Filled and joined: the front; hollow: the others."""
    x, y = [point["ms"] for point in points], [point["error"] for point in points]
    front = [point for point in points if point["front"]]
    ax.plot([p["ms"] for p in front], [p["error"] for p in front], color=ACCENT, linewidth=1, drawstyle="steps-post")
    ax.vlines(x, [p["ci_low"] for p in points], [p["ci_high"] for p in points], colors=INK, linewidth=0.3)
    for point in points:
        edge, face = (ACCENT, ACCENT) if point["front"] else (INK, "none")
        ax.scatter(
            point["ms"], point["error"], s=20, marker=marks[point["defense"]], c=face, edgecolors=edge, linewidths=0.8,
            zorder=3,
        )  # fmt: skip
    left, right = min(x) / 1.5, max(x) * 1.5
    ticks = [step * 10**power for power in range(-3, 7) for step in (1, 3) if left <= step * 10**power <= right]
    ax.set_xscale("log")
    ax.set_xticks(ticks, [show(tick) for tick in ticks])
    ax.set_xticks([], minor=True)
    ax.set_xlim(left, right)
    ax.set_ylim(max(0, min(y) - 12), min(102, max(y) + 12))
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=SMALL)
