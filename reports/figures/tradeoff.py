"""Clean accuracy against mean error: what a defense gains under attack, and what it costs without one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from rdp_bench.reports.figures import drawing
from rdp_bench.reports.figures.drawing import ACCENT, COLUMN, INK, ReportFigure, shorten, span, tidy
from rdp_bench.reports.tables.leaderboard import Leaderboard
from rdp_bench.specs import UNDEFENDED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = ("target", "eps", "defense", "clean_accuracy", "mean_error", "ci_low", "ci_high")
WIDTH, HEIGHT = COLUMN, 3.1
_PLOT = (0.55, 0.5, WIDTH - 0.65, HEIGHT - 0.6)
"""Left, bottom, width and height of the axes, in inches."""
_SMALL, _CAPITAL, _LINE, _DOT, _GAP = 0.071, 0.09, 0.14, 0.045, 0.035
"""Inches: a letter of a label, a capital one, its height, the radius of a point, the space between the two."""
_THIN = 0.01
_RINGS = 10


@dataclass(frozen=True)
class Box:
    """A rectangle in inches."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: "Box") -> float:
        """The area that both cover."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        tall = min(self.top, other.top) - max(self.bottom, other.bottom)
        return wide * tall if wide > 0 and tall > 0 else 0.0

    def outside(self, width: float, height: float) -> bool:
        """Whether a part of it is beyond a plot of this size."""
        return self.left < 0 or self.bottom < 0 or self.right > width or self.top > height


def tradeoff(board: Leaderboard) -> ReportFigure | None:
    """One point per defense that has both numbers; None for fewer than two."""
    points = [each for each in board.standings if each.mean.value is not None and each.clean is not None]
    if len(points) < 2:
        return None
    rows = [
        {
            "target": board.target, "eps": board.run.eps(board.eps), "defense": each.label,
            "clean_accuracy": round(each.clean or 0.0, 4), "mean_error": round(each.mean.value or 0.0, 4),
            "ci_low": round(each.mean.low or 0.0, 4), "ci_high": round(each.mean.high or 0.0, 4),
        }
        for each in points
    ]  # fmt: skip
    named: dict[tuple[float, float], list[str]] = {}  # defenses with the same numbers share a point
    short_names = shorten((each.name for each in points), 24)
    for each in points:
        named.setdefault((float(each.clean or 0.0), float(each.mean.value or 0.0)), []).append(short_names[each.name])
    bare = next(((each.clean, each.mean.value) for each in points if each.defense == UNDEFENDED), None)
    names, undefended = [joined(names) for names in named.values()], [at == bare for at in named]
    caption = (
        f"Clean accuracy against mean error, {board.where}. Lower right is better. The hollow point and the dashed "
        "lines are no defense."
    )
    return ReportFigure(
        f"tradeoff-{board.name.replace('_', '-')}", caption, _draw(names, list(named), undefended), tidy(COLUMNS, rows)
    )


def joined(names: Sequence[str]) -> str:
    """The names of one point, as many as there is room for.

    >>> joined(["JPEG", "TVM"]), joined([f"a rather long name {i}" for i in range(4)])
    ('JPEG, TVM', 'a rather long name 0 and 3 more')
    """
    whole = ", ".join(names)
    if len(names) == 1 or span(whole) <= 40:
        return whole
    first = next((i for i in range(len(names), 1, -1) if span(", ".join(names[:i])) <= 30), 1)
    return f"{', '.join(names[:first])} and {len(names) - first} more"


def _draw(names: list[str], at: list[tuple[float, float]], undefended: list[bool]) -> drawing.Saved:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    left, bottom, wide, tall = _PLOT
    x_range, y_range = (_range([point[i] for point in at]) for i in (0, 1))
    spots = [
        ((x - x_range[0]) / (x_range[1] - x_range[0]) * wide, (y - y_range[0]) / (y_range[1] - y_range[0]) * tall)
        for x, y in at
    ]
    bare_spots = [spot for spot, bare in zip(spots, undefended, strict=True) if bare]
    lines = [Box(0, y - _THIN, wide, y + _THIN) for _, y in bare_spots]
    lines += [Box(x - _THIN, 0, x + _THIN, tall) for x, _ in bare_spots]
    with drawing.styled():
        figure = Figure((WIDTH, HEIGHT))
        ax: Axes = figure.add_axes((left / WIDTH, bottom / HEIGHT, wide / WIDTH, tall / HEIGHT))
        ax.set_xlim(*x_range)
        ax.set_ylim(*y_range)
        for (x, y), bare in zip(at, undefended, strict=True):
            if bare:
                ax.axhline(y, color=INK, linewidth=0.5, linestyle=(0, (3, 3)), zorder=1)
                ax.axvline(x, color=INK, linewidth=0.5, linestyle=(0, (3, 3)), zorder=1)
            ax.plot(
                x, y, "o", markersize=5.5, color=INK if bare else ACCENT, markerfacecolor="white" if bare else ACCENT,
                zorder=3,
            )  # fmt: skip
        write_names(ax, names, spots, (wide, tall), lines)
        for axis, (low, high) in ((ax.xaxis, x_range), (ax.yaxis, y_range)):
            axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
            axis.set_ticks([tick for tick in axis.get_majorticklocs() if max(0, low) <= tick <= min(100, high)])
        ax.set_xlabel("clean accuracy, %")
        ax.set_ylabel("mean error, %")
        ax.spines[["top", "right"]].set_visible(False)
        return drawing.save(figure)


def write_names(
    ax: "Axes", names: list[str], spots: list[tuple[float, float]], size: tuple[float, float], lines: Sequence[Box]
) -> None:
    """Write each name near its spot, with a line to it where it had to move away; all in inches, see `placed`."""
    wide, tall = size
    for name, (x, y), box in zip(names, spots, placed(names, spots, size, lines), strict=True):
        side, edge = (
            ("left", box.left) if box.left > x
            else ("right", box.right) if box.right < x
            else ("center", (box.left + box.right) / 2)
        )  # fmt: skip
        middle = (box.bottom + box.top) / 2 / tall
        ax.text(edge / wide, middle, name, transform=ax.transAxes, ha=side, va="center_baseline", zorder=4)
        ends = min(max(x, box.left), box.right), min(max(y, box.bottom), box.top)
        if (ends[0] - x) ** 2 + (ends[1] - y) ** 2 > (2.5 * (_DOT + _GAP)) ** 2:
            line = [x / wide, ends[0] / wide], [y / tall, ends[1] / tall]
            ax.plot(*line, transform=ax.transAxes, color=INK, linewidth=0.4, zorder=2)


def _range(values: list[float]) -> tuple[float, float]:
    """An axis around these values, at least ten points long; it ends at 0 and 100, and the room for a point."""
    low, high = min(values), max(values)
    long = max(1.2 * (high - low), 10.0)
    low = max((low + high - long) / 2, -0.04 * long)
    high = min(low + long, 100 + 0.04 * long)
    return high - long if high - long > -0.04 * long else low, high


def placed(
    names: list[str], spots: list[tuple[float, float]], size: tuple[float, float], lines: Sequence[Box] = ()
) -> list[Box]:
    """A box for each name near its spot, away from other names, spots and `lines`; all in inches.

    Names are placed one by one, those with the most neighbours first, near their spots and clear of others. A place
    one ring farther away is better than one on a name or a spot, and about as bad as one on a line.
    """
    dots = [Box(x - _DOT, y - _DOT, x + _DOT, y + _DOT) for x, y in spots]
    found: dict[int, Box] = {}
    order = sorted(range(len(names)), key=lambda i: -sum(_near(spots[i], other) for other in spots))
    for i in order:
        others = [dot for j, dot in enumerate(dots) if j != i] + list(found.values())

        def cost(ring: int, box: Box, others: list[Box] = others) -> float:
            covered = sum(box.overlap(other) for other in others)
            return 1e6 * box.outside(*size) + 1e5 * covered + sum(box.overlap(line) for line in lines) / _THIN + ring

        found[i] = min(_around(spots[i], _width(names[i])), key=lambda at: cost(*at))[1]
    return [found[i] for i in range(len(names))]


def _width(name: str) -> float:
    """Inches, generously: pages and files show a label in different fonts."""
    return sum(
        _SMALL * span(letter) if span(letter) > 1.5 else _CAPITAL if letter.isupper() or letter == "&" else _SMALL
        for letter in name
    )


def _near(spot: tuple[float, float], other: tuple[float, float]) -> bool:
    return abs(spot[0] - other[0]) < 0.7 and abs(spot[1] - other[1]) < 0.25


def _around(spot: tuple[float, float], width: float) -> Iterator[tuple[int, Box]]:
    """Places for a name of this width, in growing rings: right, left, above, below and between."""
    for ring in range(_RINGS):
        away = _DOT + _GAP + ring * 0.11
        sides = [(1, 0), (-1, 0), (0, 1), (0, -1), *product((1, -1), (1, -1))]
        for right, up in sides:
            x = spot[0] + right * ((ring * 0.11 if up else away) + width / 2)
            y = spot[1] + up * (away + _LINE / 2)
            yield ring, Box(x - width / 2, y - _LINE / 2, x + width / 2, y + _LINE / 2)
