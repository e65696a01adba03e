"""Accuracy against the size of the perturbation: the paper's Figure 4, for any run over several eps."""

from itertools import cycle

import numpy as np

from rdp_bench.budgets import LINF
from rdp_bench.reports.figures import drawing
from rdp_bench.reports.figures.drawing import (
    COLORS,
    COLUMN,
    INK,
    LETTER,
    SMALL,
    STYLE,
    ReportFigure,
    Saved,
    legend,
    legend_columns,
    shorten,
    tidy,
)
from rdp_bench.results.rows import CellKey, Run, display_name
from rdp_bench.specs import CLEAN, UNDEFENDED, show_level

_MARKS = "osD^vP*X<>hd"

COLUMNS = ("source", "target", "attack", "defense", "eps", "accuracy", "ci_low", "ci_high", "n")


def sweep(run: Run) -> ReportFigure | None:
    """One panel per attack (rows: source and target), one line per defense; None for a run at fewer than two eps.

    The legend has the mean and the population standard deviation of each defense's accuracy over all attacks and
    eps, as in the paper's figure (which has one source and target).
    """
    points = _points(run)
    if len({point["eps"] for point in points}) < 2:
        return None
    caption = (
        "Accuracy against ε, with 95 % intervals. The legend gives each defense's mean and standard deviation over all "
        "attacks and ε of the panels."
    )
    return ReportFigure("sweep", caption, _draw(run, points), tidy(COLUMNS, points))


def _points(run: Run) -> list[dict[str, str | float]]:
    done: list[dict[str, str | float]] = []
    for row in run.rows:
        cell_key = CellKey.of(row)
        if row["status"] != "done" or cell_key.attack == CLEAN:
            continue
        value, low, high = (100 - float(row[name]) for name in ("value", "ci_high", "ci_low"))
        done.append(
            {
                "source": cell_key.source, "target": cell_key.target, "attack": cell_key.attack,
                "defense": cell_key.defense,
                "eps": cell_key.eps, "accuracy": round(value, 4), "ci_low": round(low, 4), "ci_high": round(high, 4),
                "n": int(row["n"]),
            }
        )  # fmt: skip
    return sorted(done, key=lambda point: float(point["eps"]))


def _draw(run: Run, points: list[dict[str, str | float]]) -> Saved:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    pairs = list(dict.fromkeys((str(p["source"]), str(p["target"])) for p in points))
    attacks = run.attacks
    defenses = [name for name in run.axis("defenses") if any(p["defense"] == name for p in points)]
    colors = dict(zip(defenses, cycle(COLORS), strict=False)) | {UNDEFENDED: INK}
    marks = {name: _MARKS[(i + i // 12) % 12] for i, name in enumerate(defenses)}  # none twice in one colour, up to 72
    width = max(0.6 + 1.45 * len(attacks), COLUMN)  # or wider
    defended = {p["target"] for p in points if p["defense"] != UNDEFENDED}  # others are baselines
    compared = [p for p in points if p["target"] in defended] or points
    most = max(sum(p["defense"] == name for p in compared) for name in defenses)
    shown = shorten(map(display_name, defenses), width / LETTER - 24)  # one column of the legend holds it
    names = [f"{shown[display_name(name)]} {_spread(compared, name, most)}" for name in defenses]
    columns = legend_columns(width, names, int(width // 1.7))
    titles = shorten(map(display_name, attacks), 19)
    ends = [shorten(map(display_name, each), 16) for each in zip(*pairs, strict=True)]
    height = 1.75 * len(pairs) + 0.3 + 0.19 * -(-len(defenses) // columns)
    levels = sorted({float(p["eps"]) for p in points})
    with drawing.styled():
        figure = Figure((width, height), layout="constrained")
        grid = figure.subplots(len(pairs), len(attacks), squeeze=False, sharex=True, sharey=True)
        for row, (source, target) in zip(grid, pairs, strict=True):
            for ax, attack in zip(row, attacks, strict=True):
                here = [p for p in points if (p["source"], p["target"], p["attack"]) == (source, target, attack)]
                for name in defenses:
                    line = [p for p in here if p["defense"] == name]
                    x, y = [float(p["eps"]) for p in line], np.array([float(p["accuracy"]) for p in line])
                    reach = [y - [float(p["ci_low"]) for p in line], [float(p["ci_high"]) for p in line] - y]
                    ax.errorbar(
                        x, y, reach, color=colors[name], marker=marks[name], markersize=3, linewidth=1, elinewidth=0.5
                    )
                ax.set_title(titles[display_name(attack)])
                ax.set_ylim(0, 100)
                ax.set_xticks(levels, map(show_level, levels))
                ax.tick_params(labelsize=SMALL)
                ax.spines[["top", "right"]].set_visible(False)
            where = "\nto ".join(shown[display_name(end)] for shown, end in zip(ends, (source, target), strict=True))
            row[0].set_ylabel("accuracy, %" if len(pairs) == 1 else f"{where}, %")
        figure.supxlabel(
            "ε, in /255" if run.norm == LINF else f"ε, {run.norm.upper()} norm", fontsize=STYLE["font.size"]
        )
        lines = [mpl.lines.Line2D([], [], color=colors[name], marker=marks[name], markersize=3) for name in defenses]
        legend(figure, lines, names, columns)
        return drawing.save(figure)


def _spread(points: list[dict[str, str | float]], defense: str, most: int) -> str:
    """Mean and deviation over `most` cells; or how many there are, whose mean is that of another question."""
    values = np.array([float(p["accuracy"]) for p in points if p["defense"] == defense])
    if len(values) < most:
        return f"({len(values)} of {most} cells)"
    return f"({values.mean():.1f} ± {values.std():.1f})"
