"""Draws the picture on the home page, docs/overview.svg and its narrow form, from a published run.

python docs/results/overview.py
"""

from functools import cache
from pathlib import Path

from rdp_bench.reports.tables.leaderboard import leaderboards
from rdp_bench.reports.tables.table import TableCell, clean_tables
from rdp_bench.results.rows import Run, load_run

HERE = Path(__file__).parent
RUN, SOURCE = "nips17-500-table1", "effnet-lite0, -lite1 and both"
PARTS = ("value", "low", "high")
PANELS = (
    ("effnet-lite2", "Target effnet-lite2"),
    ("effnet-lite2-ens", "Target effnet-lite2-ens, adversarially trained"),
)
TITLES = {
    "none": "No defense", "jpeg": "JPEG", "fd": "FD", "bit-red": "Bit-Red", "tvm": "TVM", "r&p": "R&amp;P",
    "sr": "SR", "comdefend": "ComDefend", "hgd": "HGD", "nrp": "NRP", "rdp": "RDP",
}  # fmt: skip
WHERE = {  # of a name, from its point
    ("effnet-lite2", "bit-red"): (-70, -20), ("effnet-lite2", "jpeg"): (-80, 12), ("effnet-lite2", "fd"): (-62, 26),
    ("effnet-lite2", "none"): (8, -12), ("effnet-lite2", "r&p"): (8, 18), ("effnet-lite2", "hgd"): (-44, 52),
    ("effnet-lite2-ens", "jpeg"): (-36, -30), ("effnet-lite2-ens", "fd"): (-56, 16),
    ("effnet-lite2-ens", "none"): (8, -12), ("effnet-lite2-ens", "bit-red"): (34, 14),
    ("effnet-lite2-ens", "hgd"): (-44, 44), ("effnet-lite2-ens", "r&p"): (8, 18),
    **{(target, "rdp"): (8, 17) for target, _ in PANELS},
    **{(target, "comdefend"): (-80, -8) for target, _ in PANELS},
}  # fmt: skip
X, Y = (55.0, 100.0), (35.0, 95.0)
LEFT, WIDTH, HEIGHT, GAP = 62, 380, 270, 76
SIZE = 'width="{}" height="{}" role="img" font-family="system-ui, sans-serif" font-size="13"'
STYLE = (
    "<style>.g{stroke:#e6e8ee}.k{fill:#5b6270}.l,.t{fill:#1d2230}.t{font-weight:600}.i{stroke-width:1.5}"
    ".n{fill:#1d2230;stroke:#1d2230}.o{fill:#8a93a6;stroke:#8a93a6}.r{fill:#3050c8;stroke:#3050c8}"
    ".b{fill:#eef1fb;stroke:#c5cdea}.p{stroke:#b6bccb}.a{fill:none;stroke:#5b6270;stroke-width:1.5}</style>"
)
STEPS = ("photo", "attack on a source model", "adversarial image", "purifier", "target model", "error, with interval")


@cache
def published() -> Run:
    """The run that is drawn."""
    return load_run(HERE / "runs" / RUN / "runs" / "table1.json", None)


def points(target: str) -> dict[str, tuple[list[float], list[float]]]:
    """Clean accuracy and mean error over the five attacks of each defense: value, low and high end of the interval."""
    (board,) = [board for board in leaderboards(published()) if board.target == target]
    (table,) = clean_tables(published())
    at = table.keys.index(target)
    clean = {row.defense: row.cells[at] for row in table.groups[0].rows}
    return {
        line.defense: ([_of(clean[line.defense], part) for part in PARTS], [_of(line.mean, part) for part in PARTS])
        for line in board.standings
    }


def _of(cell: TableCell, part: str) -> float:
    return float(getattr(cell, part))


def panel(target: str, title: str, left: float, top: float) -> list[str]:
    """Both axes and every defense with its intervals."""

    def x(value: float) -> float:
        return left + (value - X[0]) / (X[1] - X[0]) * WIDTH

    def y(value: float) -> float:
        return top + (Y[1] - value) / (Y[1] - Y[0]) * HEIGHT

    lines = [f'<text class="t" x="{left}" y="{top - 12}">{title}</text>']
    for tick in range(60, 101, 10):
        lines.append(f'<line class="g" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top}" y2="{top + HEIGHT}"/>')
        lines.append(f'<text class="k" x="{x(tick):.1f}" y="{top + HEIGHT + 18}" text-anchor="middle">{tick}</text>')
    for tick in range(40, 91, 10):
        lines.append(f'<line class="g" x1="{left}" x2="{left + WIDTH}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        lines.append(f'<text class="k" x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick}</text>')
    lines.append(
        f'<text class="k" x="{left + WIDTH / 2}" y="{top + HEIGHT + 38}" text-anchor="middle">'
        "accuracy on clean images, % (higher is better)</text>"
    )
    for name, (clean, error) in points(target).items():
        kind = {"none": "n", "rdp": "r", "nrp": "r"}.get(name, "o")
        dx, dy = WHERE.get((target, name), (8, -8))
        cx, cy = x(clean[0]), y(error[0])
        if abs(dx) > 20:
            lines.append(f'<path class="p" d="M{cx:.1f} {cy:.1f}l{dx} {dy}"/>')
        at_x = cx + dx + (-4 if dx < 0 else 4 if dx > 20 else 0)
        at_y = cy + dy + (4 if abs(dx) > 20 else 0)
        anchor = "end" if dx < 0 else "start"
        lines += [
            f'<line class="i {kind}" x1="{x(clean[1]):.1f}" x2="{x(clean[2]):.1f}" y1="{cy:.1f}" y2="{cy:.1f}"/>',
            f'<line class="i {kind}" x1="{cx:.1f}" x2="{cx:.1f}" y1="{y(error[1]):.1f}" y2="{y(error[2]):.1f}"/>',
            f'<circle class="{kind}" cx="{cx:.1f}" cy="{cy:.1f}" r="4.5"/>',
            f'<text class="l" x="{at_x:.1f}" y="{at_y:.1f}" text-anchor="{anchor}">{TITLES[name]}</text>',
        ]
    return lines


def steps(per_row: int) -> list[str]:
    """From a photo to a number: boxes with arrows between them."""
    lines = []
    for row in range(0, len(STEPS), per_row):
        left, top = 20.0, 18 + 46 * (row // per_row)
        for i, text in enumerate(STEPS[row : row + per_row], row):
            width = 7.1 * len(text) + 26
            lines.append(f'<rect class="b" x="{left:.1f}" y="{top}" width="{width:.1f}" height="34" rx="8"/>')
            lines.append(
                f'<text class="l" x="{left + width / 2:.1f}" y="{top + 22}" text-anchor="middle">{text}</text>'
            )
            left += width
            if i + 1 < len(STEPS):
                lines.append(f'<path class="a" d="M{left + 3:.1f} {top + 17}h16m-5-4l5 4-5 4"/>')
            left += 22
    return lines


def svg(columns: int) -> str:
    """The whole picture, with its two panels side by side or below each other."""
    per_row = 6 if columns == 2 else 2
    top = 138 + 46 * (len(STEPS) // per_row - 1)
    width = LEFT + columns * WIDTH + (columns - 1) * GAP + 28
    below = HEIGHT + 92
    height = top + HEIGHT + (2 // columns - 1) * below + (112 if columns == 2 else 152)
    caption = [
        "500 images of NIPS-2017, eps 16/255.",
        f"Attacks crafted on {SOURCE}.",
        "Lines are 95 % intervals.",
        "Small networks: not the paper's setting.",
    ]
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {SIZE.format(width, height)}>',
        "<title>Mean error under five transfer attacks against accuracy on clean images, for ten defenses</title>",
        STYLE,
        f'<rect width="{width}" height="{height}" rx="10" fill="#fff"/>',
        *steps(per_row),
        f'<text class="k" x="{LEFT}" y="{top - 40}">mean error under five transfer attacks, % (lower is better)</text>',
    ]
    for i, (target, title) in enumerate(PANELS):
        column, row = i % columns, i // columns
        lines += panel(target, title, LEFT + column * (WIDTH + GAP), top + row * below)
    below_axes = caption if columns == 1 else [" ".join(caption[:2]), " ".join(caption[2:])]
    for i, text in enumerate(reversed(below_axes)):
        lines.append(f'<text class="k" x="{LEFT}" y="{height - 22 - 20 * i}">{text}</text>')
    return "\n".join([*lines, "</svg>\n"])


FILES = {"overview.svg": 2, "overview-narrow.svg": 1}

if __name__ == "__main__":
    for name, columns in FILES.items():
        (HERE.parent / name).write_text(svg(columns))
