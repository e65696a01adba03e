"""The figures of every table of errors: the heat map of all cells and the dot plot of their averages.

Axes are placed by hand, in inches: automatic layout would take longer than the rest of a report. Both are drawn with
matplotlib alone: importing seaborn and pandas would take as long again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from rdp_bench.reports.figures import drawing
from rdp_bench.reports.figures.drawing import ACCENT, INK, LETTER, SMALL, ReportFigure, left_out, short, shorten, span
from rdp_bench.reports.tables.table import Group, Row, Table
from rdp_bench.results.rows import display_name
from rdp_bench.specs import UNDEFENDED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

_MAP = "cividis_r"  # monotone in lightness, made for every kind of colour vision; reads in grey
_PANELS = 6
_LINE = 0.19  # inches
_CELL = 0.3  # inches, the narrowest cell of a heat map
_DARK, _LIGHT, _MIDDLE = "#010101", "#fefefe", 0.179
"""Colours of the numbers in cells of more, and of less, relative luminance than `_MIDDLE`: WCAG AA contrast.

Neither is INK or white, which `drawing.inline` replaces by the page's colours.
"""
_NUMBERED = 600
"""Most cells of a heat map that shows its numbers: texts take most of the time."""


def heat_map(tables: list[Table]) -> ReportFigure:
    """Every error of the first tables, one panel per table: rows are defenses, columns sources and attacks."""
    from matplotlib.figure import Figure

    grids = [_grid(table) for table in tables[:_PANELS]]
    rows = shorten(name for grid in grids for name in grid.rows)
    columns = shorten(name for grid in grids for _, name in grid.columns)
    left = 0.2 + LETTER * max(map(span, rows.values()))
    most = max(len(grid.columns) for grid in grids)
    across = max(_CELL * most, 2.4)
    titles = shorten(map(_setting, tables[:_PANELS]), (across + 0.75) / LETTER)
    longest = max(map(span, columns.values()))
    turned = longest * LETTER > across / most
    below = 0.2 + (LETTER * longest if turned else 0.1)
    numbered = sum(grid.values.size for grid in grids) <= _NUMBERED
    width, above = left + across + 0.8, 0.55
    height = sum(_LINE * len(grid.rows) + above + below for grid in grids)
    with drawing.styled():
        figure = Figure((width, height))
        top = height
        for table, grid in zip(tables, grids, strict=False):
            tall = _LINE * len(grid.rows)
            top -= above + tall
            ax = figure.add_axes((left / width, top / height, across / width, tall / height))
            bar = figure.add_axes(((left + across + 0.15) / width, top / height, 0.1 / width, tall / height))
            room = int(across / len(grid.columns) / LETTER)
            letters = [(source, columns[name]) for source, name in grid.columns]
            shown = replace(grid, rows=[rows[name] for name in grid.rows], columns=letters)
            title = titles[_setting(table)] if len(tables) > 1 else ""
            _heat(ax, bar, shown, title, turned, numbered, room)
            top -= below
        caption = "Error of every cell, in percent. Darker cells have a higher error."
        caption += left_out(len(grids), len(tables))
        return ReportFigure("heat", caption, drawing.save(figure))


def dot_plot(tables: list[Table]) -> ReportFigure:
    """The last column of the first tables (the average, if there is one), with intervals, lowest first.

    Panels with the same defenses share one order, that of the mean over the panels.
    """
    from matplotlib.figure import Figure

    every = [(table, group) for table in tables for group in table.groups]
    panels = _sorted(every[:_PANELS])
    across = min(len(panels), 3)
    down = -(-len(panels) // across)
    names = shorten(line.name for _, group in panels for line in group.rows)
    left = 0.2 + LETTER * max(map(span, names.values()))
    named = len({tuple(line.defense for line in group.rows) for _, group in panels}) > 1  # each has rows of its own
    wide, tall = 1.75, _LINE * max(len(group.rows) for _, group in panels)
    sources = shorten((group.name for _, group in panels), 24)
    titles = [sources[group.name] + (f"\n{_apart(table)}" if len(tables) > 1 else "") for table, group in panels]
    above, below = 0.18 + 0.16 * max(title.count("\n") + 1 for title in titles), 0.45
    step = wide + (left if named else 0.25)
    width, height = left + step * across + 0.1, (above + tall + below) * down
    with drawing.styled():
        figure = Figure((width, height))
        for i, (table, group) in enumerate(panels):
            x = left + step * (i % across)
            y = height - (above + tall + below) * (i // across) - above - tall
            ax = figure.add_axes((x / width, y / height, wide / width, tall / height))
            _dots(ax, table, group, names if named or i % across == 0 else {})
            ax.set_title(titles[i])
        printed = any(entry.paper is not None for table in tables for entry in table.cells)
        caption = (
            "Error with 95 % intervals. The dashed line is no defense."
            + " Diamonds are the paper's numbers." * printed
            + left_out(len(panels), len(every))
        )
        return ReportFigure("dots", caption, drawing.save(figure))


def _sorted(panels: list[tuple[Table, Group]]) -> list[tuple[Table, Group]]:
    """The panels with their rows by value; those without a value last."""
    sets = {frozenset(line.name for line in group.rows) for _, group in panels}
    found: dict[str, list[float]] = {}
    for _, group in panels:
        for line in group.rows:
            found.setdefault(line.name, []).append(_or_last(line.cells[-1].value))
    shared = {name: sum(values) / len(values) for name, values in found.items()} if len(sets) == 1 else {}

    def value(line: Row) -> float:
        return shared.get(line.name, _or_last(line.cells[-1].value))

    return [(table, replace(group, rows=sorted(group.rows, key=value))) for table, group in panels]


def _or_last(value: float | None) -> float:
    return float("inf") if value is None else value


def _setting(table: Table) -> str:
    """What a table's title says after the metric."""
    return table.title.partition(": ")[2]


def _apart(table: Table) -> str:
    """The setting in lines as wide as a panel."""
    return "\n".join(short(line, 24) for line in wrap(_setting(table), 24, break_on_hyphens=False))


@dataclass(frozen=True)
class _Grid:
    """Errors by defense (rows) and source and attack (columns); NaN where one is missing."""

    rows: list[str]
    columns: list[tuple[str, str]]
    values: "NDArray[np.float64]"


def _grid(table: Table) -> _Grid:
    count = len(table.columns) - table.average
    columns = [(group.name, column) for group in table.groups for column in table.columns[:count]]
    names = list(dict.fromkeys(line.defense for group in table.groups for line in group.rows))
    found = {
        (line.defense, g * count + c): line.cells[c].value
        for g, group in enumerate(table.groups)
        for line in group.rows
        for c in range(count)
    }
    values = [[found.get((name, i)) for i in range(len(columns))] for name in names]
    return _Grid([display_name(name) for name in names], columns, np.array(values, dtype=float))


def _heat(ax: "Axes", bar: "Axes", grid: _Grid, title: str, turned: bool, numbered: bool, room: int) -> None:
    """One panel; `room` is how many letters are as wide as a cell."""
    import matplotlib as mpl

    style: dict[str, Any] = {"cmap": _MAP, "vmin": 0, "vmax": 100}
    ax.pcolormesh(np.ma.masked_invalid(grid.values), **style)
    bar.pcolormesh(np.arange(100)[:, None], edgecolors="face", linewidth=0.5, **style)  # no seams
    bar.set_xticks([])
    bar.yaxis.tick_right()
    bar.yaxis.set_label_position("right")
    bar.set(yticks=[0, 50, 100], ylabel="error, %")
    ax.set_ylim(len(grid.rows), 0)
    if numbered:
        for (y, x), value in np.ndenumerate(grid.values):
            if np.isfinite(value):
                cell = mpl.colormaps[_MAP](value / 100)
                color = _DARK if luminance(cell) > _MIDDLE else _LIGHT
                ax.text(x + 0.5, y + 0.5, f"{value:.0f}", color=color, fontsize=SMALL, ha="center", va="center")
    ax.set_yticks(np.arange(len(grid.rows)) + 0.5, grid.rows)
    letters = [column for _, column in grid.columns]
    ax.set_xticks(np.arange(len(letters)) + 0.5, letters, rotation=90 if turned else 0)
    for each in (ax, bar):
        each.tick_params(length=0)
        each.spines[:].set_visible(False)
    sources = [source for source, _ in grid.columns]
    edges = [i for i, source in enumerate(sources) if i == 0 or source != sources[i - 1]]
    for edge, end in zip(edges, [*edges[1:], len(sources)], strict=True):
        ax.text(edge, -0.35, short(sources[edge], room * (end - edge)))
    ax.vlines(edges[1:], 0, len(grid.rows), color="white", linewidth=2.5)
    ax.set_title(title, pad=18)


def luminance(color: "Sequence[float]") -> float:
    """WCAG's relative luminance of sRGB in [0, 1]."""
    linear = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in color[:3])
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _dots(ax: "Axes", table: Table, group: Group, names: Mapping[str, str]) -> None:
    """A dot with its interval per defense; a diamond at the paper's number; a dashed line at no defense.

    `names`: how rows are written; empty: they are not.
    """
    entries = [(y, line.defense, line.cells[-1]) for y, line in enumerate(group.rows)]
    done = [(y, e.low or 0.0, e.value, e.high or 0.0, name) for y, name, e in entries if e.value is not None]
    colors = [INK if name == UNDEFENDED else ACCENT for *_, name in done]
    ax.hlines([y for y, *_ in done], [d[1] for d in done], [d[3] for d in done], colors=colors, linewidth=1.2)
    ax.scatter([d[2] for d in done], [y for y, *_ in done], s=20, c=colors, linewidths=0, zorder=3)
    printed = [(entry.paper, y) for y, _, entry in entries if entry.paper is not None]
    if printed:
        x, y_printed = [x for x, _ in printed], [y for _, y in printed]
        ax.scatter(x, y_printed, s=20, marker="D", c="none", edgecolors=INK, linewidths=0.7, zorder=4)
    for y, name, entry in entries:
        if entry.value is None:
            ax.text(1, y, entry.status, va="center", fontsize=SMALL)
        elif name == UNDEFENDED:
            ax.axvline(entry.value, color=INK, linewidth=0.6, linestyle=(0, (3, 3)))
    ax.set_yticks(range(len(entries)) if names else [], [names[line.name] for line in group.rows] if names else [])
    ax.set_ylim(len(entries) - 0.5, -0.5)
    ax.set_xlim(0, 100)
    ax.set_xticks([0, 50, 100])
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.set_xlabel("average error, %" if table.average else f"{short(table.columns[-1])}: error, %")
