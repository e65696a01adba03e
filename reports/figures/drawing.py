"""Shared by all figures: the finished figure, its style, its formats, its SVG for pages.

matplotlib is loaded inside functions: a report of tables alone does without it. Widths are those of a two-column
paper, fonts are embedded, colours are distinguishable for every kind of colour vision.
"""

import base64
import io
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from rdp_bench import csvtext
from rdp_bench.picture import to_jpeg_uri
from rdp_bench.reports.figures import fonts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#0b0c0d"
"""Text and lines. On the page it becomes the page's own text colour, light or dark."""

ACCENT = "#3b6fb6"
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's palette, strongest first."""
RIGHT, WRONG = COLORS[:2]

COLUMN, PAGE = 3.4, 7.0
"""Inches: one column of a paper, and both."""

SIZE = 8.5  # points
SMALL = 7.0
LETTER = 0.068  # inches, a wide average at SIZE
STYLE: dict[Any, Any] = {
    "font.size": SIZE,
    "svg.fonttype": "none",
    "svg.hashsalt": "rdp-bench",
    "pdf.fonttype": 42,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.titlesize": SIZE,
    "axes.titlelocation": "left",
    "text.parse_math": False,  # a name with $ in it is a name
}

_SIDE, _QUALITY = 160, 75  # of pictures inside a page, in pixels and as JPEG

Saved = dict[str, bytes]


@dataclass(frozen=True)
class ReportFigure:
    """A finished figure.

    `saved` holds it as svg, png and pdf; `sheet` is the tidy CSV that it was drawn from, unless that is a table of
    the report.
    """

    name: str
    caption: str
    saved: Saved
    csv: str | None = None

    @property
    def inline(self) -> str:
        """The SVG to embed in a page."""
        return inline(self.saved["svg"])

    @property
    def files(self) -> dict[str, bytes]:
        """File contents by suffix."""
        return {**self.saved, **({} if self.csv is None else {"csv": self.csv.encode()})}


def tidy(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """CSV with one observation per line."""
    return csvtext.records(columns, rows)


def inline(svg: bytes) -> str:
    """An SVG to embed in a page: without prolog, metadata, comments and unused ids, and with the page's text colour.

    Pictures in it become JPEG of the size at which a page shows them.
    """
    text = svg.decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", text)
    text = re.sub(r'"data:image/png;base64,([^"]*)"', lambda match: f'"{_jpeg(match[1])}"', text)
    # Never larger than it was drawn, give or take: its letters are to match the page's.
    text = re.sub(
        r'<svg[^>]*?width="([\d.]+)pt"[^>]*?(viewBox="[^"]*")[^>]*>',
        lambda match: f'<svg role="img" {match[2]} style="width:{1.4 * float(match[1]):.0f}px">',
        text,
        count=1,
    )
    # What is white on paper is the page itself; the separators of the heat map have its colour.
    text = text.replace("fill: #ffffff", "fill: none").replace("stroke: #ffffff", "stroke: var(--page)")
    return text.replace(INK, "currentColor")


def _jpeg(png: str) -> str:
    from PIL import Image

    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    return to_jpeg_uri(picture, _QUALITY)


def span(text: str) -> float:
    """How wide a text is, in letters of average width."""
    return sum(map(_span, text))


def _span(letter: str) -> float:
    if unicodedata.east_asian_width(letter) in "WF":
        return 1.8
    return 1.75 if letter in "W@%" else 1.5 if letter == "M" else 1.0


def short(text: str, room: float = 22) -> str:
    """`text`, cut at its end to the width of `room` letters."""
    room = max(room, 8)
    return text if span(text) <= room else _first(text, room - 1) + "…"


def _first(text: str, room: float) -> str:
    """As much of its beginning as `room` holds."""
    widths = accumulate(map(_span, text))
    return text[: sum(width <= room for width in widths)]


def shorten(names: Iterable[str], room: float = 22) -> dict[str, str]:
    """Every name as `short` writes it; if it writes two alike, long ones are cut in their middle, or else numbered.

    >>> list(shorten(["rdp(weights=rdp-ablation-no-pix)", "rdp(weights=rdp-ablation-no-lat)"], 16).values())
    ['rdp(wei…no-pix)', 'rdp(wei…no-lat)']
    """
    names = list(dict.fromkeys(names))
    found = {name: short(name, room) for name in names}
    if len(set(found.values())) == len(names):
        return found
    half = (max(room, 8) - 1) / 2
    for name, cut in found.items():
        if cut != name:
            found[name] = f"{_first(name, half)}…{_first(name[::-1], half)[::-1]}"
    shared = Counter(found.values())
    for number, name in enumerate(names, 1):
        if shared[found[name]] > 1 and found[name] != name:
            found[name] = f"{short(name, room - 4)} #{number}"
    return found


def left_out(shown: int, there: int) -> str:
    """What a caption says of panels for which there is no room."""
    return f" Shown are the first {shown} of {there} panels; the tables have all." if shown < there else ""


def legend_columns(width: float, names: Iterable[str], most: int) -> int:
    """How many columns a legend has room for, at most `most`, in a figure of so many inches."""
    widest = SMALL / SIZE * LETTER * (max(map(span, names)) + 6)  # and the sample of its line
    return max(1, min(most, int(width / widest)))


def legend(figure: "Figure", lines: Sequence[Any], names: Sequence[str], columns: int) -> None:
    """A legend above the panels."""
    figure.legend(lines, names, loc="outside upper center", ncols=columns, frameon=False, fontsize=SMALL)


@contextmanager
def styled() -> Iterator[None]:
    """Inside this block, matplotlib draws and saves in `STYLE`."""
    import matplotlib as mpl

    with mpl.rc_context({**STYLE, "font.family": fonts.families()}):
        yield


def save(figure: "Figure", dpi: int = 160) -> Saved:
    """The figure in every format, the same bytes whenever it is drawn.

    Each canvas is asked for its own format: `Figure.savefig` would draw the figure twice for each of them.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    canvases: dict[str, tuple[Any, dict[str, Any]]] = {
        "svg": (FigureCanvasSVG, {"metadata": {"Date": None}}),
        "pdf": (FigureCanvasPdf, {"metadata": {"CreationDate": None}}),
        # A tenth larger than by default, in half the time.
        "png": (FigureCanvasAgg, {"pil_kwargs": {"compress_level": 1}}),
    }
    saved = {}
    for kind, (canvas, more) in canvases.items():
        file = io.BytesIO()
        figure.dpi = dpi  # canvases of vector graphics leave their own
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # an SVG holds text, no glyphs
            getattr(canvas(figure), f"print_{kind}")(file, **more)
        saved[kind] = file.getvalue()
        if kind == "svg":
            fonts.number(figure)
    return saved
