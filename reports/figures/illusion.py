"""Transfer error against white-box error: what transfer tables say of a defense, and what one who knows it does."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rdp_bench.reports.figures import drawing
from rdp_bench.reports.figures.drawing import ACCENT, INK, SMALL, ReportFigure, left_out, shorten, tidy
from rdp_bench.reports.figures.tradeoff import Box, joined, write_names
from rdp_bench.reports.tables.audits import by_setting
from rdp_bench.results.cards import Card, Tier
from rdp_bench.results.rows import display_name
from rdp_bench.specs import UNDEFENDED, plain, show, show_level

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ERRORS = tuple(f"{tier}_error{part}" for tier in ("transfer", "white_box") for part in ("", "_low", "_high"))
COLUMNS = ("dataset", "n", "eps", "budget", "target", "defense", *ERRORS)
SIDE, WIDE = 2.75, 3.6
"""Inches of a panel: both axes are errors, so it is a square. `WIDE` is one of many points that is alone."""
MANY = 8
"""Points from which intervals are no longer kept free of names."""
_LEFT, _BOTTOM, _RIGHT, _TOP = 0.58, 0.45, 0.15, 0.1
_PANELS = 6
_EDGE = 4.0
"""Percent beyond 0 and 100, room for the points there."""


def illusion(cards: Sequence[Card]) -> ReportFigure | None:
    """One point per defense that has both tiers, a panel per target and setting; None without a point."""
    panels: dict[tuple[str, str], list[dict[str, Any]]] = {}
    rows = []
    for setting, here in by_setting(cards).items():
        for card in sorted(here, key=lambda card: plain(card.defense) != UNDEFENDED):  # its own card has more attacks
            for point in _points(card):
                key = (card.target, ", ".join((f"ε = {show_level(card.eps)}", card.dataset, f"budget {card.budget}")))
                if not any(point["defense"] == other["defense"] for other in panels.get(key, [])):
                    panels.setdefault(key, []).append(point)
                    facts = dict(zip(("dataset", "n", "eps", "budget"), setting, strict=True))
                    rows.append({**facts, "eps": show(card.eps), "target": card.target, **point})
    if not panels:
        return None
    settings = {where for _, where in panels}
    caption = (
        "Transfer error against white-box error. Errors in percent: under the worst transfer attack of each image, and "
        "under the worst attack through the defense. The farther a point is above the diagonal, the more of the "
        "robustness that transfer attacks show is an illusion. Below the diagonal, the white-box attack is broken. The "
        "hollow point is no defense; thin lines are 95 % intervals."
    )
    caption += f" {settings.pop()}." if len(settings) == 1 else ""
    caption += left_out(min(len(panels), _PANELS), len(panels))
    return ReportFigure("illusion", caption, draw(panels), tidy(COLUMNS, rows))


def _points(card: Card) -> list[dict[str, Any]]:
    """The defense, and the target without it."""
    transfer, white = card.tier("transfer"), card.tier("white-box")
    if transfer is None or white is None:
        return []
    found = [{"defense": card.defense, **_error("transfer", transfer), **_error("white_box", white)}]
    if card.defense != UNDEFENDED and transfer.undefended is not None and white.undefended is not None:
        errors = {"transfer": 100 - transfer.undefended, "white_box": 100 - white.undefended}
        found.append({"defense": UNDEFENDED, **{f"{tier}_error": round(value, 4) for tier, value in errors.items()}})
    return found


def _error(name: str, tier: Tier) -> dict[str, float]:
    parts = {"": tier.accuracy, "_low": tier.high, "_high": tier.low}
    return {f"{name}_error{part}": round(100 - value, 4) for part, value in parts.items()}


def draw(panels: dict[tuple[str, str], list[dict[str, Any]]]) -> drawing.Saved:
    """Panels by target and setting; a point has a defense, its `ERRORS` in percent, and may lack intervals."""
    from matplotlib.figure import Figure

    shown = list(panels.items())[:_PANELS]
    across = min(len(shown), 2)
    down = -(-len(shown) // across)
    several = len({where for (_, where), _ in shown}) > 1
    top = _TOP + (0.3 if several else 0.15 if len(shown) > 1 else 0)
    side = WIDE if across == 1 and len(shown[0][1]) >= MANY else SIDE
    wide, tall = _LEFT + side + _RIGHT, _BOTTOM + side + top
    width, height = wide * across, tall * down
    with drawing.styled():
        figure = Figure((width, height))
        targets = shorten((display_name(target) for (target, _), _ in shown), 24)
        settings = shorten((where for (_, where), _ in shown), 34)
        for i, ((target, where), points) in enumerate(shown):
            x, y = wide * (i % across) + _LEFT, height - tall * (i // across) - top - side
            ax: Axes = figure.add_axes((x / width, y / height, side / width, side / height))
            _panel(ax, points, side)
            if len(shown) > 1:
                ax.set_title(targets[display_name(target)] + (f"\n{settings[where]}" if several else ""))
        return drawing.save(figure)


def _panel(ax: "Axes", points: list[dict[str, Any]], side: float) -> None:
    def inches(percent: float) -> float:
        return (percent + _EDGE) / (100 + 2 * _EDGE) * side

    ax.set_xlim(-_EDGE, 100 + _EDGE)
    ax.set_ylim(-_EDGE, 100 + _EDGE)
    ax.fill([-_EDGE, 100 + _EDGE, -_EDGE], [-_EDGE, 100 + _EDGE, 100 + _EDGE], color=ACCENT, alpha=0.09, linewidth=0)
    ax.plot([0, 100], [0, 100], color=INK, linewidth=0.5, linestyle=(0, (3, 3)), zorder=1)
    ax.text(
        28, 28, "transfer error = white-box error", rotation=45, rotation_mode="anchor", ha="center", va="bottom",
        fontsize=SMALL,
    )  # fmt: skip
    lines: list[Box] = []
    named: dict[tuple[float, float], list[str]] = {}
    for point in points:
        at = (point["transfer_error"], point["white_box_error"])
        named.setdefault(at, []).append(point["defense"])
        for axis, tier in enumerate(("transfer", "white_box")):
            if f"{tier}_error_low" in point:
                x, y = [at[0]] * 2, [at[1]] * 2
                (x, y)[axis][:] = [point[f"{tier}_error_low"], point[f"{tier}_error_high"]]
                ax.plot(x, y, color=INK, alpha=0.45, linewidth=0.4, zorder=2)
                if len(points) < MANY:
                    left, right, low, high = map(inches, (*x, *y))
                    lines.append(Box(left - 0.01, low - 0.01, right + 0.01, high + 0.01))
    for at, defenses in named.items():
        bare = defenses == [UNDEFENDED]
        color, face = (INK, "white") if bare else (ACCENT, ACCENT)
        ax.plot(*at, "o", markersize=5.5, color=color, markerfacecolor=face, zorder=3)
    spots = [(inches(x), inches(y)) for x, y in named]
    short_names = shorten((display_name(point["defense"]) for point in points), 24)
    names = [joined([short_names[display_name(each)] for each in each_at]) for each_at in named.values()]
    steps = [(k + 0.5) / 40 * side for k in range(40)]
    lines += [Box(step - 0.02, step - 0.02, step + 0.02, step + 0.02) for step in steps]
    write_names(ax, names, spots, (side, side), lines)
    ax.set_xticks(range(0, 101, 20))
    ax.set_yticks(range(0, 101, 20))
    ax.set_xlabel("error under transfer attacks, %")
    ax.set_ylabel("error under white-box attacks, %")
    ax.spines[["top", "right"]].set_visible(False)
