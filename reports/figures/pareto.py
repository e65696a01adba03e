"""Error against the time of a prediction, with the Pareto front of the defenses."""

import itertools
from typing import TYPE_CHECKING, Any

from rdp_bench.reports.figures import drawing
from rdp_bench.reports.figures.drawing import (
    ACCENT,
    COLUMN,
    INK,
    PAGE,
    SMALL,
    STYLE,
    ReportFigure,
    legend,
    legend_columns,
    shorten,
    tidy,
)
from rdp_bench.reports.tables.quality_and_cost import (
    Setting,
    average_error,
    defenses_against,
    machine_in_words,
    run_settings,
)
from rdp_bench.results.rows import Run, display_name
from rdp_bench.specs import UNDEFENDED, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = ("source", "target", "eps", "defense", "error", "ci_low", "ci_high", "ms", "front")

_MARKS: tuple[Any, ...] = (*"sD^vP*X<>hdp", (4, 1, 0))  # a circle is no defense


def pareto(run: Run) -> ReportFigure | None:
    """Error against the time of a prediction, one panel per setting; None if the grid does not ask for cost."""
    if not run.record.get("cost"):
        return None
    points = [point for each in run_settings(run) for point in _points(run, each)]
    if not points:
        return None
    about = run.record["cost"]
    caption = (
        "Error against time per prediction. Error: average over the attacks, with 95 % intervals. Time: defense and "
        f"{display_name(about['target'])} together, on {machine_in_words(about)}. Filled, joined points are the Pareto "
        "front: no other defense is faster at a lower or equal error."
    )
    return ReportFigure("pareto", caption, _draw(points), tidy(COLUMNS, points))


def _points(run: Run, setting: Setting) -> list[dict[str, Any]]:
    """Every defense that has both numbers, fastest first; `front` is 1 for those on the Pareto front."""
    about = run.record["cost"]
    found = []
    for name in defenses_against(run, setting.target):
        error, ratio = average_error(run, setting.places(run, name)), about["defenses"].get(name, {}).get("ratio")
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
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    panels: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for point in points:
        panels.setdefault((point["source"], point["target"], point["eps"]), []).append(point)
    names = list(dict.fromkeys(point["defense"] for point in sorted(points, key=lambda point: point["error"])))
    marks = {UNDEFENDED: "o", **dict(zip((n for n in names if n != UNDEFENDED), itertools.cycle(_MARKS), strict=False))}
    across = min(len(panels), 2)
    down = -(-len(panels) // across)
    with drawing.styled():
        width = COLUMN if across == 1 else PAGE
        shown = shorten(map(display_name, names))
        labels = [shown[display_name(name)] for name in names]
        columns = legend_columns(width, labels, 3 * across)
        height = 0.3 + 2.2 * down + 0.19 * -(-len(names) // columns)
        figure = Figure((width, height), layout="constrained")
        sources, targets = (shorten((display_name(panel[i]) for panel in panels), 18) for i in (0, 1))
        axes = list(figure.subplots(down, across, squeeze=False, sharex=True).flat)
        for ax, ((source, target, eps), here) in zip(axes, panels.items(), strict=False):
            _panel(ax, here, marks)
            ax.set_title(f"{sources[display_name(source)]} to {targets[display_name(target)]}, ε = {eps}")
        for ax in axes[len(panels) :]:
            ax.set_visible(False)
        figure.supxlabel("ms per prediction", fontsize=STYLE["font.size"])
        figure.supylabel("average error, %", fontsize=STYLE["font.size"])
        style: dict[str, Any] = {"linestyle": "none", "markersize": 4, "color": INK}
        lines = [Line2D([], [], marker=marks[name], **style) for name in names]
        legend(figure, lines, labels, columns)
        return drawing.save(figure)


def _panel(ax: "Axes", points: list[dict[str, Any]], marks: dict[str, Any]) -> None:
    """Filled, joined points are the front; hollow ones are the others."""
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
