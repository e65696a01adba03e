"""RDP without one of its parts, per attack: the paper's Figure 8."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rdp_bench.metrics import stats
from rdp_bench.reports.figures import drawing, fonts
from rdp_bench.reports.figures.drawing import ACCENT, INK, LETTER, PAGE, SMALL, ReportFigure, shorten, span, tidy
from rdp_bench.reports.tables.table import AVERAGE, Row, Table, TableCell
from rdp_bench.results.rows import display_name
from rdp_bench.specs import UNDEFENDED, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PARTS = {
    "recon": "reconstructor",
    "lat": "latent loss",
    "pix": "pixel loss",
    "adv": "adversarial loss",
    "feat": "feature loss",
}
_LABEL = re.compile(
    r"""rdp\(weights=["']?(?:[^,]*/)?rdp-ablation-(?:full|no-(?P<part>[a-z]+))(?:-(?P<seed>\d+))?(?:\.\w+)?["']?\)"""
)
"""Of RDP alone: a chain, or other parameters beside the weights, make another defense."""
_LINE = 0.19  # inches

COLUMNS = ("source", "variant", "trainings", "defense", "attack", "error", "ci_low", "ci_high", "status", "reason")


def ablation(tables: list[Table]) -> ReportFigure | None:
    """The error of every variant (rows) under every attack and on average (panels); None without attacked cells.

    Weights of one variant that differ in the seed of their training share a row, which has the mean over them; its
    interval is over trainings, that of a variant with one training over images. The dashed line is the whole RDP, where
    it is one of the rows. The CSV has each training, and after those of a variant their mean.
    """
    from matplotlib.figure import Figure

    if not tables:
        return None
    table = tables[0]
    group = table.groups[0]
    variants: dict[str, list[Row]] = {}
    for line in group.rows:
        variants.setdefault(variant(line.defense), []).append(line)
    rows: list[dict[str, str]] = []
    means = {name: [_mean(cells) for cells in zip(*(line.cells for line in lines), strict=True)]
             for name, lines in variants.items()}  # fmt: skip
    for name, lines in variants.items():
        of = {"source": group.source, "variant": name}
        of_trainings = [(line.defense, line.cells) for line in lines]
        for defense, cells in [*of_trainings, *([("", means[name])] if len(lines) > 1 else [])]:
            for column, entry in zip(table.columns, cells, strict=True):
                numbers = {"error": entry.value, "ci_low": entry.low, "ci_high": entry.high}
                rows.append({
                    **of, "trainings": str(1 if defense else len(lines)), "defense": defense, "attack": column,
                    **{key: "" if value is None else f"{value:.4f}" for key, value in numbers.items()},
                    "status": entry.status, "reason": entry.reason,
                })  # fmt: skip
    count = len(table.columns)
    names = shorten(variants, 30)
    left = 0.1 + LETTER * max(map(span, names.values()))
    between, above, below = 0.2, 0.25, 0.42
    wide, tall = (PAGE - left - 0.12 - between * (count - 1)) / count, _LINE * len(variants)
    height = above + tall + below
    highest = max((entry.high or 0 for cells in means.values() for entry in cells), default=0)
    end = min(100, -(-highest // 20) * 20) or 100
    titles = shorten(table.columns, 14)
    fonts.add_bold()
    with drawing.styled():
        figure = Figure((PAGE, height))
        for i, column in enumerate(table.columns):
            x = left + i * (wide + between)
            ax = figure.add_axes((x / PAGE, below / height, wide / PAGE, tall / height))
            _panel(ax, variants, means, i, end)
            ax.set_title(titles[column], fontweight="bold" if column == AVERAGE else "normal")
            if i == 0:
                ax.set_yticks(range(len(variants)), list(names.values()))
        figure.supxlabel("error, % (lower is better)", fontsize=SMALL + 1, x=(left + PAGE) / 2 / PAGE, y=0.02)
        repeated = [name for name, lines in variants.items() if len(lines) > 1]
        caption = (
            f"Ablation of RDP. Error under attacks crafted on {group.name}, with 95 % intervals, of RDP trained "
            "without one part at a time." + " The dashed line is the whole RDP." * (WHOLE in variants)
        )
        if repeated:
            caption += (
                f" Small dots are single trainings of {', '.join(repeated)}, which differ in their seed; the large dot "
                "is their mean, and its interval is over trainings (Student's t). Other intervals are over images."
            )
        return ReportFigure("ablation", caption, drawing.save(figure), tidy(COLUMNS, rows))


WHOLE = "RDP, whole"


def variant(defense: str) -> str:
    """The name of a defense in the figure.

    >>> variant("rdp(weights=rdp-ablation-no-lat)"), variant("rdp(weights=rdp-ablation-full-2)"), variant("jpeg")
    ('without latent loss', 'RDP, whole', 'JPEG')
    """
    found = _LABEL.fullmatch(plain(defense))
    if not found:
        return display_name(defense)
    return f"without {_PARTS.get(found['part'], found['part'])}" if found["part"] else WHOLE


def training(defense: str) -> str:
    """The name of one training of a variant, where text names it.

    >>> training("rdp(weights=rdp-ablation-no-lat)"), training("rdp(weights=rdp-ablation-full-2)")
    ('without latent loss', 'RDP, whole, seed 2')
    """
    found = _LABEL.fullmatch(plain(defense))
    return variant(defense) + (f", seed {found['seed']}" if found and found["seed"] else "")


def _mean(cells: Sequence[TableCell]) -> TableCell:
    """Of one training, its cell; of several, their mean with its interval over trainings."""
    if len(cells) == 1:
        return cells[0]
    values = [cell.value for cell in cells if cell.value is not None]
    if len(values) < len(cells):
        return next(cell for cell in cells if cell.value is None)
    low, high = (min(100.0, max(0.0, end)) for end in stats.student_interval(values))
    return TableCell("done", value=sum(values) / len(values), low=low, high=high)


def _panel(
    ax: "Axes", variants: Mapping[str, list[Row]], means: Mapping[str, list[TableCell]], column: int, end: float
) -> None:
    """One dot with its interval per variant, on an axis from 0 to `end`; below it its trainings, if several."""
    if WHOLE in means and (reach := means[WHOLE][column].value) is not None:
        ax.axvline(reach, color=INK, linewidth=0.6, linestyle=(0, (3, 3)))
    for y, (name, lines) in enumerate(variants.items()):
        entry = means[name][column]
        if entry.value is None or entry.low is None or entry.high is None:
            ax.text(2, y, entry.status, va="center", fontsize=SMALL)
            continue
        color = INK if lines[0].defense == UNDEFENDED else ACCENT
        ax.hlines(y, entry.low, entry.high, color=color, linewidth=1.2)
        if len(lines) > 1:
            values = [line.cells[column].value or 0.0 for line in lines]
            ax.scatter(values, [y + 0.28] * len(lines), s=5, color=color, linewidths=0, zorder=3)
        ax.scatter([entry.value], [y], s=20, color=color, linewidths=0, zorder=3, marker="D" if name == WHOLE else "o")
    ax.set_yticks([])
    ax.set_ylim(len(variants) - 0.5, -0.5)
    ax.set_xlim(0, end)
    ax.set_xticks([0, end // 2, end])
    ax.tick_params(labelsize=SMALL)
    ax.tick_params(axis="y", length=0, labelsize=drawing.SIZE)
    ax.spines[["top", "right", "left"]].set_visible(False)
