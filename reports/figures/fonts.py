"""Fonts that come with matplotlib, reduced to the letters of a report.

A PDF embeds the letters that it uses; to pick them from a whole font takes longer than to draw a small figure.
"""

import contextlib
import io
import tempfile
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdp_bench.terminal import warn_once

if TYPE_CHECKING:
    from matplotlib.figure import Figure

USUAL = frozenset(map(chr, (*range(32, 127), *range(161, 256)))) | frozenset("≈†‡εσαμ–−“”’×±∞…")
"""The letters of most names and captions."""


@cache
def reduced(name: str, more: frozenset[str] = frozenset(), family: str = "") -> bytes:
    """A TrueType file with the usual letters and `more`, as far as the font has them; `family`: another name for it."""
    import matplotlib as mpl
    from fontTools.subset import Options, Subsetter
    from fontTools.ttLib import TTFont

    font = TTFont(Path(mpl.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf", lazy=True)
    options = Options(layout_features=[], hinting=False)
    options.drop_tables += ["GSUB", "GPOS", "GDEF", "FFTM"]
    subsetter = Subsetter(options)
    subsetter.populate(text="".join(sorted(USUAL | more)))
    subsetter.subset(font)
    for record in font["name"].names if family else ():
        record.string = family
    file = io.BytesIO()
    font.save(file)
    return file.getvalue()


@cache
def families() -> list[str]:
    """For matplotlib's `font.family`: a reduced sans serif, and the whole one for the letters that it lacks."""
    _add("DejaVuSans")
    return [_FAMILY, "sans-serif"]


@cache
def add_bold() -> None:
    """Give the reduced font its bold face, which takes as long again and few figures use."""
    _add("DejaVuSans-Bold")


def number(figure: "Figure") -> dict[str, str]:
    """Replace letters that none of the fonts in matplotlib's settings has by numbers, and warn of it.

    Matplotlib draws the same box for each such letter, so two names would look alike.

    Returns:
        What each number stands for: `{"[1]": "净化"}`.
    """
    from matplotlib.text import Text

    known = _letters()
    found: dict[str, str] = {}

    def numbered(said: str) -> str:
        parts = []
        for lacks, letters in groupby(said, lambda letter: letter != "\n" and ord(letter) not in known):
            part = "".join(letters)
            parts.append(found.setdefault(part, f"[{len(found) + 1}]") if lacks else part)
        return "".join(parts)

    for axis in (each for ax in figure.axes for each in (ax.xaxis, ax.yaxis)):  # ticks are written anew when drawn
        said = [tick.get_text() for tick in axis.get_ticklabels()]
        if (written := [*map(numbered, said)]) != said:
            axis.set_ticklabels(written)
    for text in figure.findobj(Text):
        text.set_text(numbered(text.get_text()))
    if found:
        numbers = ", ".join(f"{number} is {part}" for part, number in found.items())
        warn_once(
            __name__,
            f"PNG and PDF figures have numbers for letters that matplotlib's fonts lack: {numbers}; add a font that "
            "has them to font.sans-serif in a matplotlibrc",
        )
    return {number: part for part, number in found.items()}


def _letters() -> set[int]:
    """Codes of the letters that some font of matplotlib's settings has."""
    import matplotlib as mpl
    from matplotlib.font_manager import FontProperties, fontManager, get_font

    settings: dict[Any, Any] = {**mpl.rcParams}
    known: set[int] = set()
    for family in settings["font.family"]:
        for name in settings.get(f"font.{family}", [family]):  # of a generic family, or its own
            with contextlib.suppress(ValueError):  # it is not installed
                path = fontManager.findfont(FontProperties(family=name), fallback_to_default=False)
                known |= {*get_font(path).get_charmap()}
    return known


_FAMILY = "rdp-bench-sans"


def _add(name: str) -> None:
    from matplotlib.font_manager import fontManager

    path = Path(_folder().name) / f"{name}.ttf"
    path.write_bytes(reduced(name, family=_FAMILY))
    fontManager.addfont(path)


@cache
def _folder() -> "tempfile.TemporaryDirectory[str]":
    """Where matplotlib reads the reduced font; deleted when the process ends."""
    return tempfile.TemporaryDirectory(prefix="rdp-bench-")
